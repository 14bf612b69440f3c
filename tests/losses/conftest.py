"""Batches, memories and labels for every loss, and what a plain loop makes of them."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from xmodal.losses.comparison import EmbeddedPairs


class Batch(NamedTuple):
    """What a loss is called with."""

    image: Tensor
    text: Tensor
    image_ids: Tensor
    labels: Tensor | None
    memory: EmbeddedPairs | None


class Relation(NamedTuple):
    """One anchor: its vector, and those of its matches and its negatives."""

    anchor: list[float]
    matches: list[list[float]]
    negatives: list[list[float]]


def pairs(size: int, images: int, labelled: bool, seed: int) -> EmbeddedPairs:
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, size, 4, generator=generator, dtype=torch.float64)
    ids = torch.randint(images, (size,), generator=generator)
    return EmbeddedPairs(image, text, ids, ids % 3 if labelled else None)


def make_batch(size: int, images: int, labelled: bool, remembered: int, seed: int) -> Batch:
    new = pairs(size, images, labelled, seed)
    return Batch(*new, memory=pairs(remembered, images, labelled, seed + 1) if remembered else None)


def plain_relations(batch: Batch, side: str, siblings: str) -> list[Relation]:
    """Of every item of one side, by loops over lists: the other side of the batch, then of the memory."""
    anchors, others = (batch.image, batch.text) if side == "image" else (batch.text, batch.image)
    groups = (batch.image_ids if batch.labels is None else batch.labels).tolist()
    candidates, found = others.tolist(), list(groups)
    if batch.memory is not None:
        candidates += (batch.memory.text if side == "image" else batch.memory.image).tolist()
        found += (batch.memory.image_ids if batch.labels is None else batch.memory.labels).tolist()
    relations = []
    for a, anchor in enumerate(anchors.tolist()):
        matches = [c for c in range(len(found)) if c == a or (siblings == "positive" and found[c] == groups[a])]
        negatives = [c for c in range(len(found)) if found[c] != groups[a]]
        relations.append(Relation(anchor, [candidates[c] for c in matches], [candidates[c] for c in negatives]))
    return relations


def plain_cosine(a: list[float], b: list[float]) -> float:
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def plain_distance(a: list[float], b: list[float], distance: str) -> float:
    if distance == "cosine":
        return 1.0 - plain_cosine(a, b)
    squared = sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    return squared if distance == "squared_euclidean" else math.sqrt(squared)


@pytest.fixture(scope="session")
def batches() -> st.SearchStrategy[Batch]:
    """Any batch: of one image or many, with and without labels and memory."""
    return st.builds(
        make_batch, st.integers(1, 7), st.integers(1, 7), st.booleans(), st.integers(0, 5), st.integers(0, 9999)
    )


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., Batch]:
    return make_batch


@pytest.fixture(scope="session")
def relations() -> Callable[[Batch, str, str], list[Relation]]:
    return plain_relations


@pytest.fixture(scope="session")
def cosine() -> Callable[[list[float], list[float]], float]:
    return plain_cosine


@pytest.fixture(scope="session")
def distance_between() -> Callable[[list[float], list[float], str], float]:
    return plain_distance
