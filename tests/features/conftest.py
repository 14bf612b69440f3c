"""A small real encoder for each modality, and items to encode."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from xmodal.data.items import Caption, ImageItem, Items


class Ready:
    """What an encoder needs that has its weights from the start."""

    def check(self) -> list[str]:
        return []

    def prepare(self, captions: Sequence[str], cache_dir: Path) -> None:
        return None

    def to(self, device: torch.device | str) -> None:
        return None

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        return None


class GridEncoder(Ready):
    """Mean colours of a photo's cells through a seeded linear layer: a set of ``cells`` vectors."""

    modality: ClassVar[str] = "image"

    def __init__(self, batch_size: int = 4, cells: int = 2, scale: float = 1.0, seed: int = 0) -> None:
        self.batch_size, self.cells, self.scale = batch_size, cells, scale
        self.weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed))
        self.encoded = 0

    feature_dim = 8

    def fingerprint(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.weight.numpy().tobytes()).hexdigest()
        return {"encoder": "GridEncoder", "cells": self.cells, "scale": self.scale, "weights": digest}

    def preprocess(self, item: Image.Image) -> torch.Tensor:
        assert item.mode == "RGB"
        return torch.from_numpy(np.asarray(item).astype(np.float32) / 255).permute(2, 0, 1)

    def encode(self, batch: list[torch.Tensor]) -> list[torch.Tensor]:
        self.encoded += len(batch)
        cells = torch.stack([torch.nn.functional.adaptive_avg_pool2d(x, (1, self.cells))[:, 0] for x in batch])
        return list(cells.transpose(1, 2) @ self.weight * self.scale)


class LetterEncoder(Ready):
    """One seeded vector per letter, none for a text without letters.

    ``broken`` maps a letter to a value that its vector then holds; ``stop_after`` items it is interrupted.
    """

    modality: ClassVar[str] = "text"
    feature_dim = 6

    def __init__(
        self, batch_size: int = 4, broken: dict[str, float] | None = None, stop_after: float = math.inf
    ) -> None:
        self.batch_size, self.stop_after = batch_size, stop_after
        self.table = torch.randn(26, 6, generator=torch.Generator().manual_seed(1))
        for letter, value in (broken or {}).items():
            self.table[ord(letter) - 97, 3] = value
        self.encoded = 0

    def fingerprint(self) -> dict[str, Any]:
        return {"encoder": "LetterEncoder", "weights": hashlib.sha256(self.table.numpy().tobytes()).hexdigest()}

    def preprocess(self, item: str) -> list[int]:
        return [ord(c) - 97 for c in item.lower() if "a" <= c <= "z"]

    def encode(self, batch: list[list[int]]) -> list[torch.Tensor]:
        if self.encoded + len(batch) > self.stop_after:
            raise KeyboardInterrupt
        self.encoded += len(batch)
        return [self.table[torch.tensor(letters, dtype=torch.int64)] for letters in batch]


@pytest.fixture
def grid_encoder() -> type[GridEncoder]:
    return GridEncoder


@pytest.fixture
def letter_encoder() -> type[LetterEncoder]:
    return LetterEncoder


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Eleven small PNG files of different colours."""
    random = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    paths = [folder / f"{i}.png" for i in range(11)]
    for path in paths:
        Image.fromarray(random.integers(0, 255, (6, 8, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def make_items():
    """``make_items(counts, ids=None, splits=None)``: image i with ``counts[i]`` captions."""

    def make(counts: list[int], ids: list[Any] | None = None, splits: list[str] | None = None) -> Items:
        names = ids if ids is not None else list(range(len(counts)))
        roles = splits or ["train"] * len(counts)
        images = tuple(ImageItem(name, split) for name, split in zip(names, roles, strict=True))
        owners = np.repeat(np.arange(len(counts)), counts).tolist()
        captions = tuple(Caption(1000 + k, row, f"caption {k}") for k, row in enumerate(owners))
        return Items("toy", images, captions)

    return make
