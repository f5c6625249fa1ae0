# SPDX-License-Identifier: Apache-2.0
"""Finds the files of a release: in a folder, or by the release's name there and on the Hub.

`releases.json` says of every release which files it has and which language model it was trained with. Names and sizes of the
files are those of the Hub's pages.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from transformers import LlamaConfig
from transformers.utils import CONFIG_NAME, logging

from transformers_videollama.conversion.checkpoints import CheckpointFile, name_of, read_json
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


@dataclass(frozen=True)
class Sources:
    """The files and folders of a conversion.

    Attributes:
        vision_checkpoint: VL file: what the vision branch trained.
        eva_vit: `eva_vit_g.pth`.
        blip2: `blip2_pretrained_flant5xxl.pth`.
        llama: Folder of a LLaMA in Hugging Face format.
        audio_checkpoint: AL file: what the audio branch trained. Without it the model has no audio branch.
        imagebind: `imagebind_huge.pth`, needed with `audio_checkpoint`.
        llama_delta: Folder of the difference between `llama` and the LLaMA that was trained with, where this was released so.
        tokenizer: Folder with a tokenizer, if the LLaMA folder has none.
        release: To which they belong, where that is known: by what was asked for, or by the name of the VL file.
    """

    vision_checkpoint: Path
    eva_vit: Path
    blip2: Path
    llama: Path
    audio_checkpoint: Path | None = None
    imagebind: Path | None = None
    llama_delta: Path | None = None
    tokenizer: Path | None = None
    release: Release | None = None

    @property
    def delta_rules(self) -> dict[str, str]:
        """How the difference is applied: by the name of its folder, else by the release. See `SummedCheckpoint`."""
        deltas = [llm.delta for llm in LANGUAGE_MODELS.values() if llm.delta]
        known = [delta for delta in deltas if stem(delta["repo"]) == name_of(self.llama_delta).lower()]
        if not known and self.release is not None and self.release.language_model.delta:
            known = [self.release.language_model.delta]
        return {kind: known[0][kind] for kind in ("added", "subtracted") if kind in known[0]} if known else {}


def stem(name: str) -> str:
    """`DAMO-NLP-SG/Video-LLaMA-2-7B-Finetuned` and `VL_….pth` without owner and suffix, in small letters."""
    name = name.rsplit("/", 1)[-1].lower()
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def release_named(name: str) -> Release | None:
    """A release by its name, or by that of its vision or audio file; None if it is not in the table."""
    if "/" in name and not name.startswith("DAMO-NLP-SG/"):
        return None
    for release in RELEASES.values():
        if stem(name) in {stem(known) for known in (release.name, release.vision, release.audio) if known}:
            return release
    return None


def check_fit(sources: Sources, text_config: LlamaConfig | None) -> None:
    """Refuses branches that were trained with another language model, where the names of the files tell.

    Args:
        sources: Of the conversion.
        text_config: Sizes of the LLaMA; None if they differ from the released ones on purpose.

    Raises:
        CheckpointError: If they were.
    """
    vision, audio = sources.vision_checkpoint, sources.audio_checkpoint
    release = sources.release
    other = release_named(audio.name) if audio is not None else None
    if release is not None and other is not None and other.language_model != release.language_model:
        raise CheckpointError(
            f"{audio.name} was trained with {other.language_model.name}, {vision.name} with {release.language_model.name}: "
            f"give the audio branch of the same one, {release.audio or 'or none, as none was released'}."
        )
    if text_config is None:
        return
    whole = sources.llama_delta or sources.llama
    for path, each in ((vision, release), (audio, other)):
        if each is None:
            continue
        expected = each.language_model
        given = (text_config.hidden_size, text_config.vocab_size)
        if given[0] != expected.hidden_size or given[1] not in expected.vocab_sizes:
            sizes = " or ".join(map(str, expected.vocab_sizes))
            raise CheckpointError(
                f"{path.name} was trained with {expected.name} (width {expected.hidden_size}, vocabulary {sizes}), but "
                f"{whole} has width {given[0]} and vocabulary {given[1]}. Get that LLaMA: {expected.where}. Sizes that differ "
                "from the released ones on purpose are given by --config."
            )


# ---------------------------------------------------------------------------------------------------------------------
# Finding


def find_sources(
    release: str | Path | None,
    given: Mapping[str, Path],
    with_audio: bool | None = None,
    local_dir: Path | None = None,
    say: Callable[[str], None] = logger.info,
) -> Sources:
    """The sources of a conversion: what is given, else what lies in a folder, else what is downloaded.

    Args:
        release: A folder, or the name of a release or of one of its files, or None where all sources are given.
        given: Sources by the names of the fields of `Sources`. A LLaMA may be the name of a repository on the Hub.
        with_audio: Whether the audio branch is wanted. None: if there is one.
        local_dir: With a name: folder to look in before anything is downloaded.
        say: Told of every download, before it begins.

    Raises:
        CheckpointError: If a source is missing (it names the source, and where it is to be had), or if several could be meant.
    """
    found = dict(given)
    if with_audio is False and (unwanted := sorted(found.keys() & {"audio_checkpoint", "imagebind"})):
        raise CheckpointError(f"Both --no-audio and {option(unwanted[0])} were given: leave out one of them.")
    if local_dir is not None and not local_dir.is_dir():
        raise CheckpointError(f"{local_dir} is no folder: give one by --local-dir, or leave it out.")
    for kind in ("llama", "llama_delta"):
        if kind in found and not found[kind].is_dir():
            found[kind] = download_llama(found[kind].as_posix(), None, kind, say)

    known, folder = None, local_dir
    if release is not None:
        release = str(release)
        known = release_named(release)
        # A folder may have the name of a release, as the output of an earlier conversion; with --local-dir the name is meant
        if Path(release).is_dir() and (local_dir is None or known is None):
            if local_dir is not None:
                raise CheckpointError(f"{release} is a folder: leave out --local-dir, or give the name of a release.")
            known, folder = None, Path(release)
        elif known is None:
            is_file = (
                " It is a file: give its folder, or the file by --vision-checkpoint."
                if Path(release).is_file()
                else ""
            )
            raise CheckpointError(
                f"{release} is no folder and no release.{is_file} The releases are {', '.join(RELEASES)}."
            )
    if known is not None and with_audio and known.audio is None:
        raise CheckpointError(f"{known.name} was released without an audio branch: leave out --audio.")

    if folder is not None:
        found = find_files(folder, known, with_audio) | found
    of_release = known or (release_named(found["vision_checkpoint"].name) if "vision_checkpoint" in found else None)
    if folder is not None and not {"llama", "llama_delta"} <= found.keys():
        found = find_llamas(folder, of_release, is_base_given="llama" in given) | found
    if is_half_a_sum(found, given, of_release):
        del found["llama"]
    for kind in needed_kinds(found, known, with_audio):
        if kind not in found and known is not None:
            found[kind] = download(known, kind, say)
        elif kind not in found:
            raise CheckpointError(
                f"There is no {describe(kind, of_release)}{f' in {folder}, nor in a folder in it' if folder else ''}: give it by "
                f"{option(kind)}{'' if folder else ', or all of a release by --release'}. {where(kind, of_release)}"
            )
    if "audio_checkpoint" not in found and "imagebind" not in given:
        found.pop("imagebind", None)
    check_llama(found, of_release)
    return Sources(**found, release=of_release)


def needed_kinds(found: Mapping[str, Path], release: Release | None, with_audio: bool | None) -> list[str]:
    kinds = ["vision_checkpoint", "eva_vit", "blip2", "llama"]
    is_released = release is not None and release.audio is not None and with_audio is not False
    if with_audio or is_released or "audio_checkpoint" in found:
        kinds += ["audio_checkpoint", "imagebind"]
    return kinds


def is_half_a_sum(found: Mapping[str, Path], given: Mapping[str, Path], release: Release | None) -> bool:
    """Whether a LLaMA was found, not given, that is but the base of the one that a release needs."""
    llm = release.language_model if release is not None else None
    if llm is None or llm.delta is None or "llama" in given or {"llama", "llama_delta"} & found.keys() != {"llama"}:
        return False
    vocab_size = read_json(found["llama"] / CONFIG_NAME).get("vocab_size")
    is_named_so = re.split(r"[- ]", llm.name.lower())[0] in found["llama"].name.lower()
    return vocab_size not in llm.vocab_sizes or (vocab_size == 32000 and not is_named_so)


def option(kind: str) -> str:
    return f"--{kind.replace('_', '-')}"


def where(kind: str, release: Release | None) -> str:
    """Where a source is to be had, as a sentence."""
    if kind in COMMON:
        return f"It is to be had at {TABLE['files'][COMMON[kind]]['url']}."
    if kind == "llama":
        return (
            f"{release.language_model.where}." if release else "The table of the releases says where it is to be had."
        )
    return f"It is to be had at https://huggingface.co/{release.repo if release else 'DAMO-NLP-SG'}."


def describe(kind: str, release: Release | None) -> str:
    """What a source is called, in an error."""
    if kind in COMMON:
        return COMMON[kind]
    if kind == "llama":
        return f"LLaMA folder in Hugging Face format{f' ({release.language_model.name})' if release else ''}"
    return {"vision_checkpoint": "vision branch (VL_….pth)", "audio_checkpoint": "audio branch (AL_….pth)"}[kind]


def files_of(folder: Path) -> Iterator[Path]:
    """Files of a folder and of the folders in it."""
    yield from sorted(folder.glob("*"))
    yield from sorted(folder.glob("*/*"))


def find_files(folder: Path, release: Release | None, with_audio: bool | None) -> dict[str, Path]:
    """All but LLaMA that a folder holds, by the names of the release, or of any release if it is not known."""
    patterns = {kind: re.escape(stem(name)) for kind, name in COMMON.items()}
    if release is None:
        patterns |= {
            "vision_checkpoint": r"vl_.*|(pretrain|finetune)[-_](?!.*audiobranch).*",
            "audio_checkpoint": r"al_.*|.*_audiobranch",
        }
    else:
        patterns["vision_checkpoint"] = re.escape(stem(release.vision))
        patterns["audio_checkpoint"] = re.escape(stem(release.audio)) if release.audio else "(?!)"
    if with_audio is False:
        del patterns["audio_checkpoint"], patterns["imagebind"]
    found = {}
    for kind, pattern in patterns.items():
        files = [file for file in files_of(folder) if file.suffix.lower() in SUFFIXES]
        matching = [file for file in files if re.fullmatch(pattern, stem(file.name))]
        if len(matching) > 1:
            raise CheckpointError(
                f"{folder} holds several files for {kind}: {', '.join(map(str, matching))}. Name the one by {option(kind)}."
            )
        if matching:
            found[kind] = matching[0]
    return found


# ---------------------------------------------------------------------------------------------------------------------
# LLaMA


def is_delta(folder: Path) -> bool:
    """Whether a folder has the name of a difference to LLaMA, as Vicuna, Ziya and BiLLa were released."""
    repos = {stem(llm.delta["repo"]) for llm in LANGUAGE_MODELS.values() if llm.delta}
    return "delta" in name_of(folder).lower() or name_of(folder).lower() in repos


def is_llama(folder: Path) -> bool:
    try:
        return read_json(folder / CONFIG_NAME).get("model_type") == "llama"
    except CheckpointError:
        # Beside weights it is worth an error of its own, which comes when it is read
        return any(file.suffix.lower() in SUFFIXES for file in folder.glob("*model*"))


def find_llamas(folder: Path, release: Release | None, is_base_given: bool) -> dict[str, Path]:
    """The LLaMA of a release in a folder, or the base and the difference that make it."""
    llamas = [file.parent for file in files_of(folder) if file.name == CONFIG_NAME and is_llama(file.parent)]
    deltas = [each for each in llamas if is_delta(each)]
    others = {llm.folder for llm in LANGUAGE_MODELS.values() if llm.folder}
    bases = [each for each in llamas if each not in deltas]
    llm = release.language_model if release is not None else None
    if llm is not None and llm.folder:
        deltas = []
        bases = [each for each in bases if each.name.lower() == llm.folder] or [each for each in bases if each.name.lower() not in others]  # fmt: skip
    elif llm is not None:
        deltas = [each for each in deltas if each.name.lower() == stem(llm.delta["repo"])] or deltas
        bases = [each for each in bases if each.name.lower() not in others]
    found = {}
    for kind, folders in (("llama", [] if is_base_given else bases), ("llama_delta", deltas)):
        if len(folders) > 1:
            raise CheckpointError(
                f"{folder} holds several LLaMA folders: {', '.join(map(str, folders))}. Name the one by {option(kind)}."
            )
        if folders:
            found[kind] = folders[0]
    return found


def check_llama(found: Mapping[str, Path], release: Release | None) -> None:
    """Refuses a difference without its base, and a difference where none was released."""
    if is_delta(found["llama"]):
        raise CheckpointError(
            f"{found['llama']} has the name of a difference to LLaMA, which is of no use by itself: give it by --llama-delta, "
            "and LLaMA (version 1) by --llama. Rename it if they are added up already."
        )
    if release is not None and "llama_delta" in found and release.language_model.delta is None:
        raise CheckpointError(
            f"{release.language_model.name} was not released as a difference: leave out --llama-delta."
        )


# ---------------------------------------------------------------------------------------------------------------------
# Downloading


def download(release: Release, kind: str, say: Callable[[str], None]) -> Path:
    """A source of a release, into the cache of huggingface-hub, or of torch where its home is no repository."""
    llm = release.language_model
    if kind == "llama" and llm.folder is None:
        raise CheckpointError(
            f"{release.name} needs {llm.name}, which is made of {llm.delta['base']} and {llm.delta['repo']}: give the first by "
            f"--llama and the second by --llama-delta, or a folder of the whole by --llama. {llm.where}."
        )
    if kind == "llama":
        return download_llama(release.repo, llm.folder, kind, say)
    filename = {"vision_checkpoint": release.vision, "audio_checkpoint": release.audio, **COMMON}[kind]
    in_repo = kind not in COMMON or (kind == "imagebind" and llm.folder is not None)
    origin = f"https://huggingface.co/{release.repo}" if in_repo else TABLE["files"][filename]["url"]
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
            part = path.with_name(f"{path.name}.incomplete{path.suffix}")
            torch.hub.download_url_to_file(origin, str(part))
            try:
                CheckpointFile(part)  # what was cut off has no list of its tensors, which comes last
            except CheckpointError:
                part.unlink()
                raise
            part.rename(path)
        return path
    except Exception as error:
        raise CheckpointError(
            f"{filename} could not be downloaded from {origin}: {first_line(error)}. Give it by {option(kind)}, or put it into the "
            "folder of --local-dir."
        ) from error


def download_llama(repo: str, folder: str | None, kind: str, say: Callable[[str], None]) -> Path:
    """The folder of a LLaMA on the Hub, without the formats of weights that are not read."""
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", repo):
        raise CheckpointError(f"{repo} is no folder: give that of a LLaMA in Hugging Face format by {option(kind)}.")
    prefix = f"{folder}/" if folder else ""
    try:
        files = [file for file in HfApi().list_repo_files(repo) if file.startswith(prefix)]
        suffix = ".safetensors" if any(file.endswith(".safetensors") for file in files) else ".bin"
        wanted = [file for file in files if file.endswith((suffix, ".json", ".model"))]
        say(f"{prefix or repo} ({len(wanted)} files) from https://huggingface.co/{repo}")
        path = Path(snapshot_download(repo, allow_patterns=wanted)) / prefix
    except Exception as error:
        raise CheckpointError(
            f"The LLaMA folder {prefix or repo} is not here, and could not be downloaded from https://huggingface.co/{repo}: "
            f"{first_line(error)}. Give its folder by {option(kind)}."
        ) from error
    if not (path / CONFIG_NAME).is_file():
        raise CheckpointError(
            f"https://huggingface.co/{repo} holds no LLaMA folder {prefix}: give it by {option(kind)}."
        )
    return path


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).removesuffix(".")
