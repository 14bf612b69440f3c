"""Encoders as networks on tensors, for programs that have the network but not this library."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xmodal.tokens import PATTERN


@dataclass(frozen=True)
class PortableEncoder:
    """What ``encode`` computes, cut where photos and captions have become tensors.

    Attributes:
        network: the tensors, in the order of ``axes``, → padded sets (B, L, D) float32 and their mask (B, L).
        axes: of each input by name: a size, or a word for one that differs from batch to batch.
        tensors: outputs of ``preprocess`` → the inputs.
        preprocessing: how a photo or a caption becomes the inputs; JSON-able.
        files: what the preprocessing needs beside that, by name.
    """

    network: nn.Module
    axes: dict[str, tuple[int | str, ...]]
    tensors: Callable[[list[Any]], tuple[Tensor, ...]]
    preprocessing: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)


@runtime_checkable
class Portable(Protocol):
    """An encoder that may be such a network."""

    def portable(self) -> PortableEncoder:
        """As it is after ``prepare`` or ``restore``.

        Raises:
            FeatureError: it is none with these settings; says why.
        """
        ...


class PhotoSets(nn.Module):
    """Photos → sets of equal length, of which every vector exists.

    Args:
        network: of the encoder.
        vectors: what it makes of photos: (B, n, D).
    """

    def __init__(self, network: nn.Module, vectors: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.vectors = vectors

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B n D"], Bool[Tensor, "B n"]]:
        sets = self.vectors(self.network, pixels)
        return sets, torch.ones(sets.shape[:2], dtype=torch.bool, device=sets.device)


def pixels_alone() -> PhotoSets:
    """Of an encoder that is trained from pixels on: one vector of all of them."""
    return PhotoSets(nn.Identity(), lambda _, photos: photos.flatten(1).unsqueeze(1))


class WordSets(nn.Module):
    """Numbers of words → their rows of a table.

    Args:
        table: a vector per word.
    """

    table: Tensor

    def __init__(self, table: Float[Tensor, "words D"]) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(
        self, words: Int[Tensor, "B L"], word_mask: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B L D"], Bool[Tensor, "B L"]]:
        rows = self.table[words.masked_fill(~word_mask, 0)]
        return rows.masked_fill(~word_mask.unsqueeze(2), 0.0), word_mask


def portable_words(table: Float[Tensor, "words D"], numbers: Mapping[str, int], unknown: int | None) -> PortableEncoder:
    """An encoder that looks words up in a table.

    Args:
        numbers: rows of the words that it knows.
        unknown: row of all others; None: they are dropped.
    """

    def tensors(batch: list[list[str]]) -> tuple[Tensor, Tensor]:
        found = [[numbers.get(word, unknown) for word in words] for words in batch]
        kept = [[number for number in row if number is not None] for row in found]
        mask = torch.arange(max([1, *map(len, kept)]))[None, :] < torch.tensor([len(row) for row in kept])[:, None]
        words = torch.zeros(mask.shape, dtype=torch.int64)
        words[mask] = torch.tensor([number for row in kept for number in row], dtype=torch.int64)
        return words, mask

    preprocessing = {
        "lower_case": True,
        "words": PATTERN,
        "vocabulary": "text_vocabulary.json",
        "unknown_words": "dropped" if unknown is None else unknown,
    }
    lines = json.dumps(dict(numbers), ensure_ascii=False, indent=0)
    axes: dict[str, tuple[int | str, ...]] = dict.fromkeys(("words", "word_mask"), ("batch", "length"))
    return PortableEncoder(WordSets(table), axes, tensors, preprocessing, {"text_vocabulary.json": lines.encode()})
