# SPDX-License-Identifier: Apache-2.0
"""What the steps that train a part by itself share: a loop that can be ended and goes on, and pictures with what is in them."""

import json
import time
from collections.abc import Callable, Iterable
from math import cos, pi
from pathlib import Path
from random import Random

import numpy as np
import pictures
import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoProcessor
from world import KINDS, NAMES, THINGS, random_scene

from transformers_videollama import VideoLlamaForConditionalGeneration


# Of the rate of AdamW, where updates are scaled to be as large as its
MUON_RATE = 6.0


def hidden_matrices(*modules: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The weights of linear layers in modules."""
    layers = (layer for module in modules for layer in module.modules() if isinstance(layer, torch.nn.Linear))
    return [layer.weight for layer in layers]


def load(folder: str | Path) -> tuple[VideoLlamaForConditionalGeneration, AutoProcessor]:
    return VideoLlamaForConditionalGeneration.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def copy_parts(model, folder: str | Path, names: Iterable[str]) -> None:
    """Takes parts of a model, such as "vision_tower", from another of the same configuration."""
    other = VideoLlamaForConditionalGeneration.from_pretrained(folder)
    for name in names:
        getattr(model.model, name).load_state_dict(getattr(other.model, name).state_dict())


def save(folder: Path, model, processor) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def normalise(frames: np.ndarray | torch.Tensor, processor) -> torch.Tensor:
    """uint8 `(..., height, width, 3)` to what the vision trunks take, `(..., 3, height, width)`."""
    mean, std = (torch.tensor(getattr(processor.image_processor, f"image_{name}")) for name in ("mean", "std"))
    return ((torch.as_tensor(frames).float() / 255 - mean) / std).movedim(-1, -3)


def train(
    parameters: Iterable[torch.nn.Parameter],
    step: Callable[[int], dict[str, torch.Tensor]],
    num_steps: int,
    learning_rate: float,
    log: Path,
    checkpoint: dict[str, torch.nn.Module] | None = None,
    matrices: Iterable[torch.nn.Parameter] = (),
    hold: float = 0.0,
    on_log: Callable[[int], dict] | None = None,
    log_steps: int = 50,
    save_steps: int = 200,
) -> None:
    """
    AdamW, and Muon for what it is good for, with a warm-up and a rate that falls to zero. Ended and begun again, it goes on from its last checkpoint.

    Args:
        parameters: What is trained.
        step: Gives the losses of a batch by name, whose sum is minimised. It is told the number of the step, on which alone
            its data depend.
        num_steps: Of all.
        learning_rate: At its peak.
        log: JSON Lines, a line for every `log_steps` steps. The checkpoint is kept beside it until the end.
        checkpoint: Modules that are kept in the checkpoint.
        matrices: Those of the parameters that Muon trains: weights of hidden layers. On the first steps of the ViT it learned
            twice as fast as AdamW.
        hold: Share of the steps at the peak. After them the rate falls in a line, without them as a cosine.
        on_log: Gives more for a line of the log.
    """
    matrices = list(matrices)
    theirs = set(map(id, matrices))
    others = [parameter for parameter in parameters if id(parameter) not in theirs]
    optimizers = [torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.02)]
    if matrices:
        rate_of_matrices = MUON_RATE * learning_rate
        optimizers.append(
            torch.optim.Muon(matrices, lr=rate_of_matrices, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
        )
    warmup = 0.05 * num_steps
    left = (1 - hold) * num_steps - warmup

    def rate(step: int) -> float:
        fallen = max(0.0, (step - (num_steps - left)) / left)
        return min((step + 1) / warmup, 1 - fallen if hold else 0.5 + 0.5 * cos(pi * fallen))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    state = {f"optimizer {index}": each for index, each in enumerate(optimizers)}
    state |= {f"schedule {index}": each for index, each in enumerate(schedules)} | (checkpoint or {})
    kept, first, seconds = log.with_suffix(".checkpoint"), 1, 0.0
    log.parent.mkdir(parents=True, exist_ok=True)
    if kept.exists():
        saved = torch.load(kept, weights_only=True)
        for name, part in state.items():
            part.load_state_dict(saved[name])
        first, seconds = saved["step"] + 1, saved["seconds"]
        lines = [line for line in log.read_text().splitlines() if json.loads(line)["step"] < first]
        log.write_text("".join(f"{line}\n" for line in lines))
    else:
        log.write_text("")
    trained = others + matrices
    start, sums, count = time.time() - seconds, {}, 0
    for number in range(first, num_steps + 1):
        losses = step(number)
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer, schedule in zip(optimizers, schedules):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        sums = {name: sums.get(name, 0.0) + loss.item() for name, loss in losses.items()}
        count += 1
        if number % log_steps == 0 or number == num_steps:
            row = {"step": number, **{name: round(value / count, 5) for name, value in sums.items()}}
            row |= {"seconds": round(time.time() - start, 1)} | (on_log(number) if on_log else {})
            print(row, flush=True)
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            sums, count = {}, 0
        if number % save_steps == 0:
            part = {name: each.state_dict() for name, each in state.items()}
            torch.save({**part, "step": number, "seconds": time.time() - start}, kept.with_suffix(".part"))
            kept.with_suffix(".part").rename(kept)
    kept.unlink(missing_ok=True)


class Pictures(IterableDataset):
    """
    Frames of the world, and pictures of many icons at once, of everything that two styles have a drawing of.

    Args:
        seed: Of all choices, with the number of the picture.
        num_pictures: How many there are.
        styles: Whose drawings to take.
        kinds: Of scenes.
        icon_share: How many of the pictures are icons; most is learned of many at once.
        max_icons: Icons on a side of the grid that they stand in.
        ease: Over this many pictures, they go from one large thing on a plain ground to anything. Without that, a network from
            nothing learns nothing.
    """

    def __init__(self, seed, num_pictures, styles=pictures.STYLES, kinds=KINDS, icon_share=0.3, max_icons=1, ease=0):
        self.seed, self.num_pictures, self.first = seed, num_pictures, 0
        self.kinds, self.icon_share, self.max_icons, self.ease = kinds, icon_share, max_icons, ease
        # Per style, so that styles with many drawings are not seen more often
        self.by_style = [pictures.drawings(style) for style in styles]
        icons = pictures.all_drawings(styles) if icon_share else {}
        things = {icon for thing in THINGS.values() for icon in thing.icons}
        self.icons = {name: list(drawings.values()) for name, drawings in icons.items() if name not in things}
        # What a patch can show: nothing, a thing of the world, or one of the other icons
        self.concepts = ["", *NAMES, *sorted(self.icons)]
        self.index = {name: index for index, name in enumerate(self.concepts)}

    def draw(self, number: int) -> dict:
        random = Random(f"picture {self.seed} {number}")
        rng = np.random.default_rng(random.getrandbits(64))
        reached = min(1.0, number / self.ease) if self.ease else 1.0
        # Anything up to what is reached, so that the easy is not forgotten
        difficulty = random.uniform(0, reached)
        if random.random() < 1 - (1 - self.icon_share) * reached:
            return self._draw_icons(random, rng, difficulty)
        scene = random_scene(random, self.kinds)
        drawings = {name: [self._drawing(name, random)] for name in scene.names}
        strength = 0.1 + 0.5 * difficulty
        frames, boxes = pictures.draw_frames(scene, [random.random()], SIZE, rng, drawings, strength, difficulty)
        return {"frame": frames[0], "scene": scene, "boxes": boxes[0]}

    def _drawing(self, name: str, random: Random) -> np.ndarray:
        """A drawing of a thing, in any style that has one."""
        return random.choice(random.choice([style[name] for style in self.by_style if style.get(name)]))

    def _draw_icons(self, random: Random, rng: np.random.Generator, difficulty: float) -> dict:
        side = random.randint(1, 1 + round((self.max_icons - 1) * difficulty))
        names, drawings, places = [], [], []
        for cell in range(side * side):
            if names and random.random() < 0.1:
                continue
            is_thing = random.random() < 1 - 0.45 * difficulty
            name = random.choice(NAMES if is_thing else self.concepts[1 + len(NAMES) :])
            # A single one is anywhere, once it has been large enough for a while
            size = random.uniform(0.85 - (0.5 if side == 1 else 0.25) * difficulty, 1 - 0.05 * difficulty) / side
            slack = (1 / side - size) / 2
            x, y = ((index + 0.5) / side + random.uniform(-slack, slack) for index in (cell % side, cell // side))
            names.append(name)
            drawings.append(self._drawing(name, random) if is_thing else random.choice(self.icons[name]))
            places.append((x, y, size))
        strength = 0.1 + 0.5 * difficulty
        frame, boxes = pictures.draw_icons(drawings, places, SIZE, rng, strength, difficulty)
        return {"frame": frame, "scene": None, "boxes": [(name, *box) for name, box in zip(names, boxes)]}

    def __iter__(self):
        yield from map(self.draw, range(self.first, self.num_pictures))


SIZE = 96


def batches(dataset: Pictures, batch_size: int, first_step: int = 1):
    """Batches from a process of their own, endlessly enough."""
    dataset.first = (first_step - 1) * batch_size
    return iter(DataLoader(dataset, batch_size=batch_size, num_workers=1, prefetch_factor=4, collate_fn=list))


def patch_map(boxes: list[tuple], grid: int, index: dict[str, int]) -> np.ndarray:
    """What the middle of each patch shows, `(grid, grid)`, 0 for nothing."""
    centres = (np.arange(grid) + 0.5) / grid
    shown = np.zeros((grid, grid), np.int64)
    for name, x0, y0, x1, y1 in boxes:
        # Corners of a box are mostly empty
        x, y, half_x, half_y = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2
        inside = ((centres[None] - x) / half_x) ** 2 + ((centres[:, None] - y) / half_y) ** 2 <= 1
        shown[inside] = index[name]
    return shown
