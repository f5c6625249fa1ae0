# SPDX-License-Identifier: Apache-2.0
"""Whether parts of the vision branch earn their place: the same training without them.

python ablate.py --model DIR --data SPEC --cache DIR --clips DIR --out results.json [--max-steps N]

- full: as published.
- no frame positions: the frames of a video are a heap without order.
- mean of frames: in place of the video Q-Former; the projection is all that is trained.

Each is trained by the recipe small_vl_stage2, from nothing or, with --init, on from a branch that was trained as published, and asked
about the same clips without sound.
"""

import argparse
import json
from pathlib import Path

import torch
from clips import read_scenes
from common import load
from evaluate import evaluate, show, table
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithCrossAttentions

from transformers_videollama.training.arguments import TrainingArgumentParser
from transformers_videollama.training.run import make_trainer


class MeanOfFrames(nn.Module):
    """Each query token of the frames, averaged over these: takes the place of the video Q-Former."""

    def __init__(self, num_query_tokens: int):
        super().__init__()
        self.num_query_tokens = num_query_tokens

    def forward(self, query_embeds, encoder_hidden_states, encoder_attention_mask=None, **kwargs):
        frames = encoder_hidden_states.unflatten(1, (-1, self.num_query_tokens))
        return BaseModelOutputWithCrossAttentions(last_hidden_state=frames.mean(1))


def without_frame_positions(model) -> None:
    table = model.model.frame_position_embedding
    table.weight.requires_grad_(False).zero_()


def with_mean_of_frames(model) -> None:
    config = model.config
    if config.num_query_tokens != config.num_video_query_tokens:
        raise ValueError("A mean of frames has as many tokens as a frame, which this model does not take of a video.")
    model.model.video_qformer = MeanOfFrames(config.num_query_tokens)
    model.model.video_query_tokens.requires_grad_(False)


VARIANTS = {
    "full": lambda model: None,
    "no frame positions": without_frame_positions,
    "mean of frames": with_mean_of_frames,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="As of videollama train.")
    parser.add_argument("--cache", required=True)
    parser.add_argument("--clips", type=Path, required=True, help="To ask about.")
    parser.add_argument("--limit", type=int, help="Clips at most.")
    parser.add_argument("--max-steps", type=int, default=1200)
    parser.add_argument("--init", help="Folder of a branch checkpoint to begin with.")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    clips = read_scenes(options.clips)[: options.limit]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in options.variants:
        if name in results:
            continue
        arguments = ["--recipe", "small_vl_stage2", "--model", options.model, "--data", options.data]
        arguments += ["--feature_cache", options.cache, "--output_dir", str(options.work / name.replace(" ", "_"))]
        arguments += ["--init_branches", options.init] if options.init else []
        args, _ = TrainingArgumentParser().parse(
            [*arguments, "--max_steps", str(options.max_steps), "--save_strategy", "no"]
        )
        trainer = make_trainer(args)
        with torch.no_grad():
            VARIANTS[name](trainer.model)
        trainer.train()
        _, processor = load(options.model)
        results[name] = table(evaluate(trainer.model.eval(), processor, clips, "video without sound"))
        print(name, *show(results[name]), sep="\n", flush=True)
        options.out.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
