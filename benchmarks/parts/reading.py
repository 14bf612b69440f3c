"""Features from disk: files into memory beside files without checksums, and batches from files larger than memory.

Random features in the form of Faster R-CNN's and FastText's: 36 × 2048 per image, 8 to 20 × 300 per caption.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import torch
from alternation import alternate, seconds
from parts.inputs import into_new_store
from random_pairs import CAPTIONS_PER_IMAGE, numbered_items
from torch import Tensor

from xmodal.features.datamodule import PairDataModule
from xmodal.features.residence import open_features
from xmodal.features.store import FeatureFile, FeatureStore
from xmodal.types import FeatureSource

BUDGET = 0.75  # of the features, for streaming
MIB, GB = 2**20, 1e9


class RandomEncoder:
    """Sets of random vectors for the numbers 0, 1, 2, … written as sentences."""

    modality: ClassVar = "text"
    batch_size: ClassVar = 256

    def __init__(self, feature_dim: int, shortest: int, longest: int) -> None:
        self.feature_dim = feature_dim
        self.shortest = shortest
        self.longest = longest
        self._vectors = torch.randn(5000 + longest, feature_dim, generator=torch.Generator().manual_seed(0))

    def check(self) -> list[str]:
        return []

    def prepare(self, captions: Sequence[str], cache_dir: Path) -> None:
        """Ready from the start."""

    def to(self, device: torch.device | str) -> None:
        """Stays on the CPU."""

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Ready from the start."""

    def fingerprint(self) -> dict[str, Any]:
        return {"encoder": "random", "width": self.feature_dim}

    @staticmethod
    def preprocess(item: str) -> int:
        return int(item)

    def encode(self, batch: list[int]) -> list[Tensor]:
        lengths = [self.shortest + number % (self.longest + 1 - self.shortest) for number in batch]
        starts = [number * 7919 % 5000 for number in batch]
        return [self._vectors[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def measure(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Two lines of rates."""
    images = options.reading_images
    paths = {
        "image": written(RandomEncoder(2048, 36, 36), images, options, folder),
        "text": written(RandomEncoder(300, 8, 20), images * CAPTIONS_PER_IMAGE, options, folder),
    }
    yield into_memory(paths["image"], options, folder)
    yield streamed(paths, images, options)


def written(encoder: RandomEncoder, count: int, options: argparse.Namespace, folder: Path) -> Path:
    return into_new_store(encoder, [str(number) for number in range(count)], options, folder)


def into_memory(path: Path, options: argparse.Namespace, folder: Path) -> str:
    """A file of the store beside one dataset without chunks and checksums."""
    values = FeatureStore(path.parents[1]).read(path).values
    plain = folder / "plain.h5"
    with h5py.File(plain, "w") as file:
        file.create_dataset("values", data=values)

    def ours() -> float:
        return values.nbytes / MIB / seconds(lambda: FeatureStore(path.parents[1]).read(path), options.device)

    def bare() -> float:
        return values.nbytes / MIB / seconds(lambda: read_plain(plain), options.device)

    return alternate(ours, bare, options.repeats).line(f"reading {values.nbytes / MIB:.0f} MiB into memory", "MiB/s")


def read_plain(path: Path) -> np.ndarray:
    with h5py.File(path, "r") as file:
        return file["values"][:]


def streamed(paths: dict[str, Path], images: int, options: argparse.Namespace) -> str:
    """Training batches with less memory than the features need, beside batches from memory."""
    held = open_features(paths, memory_gb=1000.0)
    size = sum(features.nbytes for features in held.values())
    budget = BUDGET * size / GB
    from_disk = open_features(paths, memory_gb=budget)
    if not any(isinstance(source, FeatureFile) for source in from_disk.values()):
        raise SystemExit(f"Features of {size} bytes were read into a memory of {budget} GB: nothing is streamed.")
    pairs, batch_size = images * CAPTIONS_PER_IMAGE, max(1, min(128, images // 16))  # several batches fit the budget

    def rate(sources: dict[str, FeatureSource], memory_gb: float) -> float:
        datamodule = PairDataModule(numbered_items(images), *sides(sources), batch_size, memory_gb=memory_gb)
        return pairs / seconds(lambda: one_epoch(datamodule), options.device)

    result = alternate(lambda: rate(from_disk, budget), lambda: rate(held, 1000.0), options.repeats)
    return result.line(f"streaming {size / MIB:.0f} MiB through {budget * GB / MIB:.0f} MiB", "pairs/s", "in_memory")


def one_epoch(datamodule: PairDataModule) -> None:
    """All training batches; nothing is done with them."""
    for _ in datamodule.train_dataloader():
        pass


def sides(sources: dict[str, FeatureSource]) -> Sequence[FeatureSource]:
    return sources["image"], sources["text"]
