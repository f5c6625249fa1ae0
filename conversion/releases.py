# SPDX-License-Identifier: Apache-2.0
"""Finds the files of a release: in a folder, or by the release's name there and on the Hub.

`releases.json` says of every release which files it has and which language model it was trained with. Names and sizes of the
files are those of the Hub's pages.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from transformers import LlamaConfig
from transformers.utils import CONFIG_NAME, logging

from transformers_videollama.conversion.checkpoints import read_json
from transformers_videollama.exceptions import CheckpointError


logger = logging.get_logger(__name__)

TABLE = json.loads((Path(__file__).parent / "releases.json").read_text())
SUFFIXES = (".pth", ".bin", ".safetensors")
COMMON = {
    "eva_vit": "eva_vit_g.pth",
    "blip2": "blip2_pretrained_flant5xxl.pth",
    "imagebind": "imagebind_huge.pth",
}


@dataclass(frozen=True)
class LanguageModel:
    """The frozen LLaMA of a release.

    Attributes:
        prompt_family: "vicuna" or "llama_2".
        hidden_size: Its width.
        vocab_sizes: Rows that its embedding may have.
        where: Where it is to be had.
        folder: Name of its folder in the release's repository, if it is there.
        delta: Where it was released as a difference: `repo` on the Hub, its `base` in words, and the patterns `added` and
            `subtracted` of `SummedCheckpoint`.
    """

    name: str
    prompt_family: str
    hidden_size: int
    vocab_sizes: list[int]
    where: str
    folder: str | None = None
    delta: dict[str, str] | None = None


@dataclass(frozen=True)
class Release:
    """One vision branch that was released, with the audio branch to it if there is one."""

    name: str
    repo: str
    vision: str
    language_model: LanguageModel
    audio: str | None = None


LANGUAGE_MODELS = {name: LanguageModel(name=name, **fields) for name, fields in TABLE["language_models"].items()}
RELEASES = {
    name: Release(name=name, **{**fields, "language_model": LANGUAGE_MODELS[fields["language_model"]]})
    for name, fields in TABLE["releases"].items()
}


def stem(name: str) -> str:
    """`DAMO-NLP-SG/Video-LLaMA-2-7B-Finetuned` and `VL_….pth` without owner and suffix, in small letters."""
    name = name.rsplit("/", 1)[-1]
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name.lower()


def release_named(name: str) -> Release | None:
    """A release by its name, or by that of its vision or audio file; None if it is not in the table."""
    for release in RELEASES.values():
        if stem(name) in {stem(known) for known in (release.name, release.vision, release.audio) if known}:
            return release
    return None


def check_fit(vision: Path, audio: Path | None, llama: Path, text_config: LlamaConfig) -> None:
    """Refuses branches that were trained with another language model, where the names of the files tell.

    Raises:
        CheckpointError: If they were.
    """
    release = release_named(vision.name)
    if audio is not None and release is not None:
        other = release_named(audio.name)
        if other is not None and other.language_model != release.language_model:
            raise CheckpointError(
                f"{audio.name} was trained with {other.language_model.name}, {vision.name} with "
                f"{release.language_model.name}: give the audio branch of the same one"
                + (f", {release.audio}." if release.audio else ", or none: this one has no audio branch.")
            )
    for path in (vision, audio):
        release = release_named(path.name) if path is not None else None
        if release is None:
            continue
        expected = release.language_model
        given = (text_config.hidden_size, text_config.vocab_size)
        if given[0] != expected.hidden_size or given[1] not in expected.vocab_sizes:
            sizes = " or ".join(map(str, expected.vocab_sizes))
            raise CheckpointError(
                f"{path.name} was trained with {expected.name} (width {expected.hidden_size}, vocabulary {sizes}), but "
                f"{llama} has width {given[0]} and vocabulary {given[1]}. Get that LLaMA: "
                f"{expected.where}. Sizes that differ from the released ones on purpose are given by --config."
            )


# ---------------------------------------------------------------------------------------------------------------------
# In a folder


def files_of(folder: Path) -> Iterator[Path]:
    """Files of a folder and of the folders in it."""
    yield from sorted(folder.glob("*"))
    yield from sorted(folder.glob("*/*"))


def named(folder: Path, filename: str) -> list[Path]:
    """Files of that name, in any of the formats."""
    return [file for file in files_of(folder) if stem(file.name) == stem(filename) and file.suffix in SUFFIXES]


def where(kind: str, release: Release | None) -> str:
    """Where a source is to be had."""
    if kind in COMMON:
        return TABLE["files"][COMMON[kind]]["url"]
    if release is None:
        return f"https://huggingface.co/{'meta-llama' if kind == 'llama' else 'DAMO-NLP-SG'}"
    return release.language_model.where if kind == "llama" else f"https://huggingface.co/{release.repo}"


def find_in_folder(folder: Path, given: dict[str, Path], with_audio: bool | None) -> dict[str, Path]:
    """The sources of a release by the names they were released under, in one folder or one level below it.

    Args:
        folder: Where to look.
        given: Sources that are known already, by the names of the arguments of `convert`.
        with_audio: Whether the audio branch is wanted. None: if it is there.

    Raises:
        CheckpointError: If one is missing, or if there are several of a kind.
    """
    patterns = {
        "vision_checkpoint": r"(VL_|pretrain|finetune)(?!.*audiobranch).*",
        "audio_checkpoint": r"AL_.*|.*_audiobranch",
        **{kind: re.escape(stem(name)) for kind, name in COMMON.items()},
    }
    if with_audio is False:
        del patterns["audio_checkpoint"], patterns["imagebind"]
    found = dict(given)
    for kind, pattern in patterns.items():
        if kind in found:
            continue
        candidates = [file for file in files_of(folder) if file.suffix in SUFFIXES]
        matching = [file for file in candidates if re.fullmatch(pattern, stem(file.name), re.IGNORECASE)]
        if len(matching) > 1:
            raise CheckpointError(
                f"{folder} holds several files for {kind}: {', '.join(file.name for file in matching)}. Name the one by "
                f"--{kind.replace('_', '-')}."
            )
        if matching:
            found[kind] = matching[0]
    if "llama" not in found:
        folders = [file.parent for file in files_of(folder) if file.name == CONFIG_NAME and is_llama(file)]
        deltas = [each for each in folders if is_delta(each)]
        wholes = [each for each in folders if each not in deltas]
        if len(deltas) > 1 or len(wholes) > 1:
            names = ", ".join(each.name for each in folders)
            raise CheckpointError(f"{folder} holds several LLaMA folders: {names}. Name the one by --llama.")
        if wholes:
            found["llama"] = wholes[0]
        if deltas and "llama_delta" not in found:
            found["llama_delta"] = deltas[0]
    release = release_named(found["vision_checkpoint"].name) if "vision_checkpoint" in found else None
    needed = ["vision_checkpoint", "eva_vit", "blip2", "llama"]
    if with_audio or "audio_checkpoint" in found:
        needed += ["audio_checkpoint", "imagebind"]
    elif "imagebind" not in given:
        found.pop("imagebind", None)
    for kind in needed:
        if kind not in found:
            option = f"--{kind.replace('_', '-')}"
            raise CheckpointError(
                f"{folder} holds no {describe(kind, release)}, nor does a folder in it: add it, or name it by {option}. It "
                f"is to be had at {where(kind, release)}."
            )
    return found


def is_llama(config: Path) -> bool:
    return read_json(config).get("model_type", "llama") == "llama"


def is_delta(folder: Path) -> bool:
    deltas = {stem(llm.delta["repo"]) for llm in LANGUAGE_MODELS.values() if llm.delta}
    return "delta" in folder.name.lower() or folder.name.lower() in deltas


def describe(kind: str, release: Release | None) -> str:
    """What a source is called, in an error."""
    if kind in COMMON:
        return COMMON[kind]
    if kind == "llama":
        return f"folder of a LLaMA in Hugging Face format{f' ({release.language_model.name})' if release else ''}"
    return {"vision_checkpoint": "vision branch (VL_….pth)", "audio_checkpoint": "audio branch (AL_….pth)"}[kind]


# ---------------------------------------------------------------------------------------------------------------------
# By name


def find_by_name(
    name: str,
    given: dict[str, Path],
    with_audio: bool | None,
    local_dir: Path | None = None,
    say: Callable[[str], None] = logger.info,
) -> dict[str, Path]:
    """The sources of a release of the table: what is given, else what lies in `local_dir`, else downloaded.

    Args:
        name: Of the release or of one of its files.
        given: Sources that are known already, by the names of the arguments of `convert`.
        with_audio: Whether the audio branch is wanted. None: if it was released.
        local_dir: Folder to look in before anything is downloaded.
        say: Told of every download, before it begins.

    Raises:
        CheckpointError: If there is no such release, or a file of it is neither here nor to be downloaded.
    """
    release = release_named(name)
    if release is None:
        raise CheckpointError(f"{name} is no folder and no release. The releases are {', '.join(RELEASES)}.")
    if with_audio and release.audio is None:
        raise CheckpointError(f"{release.name} was released without an audio branch: leave out --audio.")
    filenames = {
        "vision_checkpoint": release.vision,
        "audio_checkpoint": release.audio,
        **COMMON,
    }
    if with_audio is False or release.audio is None:
        del filenames["audio_checkpoint"], filenames["imagebind"]
    found = dict(given)
    for kind, filename in filenames.items():
        if kind in found:
            continue
        local = named(local_dir, filename) if local_dir is not None else []
        found[kind] = local[0] if local else download_file(release, kind, filename, say)
    if "llama" not in found:
        found |= find_language_model(release, found, local_dir, say)
    return found


def find_language_model(
    release: Release, given: dict[str, Path], local_dir: Path | None, say: Callable[[str], None]
) -> dict[str, Path]:
    """The folder of the LLaMA, or those of its base and of its difference to that."""
    llm = release.language_model
    if llm.folder is not None:
        if local_dir is not None and (local_dir / llm.folder / CONFIG_NAME).is_file():
            return {"llama": local_dir / llm.folder}
        return {"llama": download_llama(release.repo, llm.folder, say)}
    found = {}
    if local_dir is not None:
        found = {
            kind: folder
            for kind, folder in find_llamas(local_dir).items()
            if kind not in given and (kind == "llama" or stem(llm.delta["repo"]) == folder.name.lower())
        }
    if "llama" not in found:
        raise CheckpointError(
            f"{release.name} needs {llm.name}, which is made of {llm.delta['base']} and {llm.delta['repo']}: give the first by "
            f"--llama and the second by --llama-delta, or a folder of the whole by --llama. {llm.where}."
        )
    return found


def find_llamas(folder: Path) -> dict[str, Path]:
    """Folders of a LLaMA and of a difference to one, where there is one of each."""
    folders = [file.parent for file in folder.glob(f"*/{CONFIG_NAME}") if is_llama(file)]
    kinds = {
        "llama": [each for each in folders if not is_delta(each)],
        "llama_delta": [each for each in folders if is_delta(each)],
    }
    return {kind: found[0] for kind, found in kinds.items() if len(found) == 1}


def download_file(release: Release, kind: str, filename: str, say: Callable[[str], None]) -> Path:
    """One file, into the cache of huggingface-hub, or of torch where its home is no repository."""
    in_repo = kind not in COMMON or (kind == "imagebind" and release.language_model.folder is not None)
    origin = where(kind, release) if not in_repo else f"https://huggingface.co/{release.repo}"
    try:
        if in_repo:
            say(f"{filename} from {origin}")
            return Path(hf_hub_download(release.repo, filename))
        # The original keeps these in the same place
        path = Path(torch.hub.get_dir()) / "checkpoints" / filename
        if not path.is_file():
            if constants.HF_HUB_OFFLINE:
                raise OSError("HF_HUB_OFFLINE is set")
            say(f"{filename} ({TABLE['files'][filename]['size']}) from {origin} to {path.parent}")
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(origin, str(path))
        return path
    except Exception as error:
        raise CheckpointError(
            f"{filename} could not be downloaded from {origin}: {first_line(error)}. Give it by --{kind.replace('_', '-')}, or put it "
            "into the folder of --local-dir."
        ) from error


def download_llama(repo: str, folder: str | None, say: Callable[[str], None]) -> Path:
    """The folder of a LLaMA on the Hub, without the formats of weights that are not read."""
    prefix = f"{folder}/" if folder else ""
    try:
        files = [file for file in HfApi().list_repo_files(repo) if file.startswith(prefix)]
        suffix = ".safetensors" if any(file.endswith(".safetensors") for file in files) else ".bin"
        wanted = [file for file in files if file.endswith((suffix, ".json", ".model"))]
        say(f"{prefix or repo} ({len(wanted)} files) from https://huggingface.co/{repo}")
        path = Path(snapshot_download(repo, allow_patterns=wanted)) / prefix
    except Exception as error:
        raise CheckpointError(
            f"The LLaMA folder {prefix or repo} could not be downloaded from https://huggingface.co/{repo}: {first_line(error)}. Give "
            "its folder by --llama."
        ) from error
    if not (path / CONFIG_NAME).is_file():
        raise CheckpointError(f"https://huggingface.co/{repo} holds no LLaMA folder {prefix}: give it by --llama.")
    return path


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).removesuffix(".")


def find_sources(
    release: str | None,
    given: dict[str, Path],
    with_audio: bool | None = None,
    local_dir: Path | None = None,
    say: Callable[[str], None] = logger.info,
) -> dict[str, Path]:
    """The sources of a conversion by the names of the arguments of `convert`.

    Args:
        release: A folder, or the name of a release, or None where all sources are given.
        given: Sources by the names of the arguments of `convert`; a LLaMA may be the name of a repository on the Hub.
        with_audio: Whether the audio branch is wanted. None: if there is one.
        local_dir: With a name: folder to look in before anything is downloaded.
        say: Told of every download, before it begins.

    Raises:
        CheckpointError: If a source is missing: it names the source, and where it is to be had.
    """
    given = dict(given)
    for kind in ("llama", "llama_delta"):
        if kind in given and not given[kind].is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", given[kind].as_posix()):
            given[kind] = download_llama(given[kind].as_posix(), None, say)
    if release is None:
        for kind in ("vision_checkpoint", "eva_vit", "blip2", "llama"):
            if kind not in given:
                raise CheckpointError(
                    f"There is no {describe(kind, None)}: give it by --{kind.replace('_', '-')}, or all of a release by "
                    "--release."
                )
        return given
    if Path(release).is_dir():
        return find_in_folder(Path(release), given, with_audio)
    return find_by_name(release, given, with_audio, local_dir, say)
