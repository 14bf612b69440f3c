"""What an exported file is tried on: sets of many lengths, photos of noise, and captions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xmodal.encoders.protocol import Encoder
from xmodal.models.tower import Tower
from xmodal.types import RaggedFeatures

Sets = tuple[Tensor, Tensor]  # (B, L, C) and mask (B, L), of sizes that differ from batch to batch

_SHAPES = ((3, 4), (1, 1), (2, 1), (1, 9), (5, 7), (6, 23))  # (B, L); by the first one a graph is traced
_PHOTOS = ((64, 80), (96, 96), (120, 72))  # width, height
_CAPTIONS = (
    "two dogs run over the green grass",
    "a man",
    "A small red circle is left of a striped blue square, and nobody is there to see it but the children of the house!",
)
_WORDS = 12  # of an encoder's own, in a caption more


def random_batches(tower: Tower) -> list[Sets]:
    """Random sets as a tower without a tail takes them, with gaps, empty ones, and padding that no number can hide."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for shape in _SHAPES:
        x = torch.randn(*shape, tower.feature_dim, generator=generator)
        if tower.standardizer is not None:
            x = x * tower.standardizer.deviation + tower.standardizer.mean
        mask = torch.rand(shape, generator=generator) < 0.7
        mask[0] = shape[0] == 1
        batches.append((x.masked_fill(~mask.unsqueeze(2), torch.nan), mask))
    return batches


def encoded_batches(encoder: Encoder) -> list[Sets]:
    """Sets at the cut of an encoder, as a tower with its tail takes them; the first batch is all of them."""
    items = example_items(encoder)
    sets = encoder.encode([encoder.preprocess(item) for item in items])
    chosen: list[Sequence[int]] = [range(len(items)), [0], [1, 1], [*range(len(items)), *range(len(items))]]
    with_empty = [*sets, sets[0][:0]]
    return [padded([sets[row] for row in rows]) for rows in chosen] + [padded(with_empty)]


def padded(sets: Sequence[Tensor]) -> Sets:
    """Sets (n, C) in one array, and which of its vectors exist."""
    rows = np.arange(len(sets))
    batch = RaggedFeatures.from_sets([found.numpy() for found in sets]).pad(rows, rows)
    return batch.x, batch.mask


def example_items(encoder: Encoder) -> list[Any]:
    """Photos of noise, or captions, of which one is of words that the encoder knows."""
    if encoder.modality == "text":
        return [*_CAPTIONS, " ".join(_own_words(encoder)[:_WORDS]) or _CAPTIONS[0]]
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in _PHOTOS]


def _own_words(encoder: Any) -> list[str]:
    """Words of a table or vocabulary, where an encoder has one."""
    table = getattr(encoder, "table", None)
    return list(getattr(encoder, "vocabulary", ()) if table is None else table.words)
