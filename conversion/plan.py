# SPDX-License-Identifier: Apache-2.0
"""Finds the place of every tensor of every source, before any value is read."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig
from transformers.utils import CONFIG_NAME

from transformers_videollama import (
    VideoLlamaConfig,
    VideoLlamaFeatureExtractor,
    VideoLlamaForConditionalGeneration,
    VideoLlamaImageProcessor,
    VideoLlamaProcessor,
    VideoLlamaVideoProcessor,
)
from transformers_videollama.conversion.checkpoints import Checkpoint, SummedCheckpoint, describe_files, read_json
from transformers_videollama.conversion.releases import Release, check_fit, release_named
from transformers_videollama.conversion.rules import (
    AUDIO_RULES,
    AUDIO_SCALE,
    BLIP2_RULES,
    LLAMA_RULES,
    VISION_RULES,
    Rule,
    eva_vit_rules,
    imagebind_rules,
)
from transformers_videollama.conversion.tokenizer import has_tokenizer, read_tokenizer
from transformers_videollama.exceptions import CheckpointError
from transformers_videollama.processing_video_llama import load_chat_templates


# What the released chat of the original passes to `generate`
SAMPLING = {"do_sample": True, "top_p": 0.9, "temperature": 1.0, "max_new_tokens": 300}
STOP = {
    "vicuna": {"stop_strings": ["###"], "stop_token_sequences": [[835], [2277, 29937]]},
    "llama_2": {},
}


PLACEHOLDERS = ("image", "video", "audio")  # tokens that the processor adds


@dataclass
class Source:
    """One of the released files or folders, and the rules for what is in it."""

    checkpoint: Checkpoint
    rules: list[Rule]

    @property
    def name(self) -> str:
        return self.checkpoint.name


@dataclass(frozen=True)
class Origin:
    """Where a tensor comes from: which of the parts that a rule makes of which tensor of which source."""

    source: Source
    name: str
    rule: Rule
    part: int

    def __str__(self) -> str:
        return f"{self.source.name}: {self.name}"


@dataclass
class Converted:
    """Tensors by their names here, and what was left out.

    Attributes:
        tensors: On the meta device: shapes and precisions. `read` gives values.
        origins: Where each comes from.
        ignored: What is not used, and why.
        problems: What does not fit.
    """

    sources: list[Source] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, source: Source) -> None:
        """Applies a source's rules to all of its tensors."""
        self.sources.append(source)
        for name, tensor in source.checkpoint.tensors.items():
            origin = f"{source.name}: {name}"
            matches = ((rule, match) for rule in source.rules if (match := re.fullmatch(rule.pattern, name)))
            rule, match = next(matches, (None, None))
            if rule is None:
                self.problems.append(f"left over   {origin} {tuple(tensor.shape)}")
                continue
            if not rule.targets:
                self.ignored[origin] = rule.reason
                continue
            try:
                parts = rule.split(tensor)
            except (RuntimeError, ValueError, IndexError):
                parts = ()
            if len(parts) != len(rule.targets):
                self.problems.append(f"shape       {origin} is {tuple(tensor.shape)}, and makes no {rule.targets[0]}")
                continue
            for part, (target, value) in enumerate(zip(map(match.expand, rule.targets), parts)):
                if target in self.tensors:
                    self.problems.append(f"given twice {target}, by {self.origins[target]} and by {origin}")
                self.tensors[target], self.origins[target] = value, Origin(source, name, rule, part)

    def check(self, model: nn.Module) -> None:
        """Compares names and shapes with those of the model.

        Raises:
            CheckpointError: With the name of every tensor that is missing, left over or of another shape.
        """
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for name, shape in expected.items():
            if name not in self.tensors:
                self.problems.append(f"missing     {name} {shape}")
            elif (given := tuple(self.tensors[name].shape)) != shape:
                self.problems.append(f"shape       {name} is {given}, expected {shape} (from {self.origins[name]})")
        for name in self.tensors.keys() - expected.keys():
            self.problems.append(f"left over   {self.origins[name]}: the model has no {name}")
        for name, tensor in self.tensors.items():
            if not tensor.is_floating_point():
                self.problems.append(f"precision   {name} is {tensor.dtype} (from {self.origins[name]})")
        if self.problems:
            raise CheckpointError(
                "The sources do not make a whole model. Nothing was written.\n  "
                + "\n  ".join(sorted(self.problems))
                + "\nCheck that they belong to one release; give sizes that differ from the released ones by --config."
            )

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Values of some tensors. They are mapped from the sources where nothing has to be computed."""
        names = list(names)
        values = {}
        for source in self.sources:
            origins = {name: self.origins[name] for name in names if self.origins[name].source is source}
            if not origins:
                continue
            tensors = source.checkpoint.read({origin.name for origin in origins.values()})
            for name, origin in origins.items():
                values[name] = origin.rule.split(tensors[origin.name])[origin.part].contiguous()
        return {name: values[name] for name in names}


def read_config(llama: Path, config: Path | None, with_audio: bool) -> VideoLlamaConfig:
    """The released sizes, with those of `config` in their place; the sizes of LLaMA are those of its folder.

    Raises:
        CheckpointError: If there is no LLaMA in the folder, or if the sizes are no valid configuration.
    """
    if not (llama / CONFIG_NAME).is_file():
        raise CheckpointError(f"{llama} has no {CONFIG_NAME}: give the folder of a LLaMA in Hugging Face format.")
    fields = read_json(config) if config is not None else {}
    text_config = read_json(llama / CONFIG_NAME)
    if (model_type := text_config.get("model_type", "llama")) != "llama":
        raise CheckpointError(f"{llama} holds a {model_type!r} model, expected a LLaMA.")
    # Nothing but sizes: a stranger's config.json may name code to load
    known = LlamaConfig().to_dict().keys() | {"rope_theta", "rope_scaling", "rope_parameters"}
    unwanted = {"_name_or_path", "architectures", "auto_map", "dtype", "quantization_config", "transformers_version"}
    fields["text_config"] = {key: value for key, value in text_config.items() if key in known - unwanted}
    if not with_audio:
        fields["audio_config"] = None
    try:
        return VideoLlamaConfig(**fields)
    except Exception as error:
        raise CheckpointError(f"{config or llama / CONFIG_NAME} is no valid configuration: {error}") from error


def prompt_family(vision_checkpoint: Path, llama: Path) -> str:
    """That of the release; of a branch that is in no release, LLaMA-2-chat's if the files are named after it."""
    release = release_named(vision_checkpoint.name)
    if release is not None:
        return release.language_model.prompt_family
    is_llama_2 = any("llama-2" in path.name.lower().replace("_", "-") for path in (vision_checkpoint, llama))
    return "llama_2" if is_llama_2 else "vicuna"


