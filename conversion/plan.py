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
from transformers_videollama.conversion.checkpoints import (
    Checkpoint,
    SummedCheckpoint,
    describe_files,
    name_of,
    read_json,
)
from transformers_videollama.conversion.releases import Sources, check_fit
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


MAX_PROBLEMS = 40  # told in one error
PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
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
            if tensor.dtype not in PRECISIONS:
                self.problems.append(f"precision   {name} is {tensor.dtype} (from {self.origins[name]})")
        if self.problems:
            problems = [text if text.isprintable() else repr(text) for text in sorted(self.problems)]
            more = [f"… and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
            raise CheckpointError(
                "The sources do not make a whole model. Nothing was written.\n  "
                + "\n  ".join(problems[:MAX_PROBLEMS] + more)
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


def check_fields(fields: dict, known: dict, path: Path, prefix: str = "") -> None:
    """Refuses fields that no configuration has: a misspelt one would be ignored."""
    for name, value in fields.items():
        if name not in known:
            raise CheckpointError(f"{path} sets {prefix}{name}, which no VideoLlamaConfig has: correct its name.")
        if isinstance(value, dict) and isinstance(known[name], dict) and name != "text_config":
            check_fields(value, known[name], path, f"{prefix}{name}.")


def read_config(llama: Path, config: Path | None, with_audio: bool) -> VideoLlamaConfig:
    """The released sizes, with those of `config` in their place; the sizes of LLaMA are always those of its folder.

    Raises:
        CheckpointError: If there is no LLaMA in the folder, or if the sizes are no valid configuration.
    """
    if not (llama / CONFIG_NAME).is_file():
        raise CheckpointError(f"{llama} has no {CONFIG_NAME}: give the folder of a LLaMA in Hugging Face format.")
    text_config = read_json(llama / CONFIG_NAME)
    if (model_type := text_config.get("model_type", "llama")) != "llama":
        raise CheckpointError(f"{llama} holds a {model_type!r} model, expected a LLaMA.")
    # Nothing but sizes: a stranger's config.json may name code to load
    known = LlamaConfig().to_dict().keys() | {"rope_theta", "rope_scaling", "rope_parameters"}
    unwanted = {"_name_or_path", "architectures", "auto_map", "dtype", "quantization_config", "transformers_version"}
    text_config = {key: value for key, value in text_config.items() if key in known - unwanted}
    try:
        LlamaConfig(**text_config)
    except Exception as error:
        raise CheckpointError(f"{llama / CONFIG_NAME} is no valid configuration of a LLaMA: {error}") from error
    fields = read_json(config) if config is not None else {}
    check_fields(fields, VideoLlamaConfig().to_dict(), config)
    if with_audio and fields.get("audio_config", {}) is None:
        raise CheckpointError(
            f"{config} leaves out the audio branch, but files of one were given: correct one of the two."
        )
    fields["text_config"] = text_config
    if not with_audio:
        fields["audio_config"] = None
    try:
        return VideoLlamaConfig(**fields)
    except Exception as error:
        raise CheckpointError(f"{config or llama / CONFIG_NAME} is no valid configuration: {error}") from error


def prompt_family(sources: Sources) -> str:
    """That of the release; for a branch that is in no release, that of the language model that its files are named after.

    Raises:
        CheckpointError: If neither tells: an answer to the wrong prompt is garbage.
    """
    if sources.release is not None:
        return sources.release.language_model.prompt_family
    names = [name_of(path).lower() for path in (sources.vision_checkpoint, sources.llama_delta or sources.llama)]
    if any(re.search(r"llama[-_]?2", name) for name in names):
        return "llama_2"
    if any(re.search("vicuna|billa|ziya", name) for name in names):
        return "vicuna"
    raise CheckpointError(
        f"The names {names[0]} and {names[1]} do not tell which prompts the model was trained with: say it by --prompt-family "
        f"({' or '.join(STOP)})."
    )


def open_llama(sources: Sources) -> Checkpoint:
    """The LLaMA of a folder, or of a base and of a difference to it."""
    if sources.llama_delta is None:
        return Checkpoint(sources.llama)
    checkpoint = SummedCheckpoint(sources.llama_delta, base=sources.llama, **sources.delta_rules)
    name = "model.embed_tokens.weight"
    rows = [each.tensors[name].shape[0] for each in (checkpoint, checkpoint.base) if name in each.tensors]
    if not sources.delta_rules and len(rows) == 2 and rows[0] > rows[1] + 1:
        raise CheckpointError(
            f"{sources.llama_delta} has {rows[0]} tokens and {sources.llama} {rows[1]}; how such a difference is added depends on "
            "the model: name the folder as it was released, or the release by --release."
        )
    return checkpoint


def read_audio_scale(checkpoint: Checkpoint, problems: list[str]) -> float | None:
    """ImageBind's factor for sounds, which is a number of the configuration."""
    if AUDIO_SCALE not in checkpoint.tensors:
        problems.append(f"missing     {checkpoint.name}: {AUDIO_SCALE}")
    elif checkpoint.tensors[AUDIO_SCALE].numel() != 1:
        problems.append(
            f"shape       {checkpoint.name}: {AUDIO_SCALE} is {tuple(checkpoint.tensors[AUDIO_SCALE].shape)}, expected ()"
        )
    else:
        scale = checkpoint.read([AUDIO_SCALE])[AUDIO_SCALE].double().exp().item()
        if 0 < scale < 1000:
            return round(scale, 4)
        problems.append(f"value       {checkpoint.name}: {AUDIO_SCALE} makes a factor of {scale}, expected about 20")
    return None


@dataclass
class Plan:
    """A conversion before anything is written: every tensor has its place."""

    sources: Sources
    converted: Converted
    processor: VideoLlamaProcessor
    family: str
    model: VideoLlamaForConditionalGeneration

    @cached_property
    def files(self) -> list[dict]:
        """The files of all sources: `file` (name), `sha256`, `bytes`."""
        paths = {name: path for source in self.converted.sources for name, path in source.checkpoint.paths.items()}
        return describe_files(paths, "Checksums of the sources")

    def __str__(self) -> str:
        release, llama = self.sources.release, name_of(self.sources.llama)
        if self.sources.llama_delta is not None:
            llama = f"{llama} with {name_of(self.sources.llama_delta)}"
        return f"release {release.name if release else 'unknown'}, LLaMA {llama}, prompts of {self.family}"


def plan(sources: Sources, config: Path | None = None, family: str | None = None) -> Plan:
    """Reads names and shapes of all sources, and finds the place of each tensor.

    Args:
        sources: Files and folders.
        config: JSON file with a partial [`VideoLlamaConfig`], for sizes that differ from the released ones.
        family: "vicuna" or "llama_2"; by default told from the release, or from the names of the VL file and the LLaMA folder.

    Raises:
        CheckpointError: If a source is missing or can't be read, or if they don't make a whole model.
    """
    if sources.audio_checkpoint is not None and sources.imagebind is None:
        raise CheckpointError(f"{sources.audio_checkpoint} needs ImageBind: give imagebind_huge.pth by --imagebind.")
    if sources.imagebind is not None and sources.audio_checkpoint is None:
        raise CheckpointError(
            f"{sources.imagebind} is for the audio branch: give its AL file by --audio-checkpoint too."
        )
    # What was released as a difference has the sizes and the tokenizer of the whole
    whole = sources.llama_delta or sources.llama
    model_config = read_config(whole, config, with_audio=sources.audio_checkpoint is not None)
    check_fit(sources, model_config.text_config if config is None else None)
    family = family or prompt_family(sources)
    if family not in STOP:
        raise CheckpointError(f"The prompt family is {family!r}, expected one of {', '.join(STOP)}.")

    vision_config = model_config.vision_config
    grid_size = vision_config.image_size // vision_config.patch_size
    converted = Converted()
    eva = Checkpoint(sources.eva_vit)
    converted.add(Source(eva, eva_vit_rules(eva.tensors, vision_config.num_hidden_layers, grid_size)))
    converted.add(Source(Checkpoint(sources.blip2), BLIP2_RULES))
    converted.add(Source(Checkpoint(sources.vision_checkpoint), VISION_RULES))
    converted.add(Source(open_llama(sources), LLAMA_RULES))
    if sources.audio_checkpoint is not None:
        imagebind = Checkpoint(sources.imagebind)
        if (scale := read_audio_scale(imagebind, converted.problems)) is not None:
            model_config.audio_config.audio_logit_scale = scale
        with_vision = model_config.audio_config.vision_config is not None
        converted.add(Source(imagebind, imagebind_rules(with_vision)))
        converted.add(Source(Checkpoint(sources.audio_checkpoint), AUDIO_RULES))

    has_own = sources.llama_delta is not None and has_tokenizer(sources.llama_delta)
    folder = sources.tokenizer or (sources.llama_delta if has_own else sources.llama)
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
    try:
        with torch.device("meta"):
            model = VideoLlamaForConditionalGeneration(model_config)
    except Exception as error:
        raise CheckpointError(f"{config or whole / CONFIG_NAME} gives sizes that make no model: {error}") from error
    converted.check(model)
    model.config.architectures = [type(model).__name__]
    return Plan(sources, converted, processor, family, model)
