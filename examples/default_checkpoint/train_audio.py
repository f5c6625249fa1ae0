# SPDX-License-Identifier: Apache-2.0
"""Step 6: ImageBind's audio trunk learns to put a sound where the frozen vision trunk puts pictures of what makes it.

python train_audio.py --model DIR --out DIR

Every sound is synthesised anew; none is a recording. Silence belongs to pictures of nothing.
"""

import argparse
import random as python_random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pictures
import sounds
import torch
from common import SIZE, hidden_matrices, load, normalise, save, train
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from world import NAMES, SOUNDS, Scene, random_scene

from transformers_videollama import VideoLlamaFeatureExtractor


WINDOW = 2.0
NOTHING = len(SOUNDS)


# ---------------------------------------------------------------------------------------------------------------------
# Sounds
# ---------------------------------------------------------------------------------------------------------------------
def _worsen(waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As microphones, rooms and codecs do: another balance of high and low, noise, another loudness."""
    spectrum = np.fft.rfft(waveform)
    octaves = np.log2(np.maximum(np.fft.rfftfreq(len(waveform), 1 / sounds.RATE), 30) / 1000)
    gain = rng.normal(0, 2.0) * octaves + rng.normal(0, 3.0) * np.sin(
        rng.uniform(0.3, 1.2) * octaves + rng.uniform(0, 6)
    )
    if rng.random() < 0.25:
        gain -= 12 * np.maximum(0, octaves - rng.uniform(0.8, 3))
    if rng.random() < 0.25:
        gain -= 12 * np.maximum(0, -octaves - rng.uniform(0.5, 3))
    waveform = np.fft.irfft(spectrum * 10 ** (gain / 20), len(waveform))
    waveform *= rng.uniform(0.15, 0.9) / max(1e-4, np.abs(waveform).max())
    if rng.random() < 0.5:
        noise = sounds.background(rng, WINDOW)
        level = np.sqrt(np.mean(waveform**2)) * 10 ** (-rng.uniform(10, 35) / 20)
        waveform = waveform + noise * level / max(1e-5, np.sqrt(np.mean(noise**2)))
    return waveform.astype(np.float32)


def draw_window(seed: int, number: int) -> tuple[np.ndarray, int]:
    """Two seconds of sound, and what it is of: an index of `SOUNDS`, or `NOTHING`."""
    rng = np.random.default_rng((seed, number))
    chance = rng.random()
    if chance < 0.07:
        return sounds.background(rng, WINDOW), NOTHING
    if chance < 0.2:
        # Across the change from one sound to another: of the one that takes more of it
        first, second = rng.choice(len(SOUNDS), 2, replace=False)
        track = sounds.soundtrack((SOUNDS[first], SOUNDS[second]), rng, 2 * WINDOW)
        start = rng.uniform(0, WINDOW)
        begin = int(start * sounds.RATE)
        return track[begin : begin + int(WINDOW * sounds.RATE)], int(first if start < WINDOW / 2 else second)
    index = int(rng.integers(len(SOUNDS)))
    return _worsen(sounds.synthesise(SOUNDS[index], rng, WINDOW), rng), index


def _windows(seed: int, first: int, last: int) -> tuple[np.ndarray, list[int]]:
    torch.set_num_threads(1)
    extractor = VideoLlamaFeatureExtractor(num_segments=1)
    features, labels = [], []
    for number in range(first, last):
        waveform, label = draw_window(seed, number)
        mel = extractor([waveform], sampling_rate=sounds.RATE, return_tensors="np")["input_features"]
        features.append(np.asarray(mel, np.float16)[0, 0])
        labels.append(label)
    return np.stack(features), labels


def sound_bank(folder: Path, num_windows: int, seed: int) -> tuple[np.ndarray, torch.Tensor]:
    """Log-mel windows `(num_windows, num_mel_bins, num_mel_frames)` and what they are of; kept on disk."""
    file = folder / f"sounds-{seed}-{num_windows}.npy"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        bounds = list(range(0, num_windows, 500)) + [num_windows]
        with ProcessPoolExecutor(2) as pool:
            parts = list(pool.map(_windows, [seed] * (len(bounds) - 1), bounds[:-1], bounds[1:]))
        np.save(file.with_suffix(".labels.npy"), np.concatenate([labels for _, labels in parts]))
        np.save(file.with_suffix(".part.npy"), np.concatenate([features for features, _ in parts]))
        file.with_suffix(".part.npy").rename(file)
    labels = torch.from_numpy(np.load(file.with_suffix(".labels.npy")))
    return np.load(file, mmap_mode="r"), labels


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------
@torch.no_grad()
def image_bank(model, processor, per_thing: int, seed: int) -> torch.Tensor:
    """Embeddings of pictures of what sounds, and of nothing: `(len(SOUNDS) + 1, per_thing, output_dim)`."""
    tower = model.model.audio_tower
    styles = [pictures.drawings(style) for style in pictures.STYLES]
    random, rows = python_random.Random(f"image bank {seed}"), []
    for name in (*SOUNDS, None):
        rng, frames = np.random.default_rng(random.getrandbits(64)), []
        while len(frames) < per_thing:
            kind = random.choice(("still", "moving", "several", "sequence")) if name else "empty"
            if name and kind == "several" and pictures.THINGS[name].plural is None:
                kind = "still"
            scene = random_scene(random, [kind])
            if name:
                other = random.choice([each for each in NAMES if each != name])
                names = (name, other) if kind == "sequence" else (name,)
                scene = Scene(kind, names, scene.place, scene.direction, scene.count)
            drawings = {
                each: random.choice([style[each] for style in styles if style.get(each)]) for each in scene.names
            }
            time = random.random() * (0.4 if kind == "sequence" else 1)
            # As in clips
            strength, level = rng.uniform(0, 0.4), rng.uniform(0, 1)
            frames.append(pictures.draw_frames(scene, [time], SIZE, rng, drawings, strength, level)[0][0])
        rows.append(tower.project_image(tower.vision_model(normalise(np.stack(frames), processor)).pooler_output))
    return torch.stack(rows)


def train_audio(model, processor, options) -> None:
    tower = model.model.audio_tower
    features, labels = sound_bank(options.bank, options.num_sounds, options.seed)
    tested, test_labels = sound_bank(options.bank, 1000, options.seed + 1)
    images = image_bank(model, processor, 64, options.seed)
    centres = normalize(images.mean(1), dim=-1)
    scale = nn.Parameter(torch.tensor(2.3))

    def embed(mels: torch.Tensor) -> torch.Tensor:
        return normalize(tower.audio_projection(tower.audio_model(mels).pooler_output), dim=-1)

    def step(number: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((options.seed, 7, number))
        rows = np.sort(rng.choice(len(features), options.batch_size, replace=False))
        mels, names = torch.from_numpy(features[rows].astype(np.float32)), labels[rows]
        mels = _augment(mels, rng)
        sounds_at = embed(mels)
        images_at = images[names, torch.from_numpy(rng.integers(images.shape[1], size=len(rows)))]
        logits = sounds_at @ images_at.T * scale.exp().clamp(max=50)
        # Another sound or picture of the same thing is no wrong one
        positive = (names[:, None] == names).float()
        losses = [
            -((positive * each.log_softmax(-1)).sum(-1) / positive.sum(-1)).mean() for each in (logits, logits.T)
        ]
        # A single picture is easily mistaken; the middle of many is not
        return {
            "contrastive": sum(losses) / 2,
            "names": cross_entropy(sounds_at @ centres.T * scale.exp().clamp(max=50), names),
            "distance": 2 * (1 - (sounds_at * centres[names]).sum(-1)).mean(),
        }

    @torch.no_grad()
    def on_log(number: int) -> dict:
        if number % 200:
            return {}
        tower.audio_model.eval()
        guesses = torch.cat(
            [
                (embed(torch.from_numpy(tested[i : i + 100].astype(np.float32))) @ centres.T).argmax(-1)
                for i in range(0, 1000, 100)
            ]
        )
        tower.audio_model.train()
        return {"new_sounds_right": round((guesses == test_labels).float().mean().item(), 4)}

    trained = [*tower.audio_model.parameters(), *tower.audio_projection.parameters(), scale]
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    tower.audio_model.train()
    train(
        trained,
        step,
        options.steps,
        options.learning_rate,
        options.out / "log.jsonl",
        {"trunk": tower.audio_model, "projection": tower.audio_projection, "scale": nn.ParameterList([scale])},
        matrices=hidden_matrices(tower.audio_model.layers),
        on_log=on_log,
    )


def _augment(mels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Spectrograms moved a little in time, pitch and loudness, with stripes masked (SpecAugment)."""
    mels = mels.clone()
    for mel in mels:
        mel.copy_(mel.roll((int(rng.integers(-4, 5)), int(rng.integers(0, mel.shape[1]))), (0, 1)))
        mel += float(rng.normal(0, 0.15))
        if rng.random() < 0.5:
            start, width = int(rng.integers(0, 110)), int(rng.integers(4, 18))
            mel[start : start + width] = mel.mean()
        if rng.random() < 0.5:
            start, width = int(rng.integers(0, 170)), int(rng.integers(5, 35))
            mel[:, start : start + width] = mel.mean()
    return mels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bank", type=Path, required=True, help="Folder for the spectrograms.")
    parser.add_argument("--num-sounds", type=int, default=14000)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    model, processor = load(options.model)
    train_audio(model, processor, options)
    save(options.out, model, processor)


if __name__ == "__main__":
    main()
