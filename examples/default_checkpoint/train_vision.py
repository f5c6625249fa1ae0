# SPDX-License-Identifier: Apache-2.0
"""Steps 3 to 5: what sees. Each part is trained by itself and then frozen.

python train_vision.py --part vit --model DIR --out DIR
python train_vision.py --part imagebind --model DIR --out DIR
python train_vision.py --part qformer --model DIR --trunks DIR --out DIR

- vit: names what is on each patch of a picture, a thing of the world or any other icon by its name. Names of all icons, in all
  styles, are what makes it see beyond the drawings of the world's things. With --places, each patch also tells where it is, and
  where the middle of its thing is: without that, the last states had hardly any of it left (of the things' patches, the row of 30 %
  and the column of 18 % could be read out, by chance 12 %), and nothing after them could tell places, directions and numbers.
- qformer: BLIP-2's second stage, pictures into a frozen LLaMA through the image Q-Former and a projection that is thrown away; and
  where things are, how many, and which, from the queries.
- imagebind: ImageBind's vision trunk, from the layers of the ViT: one embedding for the names of what is seen.
"""

import argparse
from math import isqrt
from pathlib import Path
from random import Random

import numpy as np
import torch
from common import Pictures, batches, copy_parts, hidden_matrices, load, normalise, patch_map, save, train
from pretrain_llama import IGNORED, TextEncoder, collate
from questions import dialogue
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize
from world import MAX_COUNT, NAMES

from transformers_videollama.processing_video_llama import IMAGE_PROMPT


# Of a picture, these can be told
IMAGE_KINDS = ("empty", "still", "several", "pair")


