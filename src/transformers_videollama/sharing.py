# Copyright 2026 The transformers_videollama authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Sharing on the Hub: the model card, and one commit that carries weights, code, processor and card."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import CommitInfo, CommitOperationAdd, EvalResult, HfApi, ModelCard, ModelCardData, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RemoteEntryNotFoundError,
)
from transformers import AutoProcessor, PreTrainedModel, ProcessorMixin, __version__
from transformers.utils import PROCESSOR_NAME, logging

from .configuration_video_llama import VideoLlamaConfig
from .exceptions import SharingError


logger = logging.get_logger(__name__)

CARD_NAME = "README.md"

# What the processor writes about a clip of 6 seconds, by prompt family; `×32` stands for that many placeholders
EXAMPLE_PROMPTS = {
    "vicuna": (
        "###Human: <Video><VideoHere>×{video}</Video> The video contains 8 frames sampled at 0.0, 0.8, 1.5, 2.2, 3.0, 3.8, "
        "4.5, 5.2 seconds.  What do you see?###Assistant:"
    ),
    "llama_2": (
        "[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to understand the visual content that "
        "the user provides, and assist the user with a variety of tasks using natural language.\n<</SYS>>\n\n"
        "<Video><VideoHere>×{video}</Video> The video contains 8 frames sampled at 0.0, 0.8, 1.5, 2.2, 3.0, 3.8, 4.5, 5.2 "
        "seconds.  What do you see? [/INST]"
    ),
}
FAMILY_NAMES = {"vicuna": "Vicuna", "llama_2": "LLaMA-2-chat"}

IMAGEBIND_LICENCE = "https://creativecommons.org/licenses/by-nc/4.0/"
# Of the LLaMA under each prompt family: the Hub's name of the licence, its address, and the notice that it asks for
LLAMA_LICENCES = {
    "vicuna": (
        "llama-non-commercial",
        "https://github.com/meta-llama/llama/blob/llama_v1/MODEL_CARD.md",
        "the first LLaMA, and Vicuna and others that were trained from it: Meta's non-commercial research licence",
    ),
    "llama_2": (
        "llama2",
        "https://ai.meta.com/llama/license/",
        "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. All Rights Reserved. "
        "The licence asks you to pass on a copy of it with the weights",
    ),
}

