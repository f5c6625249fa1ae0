# SPDX-License-Identifier: Apache-2.0
"""Samples of any kinds to one batch for the model."""

from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import ProcessorMixin

from ..exceptions import TrainingDataError
from .encoding import IGNORED, SampleEncoder


# Which mask says what of an input is real; without one, items are equally large
MASKS = {
    "pixel_values": None,
    "image_embeds": None,
    "pixel_values_videos": "video_frame_mask",
    "video_frame_embeds": "video_frame_mask",
    "input_features": "input_features_mask",
    "audio_pixel_values": "input_features_mask",
    "audio_segment_embeds": "input_features_mask",
}


class VideoLlamaDataCollator:
    r"""
    Pads samples to a batch: texts on the right, frames and segments at the end of their item. For `Trainer` with
    `remove_unused_columns=False`, and any `DataLoader`.

    Args:
        processor ([`VideoLlamaProcessor`]):
            Processor of the model, for its padding token.
        encoder ([`SampleEncoder`], *optional*):
            Encodes rows that are not encoded yet. It is told the `epoch` of this collator, an attribute that is 0 unless it is
            set, and for an index a number made of the row's "id": a sample gets the same random choices wherever it stands.
        pad_to_multiple_of (`int`, *optional*):
            What the length of texts is to be divisible by.

    Raises:
        ValueError: If `pad_to_multiple_of` is less than 1.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        encoder: SampleEncoder | None = None,
        pad_to_multiple_of: int | None = None,
    ):
        if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
            raise ValueError(f"pad_to_multiple_of is {pad_to_multiple_of}, expected 1 or more.")
        self.pad_token_id = processor.tokenizer.pad_token_id or 0  # masked, so any token will do
        self.encoder = encoder
        self.pad_to_multiple_of = pad_to_multiple_of
        # Shared with workers, of which some outlive an epoch
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """Number of the pass over the data, from 0, by which the random choices of an encoder change."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            rows: What [`SampleEncoder`] returned, or rows with "messages".

        Returns:
            `input_ids`, `attention_mask` and `labels` of shape `(batch, length)`, and as far as there are such items
            `pixel_values` `(images, 3, height, width)`, `pixel_values_videos` `(videos, frames, 3, height, width)`,
            `input_features` `(sounds, segments, num_mel_bins, num_mel_frames)`, `audio_pixel_values`
            `(sounds, segments, 3, size, size)` or the features of a cache in their place, with `video_frame_mask`
            `(videos, frames)` and `input_features_mask` `(sounds, segments)`: 1 where a frame or segment is real.

        Raises:
            MediaError: If a file can't be read.
            TrainingDataError: If a row can't be laid out, is neither encoded nor has messages, or what is seen or heard comes in
                two forms.
        """
        if not rows:
            raise TrainingDataError("A batch without rows was given to the collator, expected one or more.")
        rows = [self._encode(row) for row in rows]
        input_ids = [torch.as_tensor(row["input_ids"]) for row in rows]
        labels = [torch.as_tensor(row["labels"]) for row in rows]
        batch = {
            "input_ids": self._pad_text(input_ids, self.pad_token_id),
            "attention_mask": self._pad_text([torch.ones_like(ids) for ids in input_ids], 0),
            "labels": self._pad_text(labels, IGNORED),
        }
        forms: dict[str, str] = {}
        for name, mask_name in MASKS.items():
            items = [
                torch.as_tensor(item) for row in rows for item in (row.get(name) if row.get(name) is not None else ())
            ]
            if not items:
                continue
            if (other := forms.setdefault(mask_name or "images", name)) != name:
                raise TrainingDataError(
                    f"The rows of a batch hold both {other} and {name}, of which the model takes one: encode all of them alike."
                )
            if mask_name is None:
                batch[name] = torch.stack(items)
            else:
                batch[name] = pad_sequence(items, batch_first=True)
                ones = [torch.ones(len(item), dtype=torch.int64) for item in items]
                batch[mask_name] = pad_sequence(ones, batch_first=True)
        return batch

    def _encode(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        if "input_ids" in row:
            return row
        if "messages" not in row:
            raise TrainingDataError(
                f"A row has the columns {', '.join(row) or 'none'}, expected 'messages' or 'input_ids'. Trainer drops columns that "
                "the model does not take: set remove_unused_columns=False in its arguments."
            )
        if self.encoder is None:
            raise TrainingDataError(
                "A row is not encoded yet, and the collator has no encoder: give it one, or encode the rows before."
            )
        name = row["messages"] if row.get("id") is None else row["id"]
        return self.encoder(row, epoch=self.epoch, index=crc32(str(name).encode()))

    def _pad_text(self, rows: list[torch.Tensor], value: int) -> torch.Tensor:
        padded = pad_sequence(rows, batch_first=True, padding_value=value)
        missing = -padded.shape[1] % (self.pad_to_multiple_of or 1)
        return torch.nn.functional.pad(padded, (0, missing), value=value)


__all__ = ["VideoLlamaDataCollator"]