def train_vit(model, processor, options) -> None:
    tower = model.model.vision_tower
    config = model.config.vision_config
    grid = config.image_size // config.patch_size
    total = options.steps * options.batch_size
    if options.second_round:
        # From what sees already: mostly the world itself, at its full difficulty
        data = Pictures(options.seed + 3, total, icon_share=0.35, max_icons=3)
    else:
        data = Pictures(options.seed, total, icon_share=0.8, max_icons=3, ease=total * 6 // 10)
    head = nn.Linear(config.hidden_size, len(data.concepts))
    class_head = nn.Linear(config.hidden_size, len(data.concepts))
    place_head = nn.ModuleDict({name: nn.Linear(config.hidden_size, grid) for name in PLACES_OF_PATCH})
    own = torch.stack(torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")).flatten(1)
    weight = torch.ones(len(data.concepts))
    # Most patches show nothing
    weight[0] = 0.2
    state = {"stream": None, "right": 0, "total": 0, "placed": 0}

    def step(number: int) -> dict[str, torch.Tensor]:
        if state["stream"] is None:
            state["stream"] = batches(data, options.batch_size, number)
        samples = next(state["stream"])
        pixels = normalise(np.stack([sample["frame"] for sample in samples]), processor)
        shown = torch.from_numpy(np.stack([patch_map(sample["boxes"], grid, data.index) for sample in samples]))
        states = tower(pixels).last_hidden_state
        logits, targets = head(states[:, 1:]).flatten(0, 1), shown.flatten()
        names = [{data.index[box[0]] for box in sample["boxes"]} or {0} for sample in samples]
        is_one = torch.tensor([len(each) == 1 for each in names])
        one = torch.tensor([min(each) for each in names])
        is_thing = (targets > 0) & (targets <= len(NAMES))
        state["right"] += (logits.argmax(-1) == targets)[is_thing].sum().item()
        state["total"] += is_thing.sum().item()
        losses = {
            "patches": cross_entropy(logits, targets, weight),
            "names": 0.5 * cross_entropy(class_head(states[is_one, 0]), one[is_one]),
        }
        if options.places:
            patches = states[:, 1:].flatten(0, 1)
            told = {name: each(patches) for name, each in place_head.items()}
            middles = torch.from_numpy(np.stack([middle_map(sample["boxes"], grid) for sample in samples])).flatten(
                0, 1
            )
            is_on = targets > 0
            state["placed"] += (told["middle_column"].argmax(-1) == middles[:, 1])[is_thing].sum().item()
            losses["own_place"] = 0.25 * sum(
                cross_entropy(told[name], index.repeat(len(samples))) for name, index in zip(("row", "column"), own)
            )
            losses["middle"] = 0.25 * sum(
                cross_entropy(told[name][is_on], index[is_on])
                for name, index in zip(("middle_row", "middle_column"), middles.unbind(-1))
            )
        return losses

    def on_log(number: int) -> dict:
        total = max(1, state["total"])
        shares = {"things_right": round(state["right"] / total, 4)}
        if options.places:
            shares["middle_columns_right"] = round(state["placed"] / total, 4)
        state["right"] = state["total"] = state["placed"] = 0
        return shares

    train(
        [*tower.parameters(), *head.parameters(), *class_head.parameters(), *place_head.parameters()],
        step,
        options.steps,
        options.learning_rate or 1e-3,
        options.out / "log.jsonl",
        {"tower": tower, "head": head, "class_head": class_head, "place_head": place_head},
        matrices=hidden_matrices(tower.layers),
        on_log=on_log,
    )


def middle_map(boxes: list[tuple], grid: int) -> np.ndarray:
    """For each patch, row and column of the patch that has the middle of the thing on it, `(grid * grid, 2)`; of none, zeros."""
    number = {str(index): index + 1 for index in range(len(boxes))}
    which = patch_map([(str(index), *box[1:]) for index, box in enumerate(boxes)], grid, number).flatten()
    middles = [(0, 0)] + [((y0 + y1) / 2 * grid, (x0 + x1) / 2 * grid) for _, x0, y0, x1, y1 in boxes]
    return np.clip(np.array(middles, np.int64), 0, grid - 1)[which]


PLACES_OF_PATCH = ("row", "column", "middle_row", "middle_column")


class QueryHeads(nn.Module):
    """
    What has to be in the queries of a frame: in all of them where there is something, how many, and which; and in each by itself how many
    there are, and which thing is nearest to its part of the picture, in which row and column. What a single query says outright, the
    video Q-Former finds; what takes a look at all of them at once it did not find (numbers and directions stayed at chance).
    """

    def __init__(self, num_queries: int, width: int, grid: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(num_queries * width, 512)
        self.of_all = nn.ModuleDict(
            {
                "where": nn.Linear(512, grid * grid),
                "count": nn.Linear(512, MAX_COUNT + 1),
                "which": nn.Linear(512, len(NAMES)),
            }
        )
        # 0: there is nothing
        self.of_each = nn.ModuleDict(
            {
                "nearest": nn.Linear(width, len(NAMES) + 1),
                "row": nn.Linear(width, grid + 1),
                "column": nn.Linear(width, grid + 1),
                "number": nn.Linear(width, MAX_COUNT + 1),
            }
        )

    def forward(self, queries: torch.Tensor) -> dict[str, torch.Tensor]:
        normed = self.norm(queries)
        states = nn.functional.gelu(self.mix(normed.flatten(1)))
        told = {name: head(states) for name, head in self.of_all.items()}
        return told | {name: head(normed) for name, head in self.of_each.items()}


def nearest_things(boxes: list[tuple], num_parts: int, grid: int, index: dict[str, int]) -> np.ndarray:
    """For each part of a picture, num_parts in a row, the thing that is nearest to its middle: its index, row and column, from 1."""
    if not boxes:
        return np.zeros((num_parts**2, 3), np.int64)
    middles = np.array([((x0 + x1) / 2, (y0 + y1) / 2) for _, x0, y0, x1, y1 in boxes])
    line = (np.arange(num_parts) + 0.5) / num_parts
    parts = np.stack(np.meshgrid(line, line), -1).reshape(-1, 1, 2)
    nearest = np.square(parts - middles).sum(-1).argmin(-1)
    columns, rows = np.clip((middles * grid).astype(np.int64), 0, grid - 1).T + 1
    return np.stack([np.array([index[box[0]] for box in boxes])[nearest], rows[nearest], columns[nearest]], -1)


def train_qformer(model, processor, options) -> None:
    parts, config = model.model, model.config
    tokenizer, encoder = processor.tokenizer, TextEncoder(processor.tokenizer)
    grid = config.vision_config.image_size // config.vision_config.patch_size
    data = Pictures(
        options.seed + 1,
        options.steps * options.batch_size,
        kinds=("empty", *("still", "several", "pair") * 4, *("moving", "sequence") * 2),
        icon_share=0,
    )
    heads = QueryHeads(config.num_query_tokens, config.qformer_config.hidden_size, grid)
    num_parts = isqrt(config.num_query_tokens)
    projection = nn.Linear(config.qformer_config.hidden_size, config.text_config.hidden_size)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    trained = [*parts.qformer.parameters(), *parts.query_tokens.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    trained += [*heads.parameters(), *projection.parameters()]
    placeholder = processor.image_token * config.num_query_tokens
    state = {"stream": None, "right": {}, "total": {}}

    def count(name: str, right: torch.Tensor) -> None:
        state["right"][name] = state["right"].get(name, 0) + right.sum().item()
        state["total"][name] = state["total"].get(name, 0) + right.numel()

    def step(number: int) -> dict[str, torch.Tensor]:
        if state["stream"] is None:
            state["stream"] = batches(data, options.batch_size, number)
        samples = next(state["stream"])
        random = Random(f"questions {options.seed} {number}")
        pixels = normalise(np.stack([sample["frame"] for sample in samples]), processor)
        with torch.no_grad():
            states = parts.vision_tower(pixels).last_hidden_state
        queries = parts.qformer(parts.query_tokens.weight.expand(len(samples), -1, -1), states).last_hidden_state
        told = heads(queries)
        where = torch.from_numpy(np.stack([patch_map(sample["boxes"], grid, data.index) for sample in samples]))
        nearest = np.stack([nearest_things(sample["boxes"], num_parts, grid, data.index) for sample in samples])
        each = dict(zip(("nearest", "row", "column"), torch.from_numpy(nearest).unbind(-1)))
        number_of = torch.tensor([len(sample["boxes"]) for sample in samples])
        which = torch.zeros(len(samples), len(NAMES))
        for row, sample in enumerate(samples):
            for box in sample["boxes"]:
                which[row, data.index[box[0]] - 1] = 1
        count("count", told["count"].argmax(-1) == number_of)
        one = which.sum(-1) == 1
        count("which", told["which"].argmax(-1)[one] == which.argmax(-1)[one])
        each["number"] = number_of[:, None].expand_as(each["row"])
        for name, target in each.items():
            count(name, told[name].argmax(-1) == target)

        # A frozen LLaMA answers from the queries
        rows, kept = [], []
        for row, sample in enumerate(samples):
            if sample["scene"].kind in IMAGE_KINDS:
                questions = dialogue(sample["scene"], random, 3, is_heard=False, types=IMAGE_TYPES)
                rows.append(encoder.conversation(IMAGE_PROMPT.format(image=placeholder).rstrip(), questions))
                kept.append(row)
        batch = collate(rows, tokenizer.pad_token_id)
        is_placeholder = batch["input_ids"] == processor.image_token_id
        embeds = model.get_input_embeddings()(batch["input_ids"].masked_fill(is_placeholder, 0))
        embeds = embeds.masked_scatter(is_placeholder[..., None], projection(queries[kept]))
        states = parts.language_model(inputs_embeds=embeds, use_cache=False)[0][:, :-1]
        labels = batch["labels"][:, 1:]
        is_labelled = labels != IGNORED
        logits = model.lm_head(states[is_labelled])
        count("tokens", logits.argmax(-1) == labels[is_labelled])
        return {
            "language": cross_entropy(logits, labels[is_labelled]),
            "where": 2 * binary_cross_entropy_with_logits(told["where"], (where > 0).flatten(1).float()),
            "count": 0.3 * cross_entropy(told["count"], number_of),
            "which": 8 * binary_cross_entropy_with_logits(told["which"], which),
            "each": sum(
                share * cross_entropy(told[name].flatten(0, 1), each[name].flatten())
                for name, share in (("nearest", 0.5), ("row", 0.25), ("column", 0.25), ("number", 0.25))
            ),
        }

    def on_log(number: int) -> dict:
        shares = {f"{name}_right": round(state["right"][name] / state["total"][name], 4) for name in state["right"]}
        state["right"], state["total"] = {}, {}
        return shares

    train(
        trained,
        step,
        options.steps,
        options.learning_rate or 1e-3,
        options.out / "log.jsonl",
        {
            "qformer": parts.qformer,
            "queries": parts.query_tokens,
            "heads": heads,
            "projection": projection,
        },
        matrices=hidden_matrices(parts.qformer),
        on_log=on_log,
    )


IMAGE_TYPES = ("object", "object", "count", "place", "place", "side", "is seen", "clip")


def train_imagebind(model, processor, options) -> None:
    tower, vit = model.model.audio_tower, model.model.vision_tower
    trunk = tower.vision_model
    with torch.no_grad():
        # As ImageBind begins with CLIP's trunk
        source, target = vit.embeddings, trunk.embeddings
        target.class_embedding.copy_(source.class_embedding)
        target.position_embedding.copy_(source.position_embedding)
        depth = target.patch_embedding.weight.shape[2]
        target.patch_embedding.weight.copy_(
            source.patch_embedding.weight[:, :, None].expand(-1, -1, depth, -1, -1) / depth
        )
        for layer, other in zip(trunk.layers, vit.layers):
            layer.load_state_dict(other.state_dict(), strict=False)
    data = Pictures(
        options.seed + 2,
        options.steps * options.batch_size,
        kinds=("empty", *("still", "moving", "several", "sequence") * 3),
        icon_share=0.25,
    )
    prototypes = nn.Embedding(len(data.concepts), model.config.audio_config.output_dim)
    scale = nn.Parameter(torch.tensor(2.3))
    parameters = [*trunk.parameters(), *tower.vision_projection.parameters(), *prototypes.parameters(), scale]
    state = {"stream": None, "right": 0, "total": 0}

    def step(number: int) -> dict[str, torch.Tensor]:
        if state["stream"] is None:
            state["stream"] = batches(data, options.batch_size, number)
        samples = next(state["stream"])
        pixels = normalise(np.stack([sample["frame"] for sample in samples]), processor)
        targets = torch.tensor([data.index[sample["boxes"][0][0]] if sample["boxes"] else 0 for sample in samples])
        embeds = tower.project_image(trunk(pixels).pooler_output)
        logits = embeds @ normalize(prototypes.weight, dim=-1).T * scale.exp().clamp(max=30)
        is_thing = targets <= len(NAMES)
        state["right"] += (logits.argmax(-1) == targets)[is_thing].sum().item()
        state["total"] += is_thing.sum().item()
        return {"names": cross_entropy(logits, targets)}

    def on_log(number: int) -> dict:
        share = state["right"] / max(1, state["total"])
        state["right"] = state["total"] = 0
        return {"things_right": round(share, 4)}

    train(
        parameters,
        step,
        options.steps,
        options.learning_rate or 5e-4,
        options.out / "log.jsonl",
        {
            "trunk": trunk,
            "projection": tower.vision_projection,
            "prototypes": prototypes,
            "scale": nn.ParameterList([scale]),
        },
        matrices=hidden_matrices(trunk.layers),
        on_log=on_log,
    )


PARTS = {"vit": train_vit, "qformer": train_qformer, "imagebind": train_imagebind}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--trunks", help="Folder of another model, to take what sees and hears from.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--second-round", action="store_true", help="Of the ViT: the world itself, at full difficulty."
    )
    parser.add_argument("--places", action="store_true", help="Of the ViT: patches tell where they are, too.")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, help="At its peak; 1e-3, of imagebind 5e-4.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    model, processor = load(options.model)
    if options.trunks:
        copy_parts(model, options.trunks, ("vision_tower", "audio_tower"))
    PARTS[options.part](model, processor, options)
    save(options.out, model, processor)


if __name__ == "__main__":
    main()