HOW_TO_USE = """\
```python
from transformers import AutoModelForMultimodalLM, AutoProcessor

checkpoint = "{checkpoint}"
processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
model = AutoModelForMultimodalLM.from_pretrained(checkpoint, trust_remote_code=True, device_map="auto")

messages = [
    {{
        "role": "user",
        "content": [{{"type": "video", "path": "{clip}"}}, {{"type": "text", "text": "{question}"}}],
    }}
]
inputs = processor.apply_chat_template(
    messages,{load_audio}
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
).to(model.device)
output_ids = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(processor.decode(output_ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""

ADAPTER_HOW_TO_USE = """\
```python
from peft import PeftModel
from transformers import AutoModelForMultimodalLM, AutoProcessor

processor = AutoProcessor.from_pretrained("{base_model}", trust_remote_code=True)
model = AutoModelForMultimodalLM.from_pretrained("{base_model}", trust_remote_code=True, device_map="auto")
model = PeftModel.from_pretrained(model, "{repo_id}")
```"""


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in line)} |" for line in lines)


def as_card(data: ModelCardData, sections: list[str]) -> ModelCard:
    text = "\n\n".join(sections)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


def count_parameters(config: VideoLlamaConfig) -> dict[str, int]:
    """Number of parameters of each top-level part, such as "model.vision_tower", without taking memory for them."""
    from .modeling_video_llama import VideoLlamaForConditionalGeneration

    # A copy, because a configuration in use may name an attention that only a real device has
    with torch.device("meta"):
        model = VideoLlamaForConditionalGeneration(type(config).from_dict(config.to_dict()))
    counts = {}
    for name, parameter in model.named_parameters():
        part = ".".join(name.split(".")[: 2 if name.startswith("model.") else 1])
        counts[part] = counts.get(part, 0) + parameter.numel()
    return counts


def size_rows(config: VideoLlamaConfig) -> list[tuple[str, str, str]]:
    """Part, architecture and parameters of each part, and of all together."""

    def layers(part_config) -> str:
        return f"{part_config.num_hidden_layers} layers, width {part_config.hidden_size}"

    vision, text = config.vision_config, config.text_config
    rows = [
        (
            "vision encoder (ViT)",
            f"{layers(vision)}; {vision.image_size}×{vision.image_size} pixels in patches of {vision.patch_size}",
            ("vision_tower",),
        ),
        (
            "Q-Former",
            f"{layers(config.qformer_config)}; {config.num_query_tokens} tokens per frame",
            ("query_tokens", "qformer"),
        ),
        (
            "video Q-Former, with positions and projection",
            f"{layers(config.video_qformer_config)}; up to {config.max_frame_positions} frames to "
            f"{config.num_video_query_tokens} tokens",
            ("frame_position_embedding", "video_query_tokens", "video_qformer", "video_projection"),
        ),
    ]
    if config.audio_config is not None:
        trunks = {"sound": config.audio_config.audio_config, "frames": config.audio_config.vision_config}
        rows += [
            (
                "audio encoder (ImageBind)",
                "; ".join(f"{name}: {layers(trunk)}" for name, trunk in trunks.items() if trunk is not None),
                ("audio_tower",),
            ),
            (
                "audio Q-Former, with positions and projection",
                f"{layers(config.audio_qformer_config)}; up to {config.max_audio_positions} segments to "
                f"{config.num_audio_query_tokens} tokens",
                ("audio_position_embedding", "audio_query_tokens", "audio_qformer", "audio_projection"),
            ),
        ]
    rows.append(("language model (LLaMA)", f"{layers(text)}; {text.vocab_size:,} tokens", ("language_model",)))

    counts = count_parameters(config)
    total = sum(counts.values())
    sized = []
    for part, architecture, names in rows:
        count = sum(counts.pop(f"model.{name}") for name in names)
        if part.startswith("language model"):
            count += counts.pop("lm_head", 0)
        sized.append((part, architecture, f"{count:,}"))
    return [*sized, ("**all**", "", f"**{total:,}**")]


def licence_notices(config: VideoLlamaConfig) -> tuple[dict[str, str], str]:
    """Metadata and text on the licences that the weights are under."""
    family = (config.provenance or {}).get("prompt_family")
    imagebind = f"ImageBind's weights are under [CC-BY-NC 4.0]({IMAGEBIND_LICENCE}): no commercial use."
    if family not in LLAMA_LICENCES:
        notices = [
            "- It is not recorded what the weights were made from. If from a LLaMA, its licence holds for them."
        ]
        if config.audio_config is not None:
            notices.append(f"- If the audio branch holds ImageBind's weights: {imagebind}")
        return {}, "\n".join(notices)
    name, link, notice = LLAMA_LICENCES[family]
    notices = [f"- **LLaMA**: {notice} ([terms]({link}))."]
    metadata = (
        {"license": name} if name == "llama2" else {"license": "other", "license_name": name, "license_link": link}
    )
    if config.audio_config is not None:
        notices.append(f"- **ImageBind** (the audio encoder): {imagebind}")
        # The stricter of the two has the link: there is room for one
        metadata = {
            "license": "other",
            "license_name": f"{name}-and-cc-by-nc-4.0",
            "license_link": IMAGEBIND_LICENCE,
        }
    return metadata, "\n".join(notices)


def model_card(
    config: VideoLlamaConfig,
    repo_id: str | None = None,
    *,
    clip: str = "clip.mp4",
    example_output: str | None = None,
    results: list[EvalResult] | None = None,
) -> ModelCard:
    """The model card of a checkpoint, made from its configuration.

    It says how to use the checkpoint, its architecture with the number of parameters of each part (counted on the meta
    device), what it was converted from by checksum, its prompts, and the licences of its weights.

    Args:
        config: Its `provenance` gives the sources, the prompt family and so the LLaMA's licence. Without one, the card says
            that they are not recorded.
        repo_id: Repository on the Hub that the example loads. By default the folder that the card lies in.
        clip: Path or URL of the clip that the example asks about.
        example_output: What the example printed.
        results: Measured results, shown in a table and in the metadata.

    Returns:
        A card to `save` as `README.md`, or to give to `push_to_hub`.
    """
    provenance = config.provenance or {}
    release, family, sources = (provenance.get(name) for name in ("release", "prompt_family", "sources"))
    has_audio = config.audio_config is not None
    title = (repo_id or release or "Video-LLaMA").split("/")[-1]
    licence_metadata, licences = licence_notices(config)
    language = None
    if sources:
        # Ziya's and BiLLa's releases end in "zh"
        is_chinese = any(Path(source["file"]).stem.endswith("-zh") for source in sources)
        language = ["zh", "en"] if is_chinese else ["en"]
    data = ModelCardData(
        base_model=release,
        language=language,
        library_name="transformers",
        pipeline_tag="video-text-to-text",
        tags=["video-llama", "multimodal", *(["audio"] if has_audio else [])],
        model_name=title if results else None,
        eval_results=results,
        **licence_metadata,
    )

    dtype = getattr(torch, str(config.dtype or torch.float32).removeprefix("torch."))
    sizes = size_rows(config)
    gigabytes = int(sizes[-1][-1].strip("*").replace(",", "")) * torch.finfo(dtype).bits / 8 / 1e9
    usage = HOW_TO_USE.format(
        checkpoint=repo_id or "path/to/this/folder",
        clip=clip,
        question="What do you see and hear?" if has_audio else "What do you see?",
        load_audio="\n    load_audio_from_video=True," if has_audio else "",
    )
    sections = [
        f"# {title}",
        f"Video-LLaMA ([paper](https://huggingface.co/papers/2306.02858)): a LLaMA that sees{' and hears' * has_audio} a "
        "video. Its code comes with it, so `trust_remote_code=True` is all that it needs.",
        "## How to use",
        "```bash\npip install 'transformers>=5.23' torch torchvision torchaudio accelerate av decord\n```",
        usage,
    ]
    if example_output is not None:
        sections += ["It prints:", f"```text\n{example_output}\n```"]
    sections += [
        "## Architecture",
        table(("part", "architecture", "parameters"), sizes),
        f"In {str(dtype).removeprefix('torch.')} the weights take {gigabytes:.1f} GB.",
        "## Prompts",
    ]
    if family in EXAMPLE_PROMPTS:
        prompt = EXAMPLE_PROMPTS[family].format(video=config.num_video_query_tokens)
        sections += [
            f"The family is **{FAMILY_NAMES[family]}**. `apply_chat_template` writes, for a clip of 6 seconds:",
            f"```text\n{prompt}\n```",
        ]
    else:
        sections.append("`apply_chat_template` writes them; the default is in `chat_template.jinja`.")
    sections.append("## Provenance")
    if sources:
        of_release = f", named as those of [{release}](https://huggingface.co/{release})" if release else ""
        sections += [
            f"Converted from these files{of_release}. Training after the conversion is not recorded here.",
            table(
                ("file", "bytes", "SHA-256"),
                [(f"`{source['file']}`", f"{source['bytes']:,}", f"`{source['sha256']}`") for source in sources],
            ),
        ]
    else:
        sections.append("The weights were not converted from a release, or it was not recorded.")
    if results:
        rows = [
            (
                result.dataset_name,
                result.dataset_split or "",
                result.metric_name or result.metric_type,
                result.metric_value,
            )
            for result in results
        ]
        sections += ["## Results", table(("dataset", "split", "metric", "value"), rows)]
    sections += [
        "## Licences",
        "The code is Apache-2.0. The weights are under the terms of what they were made from:",
        licences,
    ]
    return as_card(data, sections)


def adapter_card(adapter: PreTrainedModel, repo_id: str, base_model: str | None = None) -> ModelCard:
    """The model card of a PEFT adapter: its base model, how to load both, and the licences of what it was trained on.

    PEFT's own `push_to_hub` pushes the adapter and keeps this card if it is there before, or is given one after:

    ```python
    adapter.push_to_hub("me/my-adapter")
    adapter_card(adapter, "me/my-adapter").push_to_hub("me/my-adapter")
    ```

    Args:
        adapter: [`~peft.PeftModel`] around a [`VideoLlamaForConditionalGeneration`].
        repo_id: Repository of the adapter.
        base_model: Repository of the model that it was trained on, by default where that was loaded from.

    Raises:
        SharingError: If the base model was loaded from a folder, which nobody else has, and no repository is given.
    """
    config, peft_config = adapter.get_base_model().config, adapter.active_peft_config
    base_model = base_model or peft_config.base_model_name_or_path
    if not base_model or os.path.exists(base_model):
        raise SharingError(
            f"{repo_id} was trained on a model that was loaded from {base_model or 'nowhere'}, and nobody could load it: push "
            "that model too, and give its repository as base_model."
        )
    licence_metadata, licences = licence_notices(config)
    data = ModelCardData(
        base_model=base_model,
        base_model_relation="adapter",
        library_name="peft",
        pipeline_tag="video-text-to-text",
        tags=["video-llama", "multimodal", peft_config.peft_type.value.lower()],
        **licence_metadata,
    )
    sections = [
        f"# {repo_id.split('/')[-1]}",
        f"A {peft_config.peft_type.value} adapter for the Video-LLaMA [{base_model}](https://huggingface.co/{base_model}).",
        "## How to use",
        ADAPTER_HOW_TO_USE.format(base_model=base_model, repo_id=repo_id),
        f"`processor` and `model` are used as the card of [{base_model}](https://huggingface.co/{base_model}) shows.",
        "## Licences",
        "The adapter was trained on weights that are under these terms:",
        licences,
    ]
    return as_card(data, sections)


def is_template(card: ModelCard) -> bool:
    """Whether nobody wrote a card: the library's placeholder, which a pushed processor or tokenizer leaves behind."""
    mark = "{model_description}"
    before, after = ModelCard.from_template(card.data, model_description=mark).text.split(mark)
    return card.text.startswith(before) and card.text.endswith(after)


