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
"""What a training run is set by: the library's own arguments and ours, on the command line or in a recipe."""

import difflib
import json
import os
import re
from argparse import Action, ArgumentParser, HelpFormatter, Namespace
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from ..exceptions import VideoLlamaError


RECIPES = Path(__file__).parent / "recipes"
ACCELERATE_CONFIGS = Path(__file__).parent / "accelerate"
BRANCH_NAMES = ("vision_branch", "audio_branch")


@dataclass
class VideoLlamaTrainingArguments(TrainingArguments):
    """[`~transformers.TrainingArguments`] and what Video-LLaMA adds. Its fields are the keys of a recipe.

    Other defaults than the library's: `remove_unused_columns` is false, because the collator reads the samples
    themselves; `precision` chooses between `bf16` and `fp16` by the device.

    Raises:
        VideoLlamaError: If a field has no meaning, such as a share of failures above 1.
    """

    model: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of a converted checkpoint, which is trained."}
    )
    data: list[str] = field(
        default_factory=list,
        metadata={
            "help": "What to train on: FORMAT=FILE, with ,media=FOLDER and ,weight=NUMBER where they are needed, such as "
            "webvid=webvid.csv,media=videos,weight=100. Formats: webvid, llava_cc3m, llava_instruct, videochat, "
            "minigpt4_align, messages. Several are mixed by their weights."
        },
    )
    eval_data: list[str] = field(
        default_factory=list, metadata={"help": "What to evaluate on, as with --data. Needs --eval_strategy."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the samples as they are needed, in their order. Needs --max_steps."}
    )
    trainable: list[str] = field(
        default_factory=lambda: ["vision_branch"],
        metadata={
            "help": "What is trained: vision_branch, audio_branch, both, or names of modules and parameters. The rest is "
            "frozen."
        },
    )
    lora_rank: int | None = field(
        default=None,
        metadata={
            "help": "Train LoRA adapters of this rank on LLaMA beside the branches that are trained; written as a PEFT adapter."
        },
    )
    lora_alpha: int | None = field(default=None, metadata={"help": "Of LoRA; twice its rank if not given."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Of LoRA."})
    quantize_bits: Literal[4, 8] | None = field(
        default=None, metadata={"help": "Load LLaMA in 4 or 8 bits by bitsandbytes. Needs --lora_rank."}
    )
    init_branches: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Branch checkpoints to begin with, such as what stage 1 wrote: their folders or files, in turn."
        },
    )
    branch: Literal["auto", "vision_branch", "audio_branch", "both"] = field(
        default="auto",
        metadata={
            "help": "What a clip is in the prompt: tokens of the vision branch, of the audio branch, or of both. auto: what is "
            "trained."
        },
    )
    num_frames: int = field(default=8, metadata={"help": "Frames of a video to look at."})
    sampling: Literal["uniform", "headtail"] = field(
        default="uniform",
        metadata={"help": "Which frames: evenly spaced, or half of them drawn from each half of the video."},
    )
    audio_from: Literal["frames", "sound"] = field(
        default="frames",
        metadata={
            "help": "What the audio branch is given: frames, through ImageBind's vision trunk as in the published training, or "
            "sound."
        },
    )
    load_audio_from_video: bool = field(
        default=False, metadata={"help": "Hear the sound track of videos, where --audio_from is sound."}
    )
    max_text_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of a sample at most: of a caption alone, of a conversation with its placeholders. More are cut from "
            "its end."
        },
    )
    max_conversation_tokens: int | None = field(
        default=None, metadata={"help": "The same for conversations, where it differs."}
    )
    original_labels: bool = field(
        default=False,
        metadata={"help": "Leave the marks of the user's turns in the loss, as the original does."},
    )
    max_failures: float = field(
        default=0.05, metadata={"help": "Share of samples that may be unreadable before the run stops."}
    )
    feature_cache: str | None = field(
        default=None,
        metadata={"help": "Folder that `videollama cache-features` wrote for the same data: its features are read."},
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = field(
        default="auto",
        metadata={
            "help": "Of the computation; what is trained is kept in fp32. auto: bf16 on a GPU that has it, fp16 on an older "
            "one, fp32 without a GPU. --bf16 and --fp16 come before it."
        },
    )
    save_complete_model: bool = field(
        default=False,
        metadata={"help": "Write the whole model at the end, which can be loaded alone, instead of what was trained."},
    )
    predict_with_generate: bool = field(
        default=False,
        metadata={
            "help": "Let the model answer some evaluation samples at every evaluation, and write its answers to "
            "captions.jsonl."
        },
    )
    num_generate_samples: int = field(
        default=8, metadata={"help": "Evaluation samples to answer, from the first on. Needs --predict_with_generate."}
    )
    generation_max_new_tokens: int = field(default=64, metadata={"help": "Tokens of such an answer at most."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay false: the collator reads the samples themselves."}
    )

    def __post_init__(self):
        checks = {
            "trainable": (bool(self.trainable), "at least one name"),
            "lora_rank": (self.lora_rank is None or self.lora_rank >= 1, "1 or more"),
            "quantize_bits": (self.quantize_bits is None or self.lora_rank is not None, "none without lora_rank"),
            "num_frames": (self.num_frames >= 1, "1 or more"),
            "max_text_tokens": (self.max_text_tokens is None or self.max_text_tokens >= 1, "1 or more"),
            "max_conversation_tokens": (
                self.max_conversation_tokens is None or self.max_conversation_tokens >= 1,
                "1 or more",
            ),
            "max_failures": (0 <= self.max_failures <= 1, "a share from 0 to 1"),
            "num_generate_samples": (self.num_generate_samples >= 1, "1 or more"),
            "generation_max_new_tokens": (self.generation_max_new_tokens >= 1, "1 or more"),
            "label_smoothing_factor": (
                self.label_smoothing_factor == 0,
                "0: the library would smooth labels that are not shifted",
            ),
            "push_to_hub": (
                not self.push_to_hub,
                "false: the Trainer would leave out what was trained and write a card without licences; push what was written "
                "when the run has ended",
            ),
            "remove_unused_columns": (not self.remove_unused_columns, "false"),
        }
        for name, (is_fine, expected) in checks.items():
            if not is_fine:
                raise VideoLlamaError(f"{name} is {getattr(self, name)!r}, expected {expected}.")
        if self.streaming and self.max_steps <= 0:
            raise VideoLlamaError("streaming needs max_steps: nobody knows how many samples a stream holds.")
        if self.lora_rank is not None and not set(self.trainable) <= {*BRANCH_NAMES, "both"}:
            raise VideoLlamaError(
                f"trainable is {self.trainable} beside lora_rank, expected vision_branch, audio_branch or both."
            )
        if self.branch == "auto":
            named = [name for name in BRANCH_NAMES if name in self.trainable or "both" in self.trainable]
            self.branch = "both" if len(named) == 2 else named[0] if named else "vision_branch"
        self._choose_precision()
        if self.ddp_find_unused_parameters is None:
            # VideoLlamaTrainer lets every trained parameter take part in every step
            self.ddp_find_unused_parameters = False
        # torch would warn in every epoch
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()
        super().__post_init__()
        if self.streaming and isinstance(self.accelerator_config, AcceleratorConfig):
            # accelerate would cut a batch into its rows, but a row may have any number of pictures and videos
            self.accelerator_config.dispatch_batches = False

    def _choose_precision(self) -> None:
        if self.bf16 or self.fp16:
            name = "bf16" if self.bf16 else "fp16"
            if self.precision not in ("auto", name):
                raise VideoLlamaError(f"Both precision {self.precision} and {name} were given: leave out one of them.")
            self.precision = name
        elif self.precision == "auto":
            is_on_cpu = self.use_cpu or os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
            if is_on_cpu or not torch.cuda.is_available():
                self.precision = "fp32"
            else:
                self.precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        self.bf16, self.fp16 = self.precision == "bf16", self.precision == "fp16"

    @property
    def text_limits(self) -> dict[str, int | None]:
        """Tokens by layout, as [`SampleEncoder`] takes them."""
        conversations = self.max_text_tokens if self.max_conversation_tokens is None else self.max_conversation_tokens
        captions = dict.fromkeys(("caption", "prompted_caption"), self.max_text_tokens)
        return captions | dict.fromkeys(("conversation", "chat"), conversations)

    @property
    def dtype(self) -> torch.dtype:
        """In which frozen parts are loaded, which is that of the computation."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[self.precision]


OWN_FIELDS = [name for name in VideoLlamaTrainingArguments.__annotations__ if name != "remove_unused_columns"]


# ---------------------------------------------------------------------------------------------------------------------
# Recipes
# ---------------------------------------------------------------------------------------------------------------------
class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number; YAML 1.1 takes it for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def recipe_names() -> list[str]:
    """The recipes that come with the package: one for each published stage, and those of the default checkpoint."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(recipe: str | os.PathLike) -> Path:
    """The file of a recipe, given by its name in the package or by its path.

    Raises:
        VideoLlamaError: If there is none.
    """
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or os.sep in str(recipe):
        if not path.is_file():
            raise VideoLlamaError(f"There is no recipe {path}: check the path.")
        return path
    if str(recipe) not in recipe_names():
        raise VideoLlamaError(
            f"There is no recipe {str(recipe)!r}: there are {', '.join(recipe_names())}, and a path to a file of your own "
            "ends in .yaml."
        )
    return RECIPES / f"{recipe}.yaml"


def read_recipe(recipe: str | os.PathLike) -> dict[str, Any]:
    """The fields of a recipe.

    Args:
        recipe: Name of a published stage ("vl_stage1", "vl_stage2", "al_stage1", "al_stage2"), or path of a YAML file.

    Returns:
        Values by the names of [`VideoLlamaTrainingArguments`].

    Raises:
        VideoLlamaError: If there is no such recipe, if it is no YAML, or if it has an unknown field.
    """
    path = find_recipe(recipe)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise VideoLlamaError(f"The recipe {path} is no YAML: {' '.join(str(error).split())}") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise VideoLlamaError(f"The recipe {path} holds a {type(values).__name__}, expected fields and their values.")
    known = [item.name for item in fields(VideoLlamaTrainingArguments) if item.init]
    for name in values:
        if name not in known:
            raise VideoLlamaError(f"The recipe {path} has the unknown field {name!r}{_near(str(name), known)}.")
    return values


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.7)
    return f": is {' or '.join(near)} meant?" if near else ""


# ---------------------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------------------
class _List(Action):
    """`--data A --data B` and `--data A B` are the same, and take the place of the recipe's."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: str | None = None):
        given = namespace.__dict__.setdefault("_lists", set())
        before = getattr(namespace, self.dest) if self.dest in given else []
        given.add(self.dest)
        setattr(namespace, self.dest, [*before, *values])


class _HelpFormatter(HelpFormatter):
    """Says what is the default where there is one that tells something."""

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if action.default in (None, "==SUPPRESS==", [], {}) or "%(default)" in text:
            return text
        return f"{text} (default: %(default)s)"


class TrainingArgumentParser(HfArgumentParser):
    """Command line of `videollama train`: every field of [`VideoLlamaTrainingArguments`], with a recipe as defaults."""

    def __init__(self):
        # Exists before the library adds the options
        self._own_group = self._library_group = None
        super().__init__(
            VideoLlamaTrainingArguments,
            prog="videollama train",
            usage="videollama train --recipe NAME_OR_FILE --model DIR --data SPEC [--data SPEC ...] [--FIELD VALUE ...]",
            description="Trains Video-LLaMA on clips. A recipe holds the settings of a run; whatever is given here comes "
            "before it. Several processes: accelerate launch --config_file $(videollama train --where ddp) -m "
            "transformers_videollama.training --recipe ... with the same options.",
            epilog=f"Recipes: {', '.join(recipe_names())}. One of your own: cp $(videollama train --where vl_stage1) "
            "mine.yaml, then --recipe mine.yaml.",
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        group = self._own_group
        group.add_argument("--recipe", help="Name of a published stage, or path of a YAML file.")
        group.add_argument(
            "--where",
            metavar="NAME",
            help="Only print where the file of a recipe or of a configuration for accelerate (ddp, fsdp2) lies.",
        )

    def add_argument(self, *args: Any, **kwargs: Any) -> Action:
        name = args[0].lstrip("-") if args else ""
        if name in ("h", "help"):
            return super().add_argument(*args, **kwargs)
        if self._own_group is None:
            self._own_group = self.add_argument_group("Video-LLaMA")
            self._library_group = self.add_argument_group("transformers' own, as in TrainingArguments")
        if kwargs.get("nargs") == "+":
            kwargs["action"] = _List
        if name in OWN_FIELDS or name.removeprefix("no_") in OWN_FIELDS:
            return self._own_group.add_argument(*args, **kwargs)
        return self._library_group.add_argument(*args, **kwargs)

    def error(self, message: str) -> None:
        raise VideoLlamaError(f"{message}. See videollama train --help.")

    def parse(self, argv: list[str]) -> tuple[VideoLlamaTrainingArguments | None, dict[str, Any]]:
        """The command line as arguments of a run.

        Args:
            argv: Without the name of the program.

        Returns:
            The arguments, and those that differ from their defaults, as a recipe that makes the same arguments. With
            `--where`, None and what was asked for.

        Raises:
            VideoLlamaError: If an option or a field of the recipe is not known or has a value of the wrong type.
        """
        defaults, _ = self.parse_known_args([])
        first, _ = self.parse_known_args(argv)
        if first.where is not None:
            return None, {"where": first.where}
        if first.recipe is not None:
            values = read_recipe(first.recipe)
            try:
                recipe, _ = self.parse_known_args(_as_argv(values))
            except VideoLlamaError as error:
                message = str(error).removesuffix(" See videollama train --help.")
                raise VideoLlamaError(f"The recipe {find_recipe(first.recipe)} is wrong: {message}") from error
            self.set_defaults(**{name: getattr(recipe, name) for name in values})
        namespace, rest = self.parse_known_args(argv)
        if rest:
            name = rest[0].lstrip("-").split("=")[0].replace("-", "_")
            known = [item.name for item in fields(VideoLlamaTrainingArguments) if item.init] + ["recipe"]
            hint = _near(name, known) if rest[0].startswith("-") else ""
            raise VideoLlamaError(
                f"There is no option {rest[0]!r}{hint or ': see videollama train --help.'}"
                if rest[0].startswith("-")
                else f"{rest[0]!r} belongs to no option: see videollama train --help."
            )
        values, given = {}, {}
        for item in fields(VideoLlamaTrainingArguments):
            if item.init:
                value = values[item.name] = getattr(namespace, item.name)
                if value != getattr(defaults, item.name) and item.name != "resume_from_checkpoint":
                    is_json = isinstance(value, str) and value.startswith("{")
                    given[item.name] = json.loads(value) if is_json else value
        return VideoLlamaTrainingArguments(**values), given


def _as_argv(values: dict[str, Any]) -> list[str]:
    """Fields of a recipe as a command line, which checks their types."""
    argv = []
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, dict):
            argv.append(f"--{name}={json.dumps(value)}")
        elif isinstance(value, list):
            argv += [f"--{name}", *(str(item) for item in value)] if value else []
        else:
            argv.append(f"--{name}={value}")
    return argv
