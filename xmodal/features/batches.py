"""Which items are encoded together: a function of the items and the settings alone, never of what is done already."""

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from xmodal.encoders.protocol import Encoder, Sizing


@dataclass(frozen=True, eq=False)
class Plan:
    """N items, of which U are distinct, in chunks of whole batches.

    Distinct items are numbered in the order of their first appearance.

    Args:
        codes: (N,) int64, which distinct item each item is.
        first: (U,) int64, the first item that is equal to each distinct one.
        step: distinct items of a chunk, a multiple of ``batch_size``.
        batch_size: of one forward pass.
    """

    codes: np.ndarray
    first: np.ndarray
    step: int
    batch_size: int

    @classmethod
    def of(cls, keys: Sequence[Hashable], batch_size: int, chunk_size: int) -> "Plan":
        """The plan for items of which those with equal ``keys`` are equal.

        Args:
            keys: one per item.
            batch_size: items of one forward pass.
            chunk_size: about how many distinct items a chunk holds (rounded down to whole batches, at least one).
        """
        number: dict[Hashable, int] = {}
        codes = np.array([number.setdefault(key, len(number)) for key in keys], dtype=np.int64)
        first = np.unique(codes, return_index=True)[1].astype(np.int64)
        return cls(codes, first, max(1, chunk_size // batch_size) * batch_size, batch_size)

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """First distinct item and end of every chunk."""
        total = len(self.first)
        return [(start, min(start + self.step, total)) for start in range(0, total, self.step)]

    @cached_property
    def counts(self) -> np.ndarray:
        """How many items each distinct item stands for: (U,)."""
        return np.bincount(self.codes, minlength=len(self.first))

    @cached_property
    def digest(self) -> str:
        """Equal for equal plans: a chunk that another plan made is of no use."""
        settings = f"{self.step} {self.batch_size} ".encode()
        return hashlib.sha256(settings + self.codes.astype("<i8").tobytes()).hexdigest()[:16]

    def items_of(self, number: int) -> int:
        """How many items the distinct ones of chunk ``number`` stand for."""
        start, end = self.spans[number]
        return int(self.counts[start:end].sum())


def merging_keys(inputs: Sequence[Any], modality: str, keys: Sequence[Hashable] | None) -> Sequence[Hashable]:
    """``keys``, or where there are none: the captions themselves; no two photos are taken for equal."""
    if keys is not None:
        return keys
    return inputs if modality == "text" else range(len(inputs))


def cut_into_batches(encoder: Encoder, items: Sequence[Any]) -> list[np.ndarray]:
    """Positions in ``items``, the distinct ones of one chunk, batch by batch.

    Where the encoder knows sizes, items of like size come together and are padded only to the longest of their batch,
    the largest first: if memory does not suffice, that shows at once. Items of one size stay in their order.
    """
    order = np.arange(len(items))
    if isinstance(encoder, Sizing):
        order = np.argsort(-np.asarray(encoder.sizes(items), dtype=np.int64), kind="stable")
    return [order[start : start + encoder.batch_size] for start in range(0, len(items), encoder.batch_size)]