def card_on_hub(api: HfApi, repo_id: str, revision: str | None) -> ModelCard | None:
    """The card that somebody wrote for a repository, if one did."""
    try:
        # Not what a failing network looks like too: a card is never replaced because it could not be read
        path = api.hf_hub_download(repo_id, CARD_NAME, revision=revision)
    except RemoteEntryNotFoundError:
        return None
    card = ModelCard.load(path)
    return None if is_template(card) else card


@contextmanager
def explained_refusals(repo_id: str, token: bool | str | None) -> Iterator[None]:
    """Says what to do where the Hub answers that one may not.

    Raises:
        SharingError: In place of the HTTP errors 401 and 403, which name neither the repository nor the remedy.
    """
    try:
        yield
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 401
        if status == 401:
            is_given = isinstance(token, str) or (token is not False and get_token() is not None)
            given = "the token that was given is not valid" if is_given else "no token was given"
            raise SharingError(
                f"{repo_id} was not pushed, because {given}: run `hf auth login`, set HF_TOKEN, or pass token=…"
            ) from error
        if status == 403:
            raise SharingError(
                f"{repo_id} was not pushed, because the token may not write there: give a repository under your own name "
                "or under that of an organisation of yours, use a token with write access, or pass create_pr=True to "
                "propose a change to a repository of others."
            ) from error
        raise