def open_llama(llama: Path, delta: Path | None, vision_checkpoint: Path) -> Checkpoint:
    """The LLaMA of a folder, or of a base and of a difference to it."""
    if delta is None:
        return Checkpoint(llama)
    release = release_named(vision_checkpoint.name)
    if release is not None and release.language_model.delta is None:
        raise CheckpointError(
            f"{release.language_model.name} was not released as a difference: leave out --llama-delta."
        )
    kinds = release.language_model.delta if release is not None else {}
    patterns = {kind: kinds[kind] for kind in ("added", "subtracted") if kind in kinds}
    return SummedCheckpoint(delta, base=llama, **patterns)


@dataclass
class Plan:
    """A conversion before anything is written: every tensor has its place."""

    converted: Converted
    processor: VideoLlamaProcessor
    family: str
    release: Release | None
    model: VideoLlamaForConditionalGeneration

    @cached_property
    def files(self) -> list[dict]:
        """The files of all sources: `file` (name), `sha256`, `bytes`."""
        files = [file.path for source in self.converted.sources for file in source.checkpoint.files]
        return describe_files(files, "Checksums of the sources")


def plan(
    vision_checkpoint: Path,
    eva_vit: Path,
    blip2: Path,
    llama: Path,
    audio_checkpoint: Path | None = None,
    imagebind: Path | None = None,
    llama_delta: Path | None = None,
    tokenizer: Path | None = None,
    config: Path | None = None,
    family: str | None = None,
) -> Plan:
    """Reads names and shapes of all sources, and finds the place of each tensor. For the arguments see `convert`.

    Raises:
        CheckpointError: If a source is missing or can't be read, or if they don't make a whole model.
    """
    if audio_checkpoint is not None and imagebind is None:
        raise CheckpointError(f"{audio_checkpoint} needs ImageBind: give imagebind_huge.pth by --imagebind.")
    if imagebind is not None and audio_checkpoint is None:
        raise CheckpointError(f"{imagebind} is for the audio branch: give its AL file by --audio-checkpoint too.")
    family = family or prompt_family(vision_checkpoint, llama)
    if family not in STOP:
        raise CheckpointError(f"The prompt family is {family!r}, expected one of {', '.join(STOP)}.")
    # What was released as a difference has the sizes and the tokenizer of the whole
    whole = llama_delta or llama
    model_config = read_config(whole, config, with_audio=audio_checkpoint is not None)
    if config is None:
        check_fit(vision_checkpoint, audio_checkpoint, whole, model_config.text_config)

    vision_config = model_config.vision_config
    grid_size = vision_config.image_size // vision_config.patch_size
    converted = Converted()
    eva = Checkpoint(eva_vit)
    converted.add(Source(eva, eva_vit_rules(eva.tensors, vision_config.num_hidden_layers, grid_size)))
    converted.add(Source(Checkpoint(blip2), BLIP2_RULES))
    converted.add(Source(Checkpoint(vision_checkpoint), VISION_RULES))
    converted.add(Source(open_llama(llama, llama_delta, vision_checkpoint), LLAMA_RULES))
    if audio_checkpoint is not None:
        checkpoint = Checkpoint(imagebind)
        if AUDIO_SCALE in checkpoint.tensors:
            scale = checkpoint.read([AUDIO_SCALE])[AUDIO_SCALE].double().exp().item()
            model_config.audio_config.audio_logit_scale = round(scale, 4)
        else:
            converted.problems.append(f"missing     {imagebind.name}: {AUDIO_SCALE}")
        with_vision = model_config.audio_config.vision_config is not None
        converted.add(Source(checkpoint, imagebind_rules(with_vision)))
        converted.add(Source(Checkpoint(audio_checkpoint), AUDIO_RULES))

    folder = tokenizer or (llama_delta if llama_delta is not None and has_tokenizer(llama_delta) else llama)
    size = {"height": vision_config.image_size, "width": vision_config.image_size}
    processor = VideoLlamaProcessor(
        image_processor=VideoLlamaImageProcessor(size=size),
        video_processor=VideoLlamaVideoProcessor(size=size),
        feature_extractor=VideoLlamaFeatureExtractor(),
        tokenizer=read_tokenizer(folder, model_config.text_config.max_position_embeddings),
        num_video_query_tokens=model_config.num_video_query_tokens,
        num_audio_query_tokens=model_config.num_audio_query_tokens,
        chat_template=load_chat_templates(family),
    )
    num_tokens = len(processor.tokenizer) - len(PLACEHOLDERS)
    if num_tokens > model_config.text_config.vocab_size:
        raise CheckpointError(
            f"The tokenizer of {folder} has {num_tokens} tokens, but the vocabulary of {whole} has "
            f"{model_config.text_config.vocab_size}: give that of the LLaMA by --tokenizer."
        )
    for modality in PLACEHOLDERS:
        setattr(model_config, f"{modality}_token_id", getattr(processor, f"{modality}_token_id"))
    with torch.device("meta"):
        model = VideoLlamaForConditionalGeneration(model_config)
    converted.check(model)
    return Plan(converted, processor, family, release_named(vision_checkpoint.name), model)