class VideoLlamaSharingMixin:
    """What [`VideoLlamaForConditionalGeneration`] does beyond the library when it is saved and pushed.

    A model with a loaded adapter is saved and pushed as the library does: only the adapter is.
    """

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        is_main_process: bool = True,
        push_to_hub: bool = False,
        processor: ProcessorMixin | None = None,
        card: ModelCard | None = None,
        **kwargs,
    ) -> None:
        """Saves weights, configuration and code, and a model card where the folder has none.

        Args:
            save_directory: Folder, made if it does not exist.
            is_main_process: Whether this process writes what is not sharded.
            push_to_hub: Whether to push what was saved, as `push_to_hub` does and with its arguments. The repository has the
                name of the folder, unless `repo_id` is given.
            processor: See `push_to_hub`. By default also one that was saved in the folder before.
            card: See `push_to_hub`.
            kwargs: See [`~PreTrainedModel.save_pretrained`].

        Raises:
            SharingError: See `push_to_hub`.
        """
        if self._is_left_to_the_library() or kwargs.get("distributed_checkpoint"):
            super().save_pretrained(save_directory, is_main_process=is_main_process, push_to_hub=push_to_hub, **kwargs)
        elif push_to_hub and self.should_save_on_this_rank(is_main_process):
            repo_id = kwargs.pop("repo_id", None) or Path(save_directory).resolve().name
            self._save_and_push(
                Path(save_directory),
                repo_id,
                processor=processor,
                card=card,
                is_main_process=is_main_process,
                **kwargs,
            )
        else:
            super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
            path = Path(save_directory, CARD_NAME)
            # Whoever uploads the folder passes on the weights, and their licences ask to be named
            if self.should_save_on_this_rank(is_main_process) and not path.exists():
                (card or model_card(self.config)).save(path)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        processor: ProcessorMixin | None = None,
        card: ModelCard | None = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        tags: list[str] | None = None,
    ) -> CommitInfo:
        """Pushes weights, configuration, code, processor and model card to the Hub, in one commit.

        Args:
            repo_id: Repository, made if it does not exist. Without a namespace it is under your own name.
            processor: By default that of `name_or_path`, where the model was loaded from. If there is none, nor one in the
                repository, a warning says so.
            card: Replaces the card of the repository. By default that one is kept, unless it is the library's empty
                template, and a repository without a card gets one by `model_card`.
            commit_message, commit_description, private, token, revision, create_pr, max_shard_size, tags: See
                [`~PreTrainedModel.push_to_hub`].

        Returns:
            The commit: its address as a string, with `oid` and `pr_url`.

        Raises:
            SharingError: If the Hub does not know the token, or does not allow it to write there.
            ValueError: If the Hub does not accept the metadata of the card.
        """
        options = {
            "commit_message": commit_message,
            "commit_description": commit_description,
            "private": private,
            "token": token,
            "revision": revision,
            "create_pr": create_pr,
            "max_shard_size": max_shard_size,
            "tags": tags,
        }
        if self._is_left_to_the_library():
            return super().push_to_hub(
                repo_id, **{name: value for name, value in options.items() if value is not None}
            )
        with TemporaryDirectory() as folder:
            return self._save_and_push(Path(folder), repo_id, processor=processor, card=card, **options)

    def _is_left_to_the_library(self) -> bool:
        return getattr(self, "_hf_peft_config_loaded", False)

    def _save_and_push(
        self,
        folder: Path,
        repo_id: str,
        *,
        processor: ProcessorMixin | None,
        card: ModelCard | None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: list[str] | str | None = None,
        **kwargs,
    ) -> CommitInfo:
        api = HfApi(token=token, library_name="transformers", library_version=__version__)
        # Before anything is written: whether one may push is known in a second, and saving takes minutes
        with explained_refusals(repo_id, token):
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None and not revision.startswith("refs/pr/") and not create_pr:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            kept_card = card_on_hub(api, repo_id, None if create_pr else revision) if card is None else None

        card_path = folder / CARD_NAME
        if card is None and kept_card is None:
            card = ModelCard.load(card_path) if card_path.is_file() else model_card(self.config, repo_id)
        new_tags = [*(self.model_tags or []), *([tags] if isinstance(tags, str) else tags or [])]
        if kept_card is not None and set(new_tags) - set(kept_card.data.tags or []):
            card = kept_card
        if card is not None:
            card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *new_tags]))

        # As the library does, only what is written now is pushed: the folder may hold checkpoints and logs
        times = {path: path.stat().st_mtime_ns for path in folder.glob("*")}
        super().save_pretrained(folder, **kwargs)
        files = {
            path.name: path
            for path in folder.glob("*")
            if path.is_file() and path.name != CARD_NAME and path.stat().st_mtime_ns != times.get(path)
        }
        if card is not None:
            card.save(card_path)
            files[CARD_NAME] = card_path
        with TemporaryDirectory() as processor_folder:
            processor = processor or self._find_processor(api, folder)
            if processor is not None:
                processor.save_pretrained(processor_folder)
            for path in Path(processor_folder).rglob("*"):
                if path.is_file():
                    files[path.relative_to(processor_folder).as_posix()] = path
            with explained_refusals(repo_id, token):
                if processor is None and not api.file_exists(repo_id, PROCESSOR_NAME, revision=revision):
                    logger.warning(
                        f"{repo_id} will have no processor, so that nobody can give the model a video: pass processor=…, "
                        "or push it by its own push_to_hub."
                    )
                # Not upload_folder: it splits what takes more than minutes into several commits
                return api.create_commit(
                    repo_id,
                    [CommitOperationAdd(name, path) for name, path in sorted(files.items())],
                    commit_message=commit_message or "Upload model",
                    commit_description=commit_description,
                    revision=revision,
                    create_pr=create_pr,
                )

    def _find_processor(self, api: HfApi, folder: Path) -> ProcessorMixin | None:
        """The processor in the folder that the model is saved to, or else that of where it was loaded from."""
        # The model's own code was trusted already, and is in the same place
        is_remote = type(self).__module__.startswith("transformers_modules.")
        options = {"trust_remote_code": True} if is_remote else {}
        for source in (str(folder), self.name_or_path):
            if os.path.isdir(source):
                if os.path.isfile(os.path.join(source, PROCESSOR_NAME)):
                    return AutoProcessor.from_pretrained(source, **options)
                continue
            revision = getattr(self.config, "_commit_hash", None)
            try:
                is_there = bool(source) and api.file_exists(source, PROCESSOR_NAME, revision=revision)
            except HFValidationError:  # a folder that is gone
                continue
            if is_there:
                return AutoProcessor.from_pretrained(source, revision=revision, token=api.token, **options)
        return None


__all__ = ["VideoLlamaSharingMixin", "adapter_card", "model_card"]
