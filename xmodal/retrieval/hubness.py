"""Hubness correction at query time, with a bank of training queries.

A hub is an item of the gallery that is near everything, and so stands before the true match of many queries. A bank of
queries, none of them under test, shows which items those are; what they have too much is taken off their scores.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xmodal.config.evaluation import RERANKINGS
from xmodal.errors import ConfigError, FeatureError
from xmodal.retrieval.similarity import (
    Blocks,
    Offsets,
    as_tensor,
    common_centre,
    count_zero_rows,
    full_precision,
    score,
)

USUAL_INVERSE_TEMPERATURE = 20.0  # of cosines

_ITEMS_PER_ROW = 4  # a tile has four times as many items of the gallery as it has queries
_SEED = 0  # of the fingerprints
_ODD = -7046029254386353131  # 2⁶⁴ divided by the golden ratio, as a signed number


@dataclass(frozen=True)
class QueryBank:
    """Training queries that correct the scores of a gallery; images for image→text, captions for text→image.

    The inverted softmax (Smith et al., Offline Bilingual Word Vectors, ICLR 2017) divides ``exp(β·s(q, g))`` by its sum
    over the queries b of the bank. The order that gives is the one of

        ``s'(q, g) = s(q, g) + offset[g]``,  ``offset[g] = −1/β · log Σ_b exp(β·s(b, g))``.

    ``inverted_softmax`` corrects every query. ``querybank`` is QB-Norm with the dynamic inverted softmax (Bogolin et
    al., Cross Modal Retrieval with Querybank Normalisation, CVPR 2022): it corrects those queries alone whose best item
    is in the activation set, which holds the best item of every query of the bank. Items that tie for best all count
    as best. Zero vectors in a bank, which prefer nothing, are left out under cosine and dot.

    Args:
        image: (A, E) images of the training split.
        text: (B, E) captions of the training split.
        method: ``querybank`` or ``inverted_softmax``.
        inverse_temperature: β. None is 20 under cosine, as Bogolin et al. have it; dot products and squared distances
            have a scale of their own, and β must be chosen after it.

    Raises:
        ConfigError: unknown method, or β that is not a positive number.
        FeatureError: a side that is empty, all zero, of wrong shape, or with NaN or infinity.
    """

    image: Tensor | np.ndarray
    text: Tensor | np.ndarray
    method: str = "querybank"
    inverse_temperature: float | None = None

    def __post_init__(self) -> None:
        check_rerank(self.method, self.inverse_temperature)
        for name in ("image", "text"):
            _check_bank(as_tensor(getattr(self, name)), f"the {name} embeddings of the query bank")

    def offsets(
        self, image: Float[Tensor, "N E"], text: Float[Tensor, "M E"], similarity: str, block_size: int
    ) -> tuple[Offsets, Offsets]:
        """The corrections of image→text (gallery: M captions) and of text→image (gallery: N images).

        The similarities of bank and gallery are walked in tiles of one shape, and kept as one running sum per item and
        one running maximum per query. Items of equal embedding have exactly equal offsets. Runs where the gallery
        lies. Under ``euclidean``, s is the negative squared distance.

        Args:
            block_size: queries per tile, rounded up to a multiple of 64; a tile has four times as many items.

        Raises:
            ConfigError: no β, and another similarity than cosine.
            FeatureError: a bank of another width than the embeddings, or similarities that overflow.
        """
        inverse_temperature = chosen_inverse_temperature(self.inverse_temperature, similarity)
        banks = as_tensor(self.image), as_tensor(self.text)
        for name, bank, side in (("image", banks[0], image), ("text", banks[1], text)):
            if bank.shape[1] != side.shape[1]:
                raise FeatureError(
                    f"the {name} embeddings of the query bank have width {bank.shape[1]}, those to be evaluated have "
                    f"width {side.shape[1]}: both must come from one model"
                )
        dtype = torch.float32
        for side in (*banks, image, text):
            dtype = torch.promote_types(dtype, side.dtype)
        options = (similarity, block_size, dtype, inverse_temperature)
        with torch.no_grad():
            i2t = _Direction(banks[0], text, *options).offsets(image, self.method)
            t2i = _Direction(banks[1], image, *options).offsets(text, self.method)
        return i2t, t2i


def gallery_offsets(
    bank: Float[Tensor, "B E"],
    gallery: Float[Tensor, "G E"],
    similarity: str,
    inverse_temperature: float,
    block_size: int = 256,
) -> Float[Tensor, "G"]:
    """``offset[g] = −1/β · log Σ_b exp(β·s(b, g))`` of each item of a gallery, see ``QueryBank``.

    Raises:
        FeatureError: similarities that overflow.
    """
    with torch.no_grad():
        direction = _Direction(bank, gallery, similarity, block_size, torch.float32, inverse_temperature)
        return direction.all_offsets()


def check_rerank(method: str, inverse_temperature: float | None) -> None:
    """Raises ConfigError unless ``method`` is one of ``RERANKINGS`` and ``inverse_temperature`` None or positive."""
    if method not in RERANKINGS:
        raise ConfigError(f"the hubness correction must be one of {', '.join(RERANKINGS)}; found {method!r}")
    if inverse_temperature is not None and not (math.isfinite(inverse_temperature) and inverse_temperature > 0):
        raise ConfigError(
            f"inverse_temperature (β) must be a positive number, found {inverse_temperature}: 20 is usual for cosines"
        )


def chosen_inverse_temperature(inverse_temperature: float | None, similarity: str) -> float:
    """β as it was given, else that of cosines; raises ConfigError where there is no usual one."""
    if inverse_temperature is not None:
        return inverse_temperature
    if similarity != "cosine":
        raise ConfigError(
            f"inverse_temperature (β, --inverse-temperature) must be chosen under similarity={similarity}, as it "
            f"depends on the scale of the scores; {USUAL_INVERSE_TEMPERATURE:g} is for cosines, which lie between "
            "-1 and 1. A start: 1 divided by the standard deviation of the scores"
        )
    return USUAL_INVERSE_TEMPERATURE


def _check_bank(bank: Tensor, name: str) -> None:
    if bank.ndim != 2 or 0 in bank.shape or bank.is_complex():
        raise FeatureError(
            f"{name} must be numbers of shape (count, width) with at least one query, found {bank.dtype} "
            f"{tuple(bank.shape)}: take them from the training split"
        )
    if count_zero_rows(bank, name) == len(bank):
        raise FeatureError(f"{name} must hold a query, but all {len(bank)} rows are the zero vector")


class _Direction:
    """One bank against one gallery: which items are hubs."""

    def __init__(
        self,
        bank: Float[Tensor, "B E"],
        gallery: Float[Tensor, "G E"],
        similarity: str,
        block_size: int,
        dtype: torch.dtype,
        inverse_temperature: float,
    ) -> None:
        self._gallery = gallery
        self._similarity = similarity
        self._block_size = block_size
        self._inverse_temperature = inverse_temperature
        self._device = gallery.device
        self._dtype = dtype
        self._centre = common_centre(bank, gallery, similarity=similarity)
        self._bank = self._queries(bank, _speaking(bank, similarity))
        # Equal items are looked at once: theirs are then equal offsets, and ties, which cost time, are rare.
        self._first, self._number = _distinct(self._items(torch.arange(len(gallery))), len(gallery))

    def offsets(self, queries: Float[Tensor, "Q E"], method: str) -> Offsets:
        """The inverted softmax; for ``querybank`` of those queries alone whose best item is that of one of the bank."""
        best = _Best(self._bank, self._device, self._dtype) if method == "querybank" else None
        with full_precision(self._device):
            offsets = self._walk(best)
            if best is None:
                corrected = torch.ones(len(queries), dtype=torch.bool, device=self._device)
            else:
                corrected = self._have_best_in(self._activated(best), queries)
        return Offsets(offsets[self._number], corrected)

    def all_offsets(self) -> Float[Tensor, "G"]:
        """The inverted softmax of every item."""
        with full_precision(self._device):
            return self._walk(None)[self._number]

    def _queries(self, queries: Tensor, rows: Tensor) -> Blocks:
        return Blocks(queries, rows, self._block_size, self._similarity, self._device, self._dtype, self._centre)

    def _items(self, rows: Tensor) -> Blocks:
        size = _ITEMS_PER_ROW * self._block_size
        return Blocks(self._gallery, rows, size, self._similarity, self._device, self._dtype, self._centre)

    def _tile(self, queries: Blocks, items: Blocks) -> Float[Tensor, "b c"]:
        return torch.empty(queries.block_size, items.block_size, dtype=self._dtype, device=self._device)

    def _walk(self, best: "_Best | None") -> Float[Tensor, "D"]:
        """The offset of each distinct item; ``best`` is shown every tile on the way."""
        items, bank = self._items(self._first), self._bank
        tile, offsets = self._tile(bank, items), []
        for j in range(len(items)):
            block, total = items[j], _LogSum(items.rows_in(j), self._device, self._dtype)
            for i in range(len(bank)):
                score(bank[i], block, self._similarity, out=tile)
                scores = tile[: bank.rows_in(i), : items.rows_in(j)]
                if best is not None:
                    best.see(scores, i * bank.block_size, j * items.block_size)
                total.add(scores.mul_(self._inverse_temperature))
            offsets.append(-total.value() / self._inverse_temperature)
        return self._finite(torch.cat(offsets))

    def _finite(self, offsets: Float[Tensor, "D"]) -> Float[Tensor, "D"]:
        overflown = int((~offsets.isfinite()).sum())
        if overflown:
            raise FeatureError(
                f"{self._similarity} similarity to the query bank, times {self._inverse_temperature}, leaves the range "
                f"of {self._dtype} for {overflown} of {len(offsets)} distinct items: scale the embeddings down, or use "
                f"similarity=cosine"
            )
        return offsets

    def _activated(self, best: "_Best") -> Bool[Tensor, "D"]:
        """Which distinct items are the best of a query of the bank."""
        activated = torch.zeros(len(self._first), dtype=torch.bool, device=self._device)
        activated[best.item] = True
        items, bank = self._items(self._first), self._bank
        tile = self._tile(bank, items)
        for i in range(len(bank)):  # where several items tie, only one of them is known: the product is made again
            rows = slice(i * bank.block_size, i * bank.block_size + bank.rows_in(i))
            if not best.tied[rows].any():
                continue
            block = bank[i]
            for j in range(len(items)):
                score(block, items[j], self._similarity, out=tile)
                equal = tile[: bank.rows_in(i), : items.rows_in(j)] == best.value[rows, None]
                start = j * items.block_size
                activated[start : start + items.rows_in(j)] |= equal.any(dim=0)
        return activated

    def _have_best_in(self, activated: Bool[Tensor, "D"], queries: Float[Tensor, "Q E"]) -> Bool[Tensor, "Q"]:
        """Which queries have their best item, or one of those that tie for it, among the activated ones."""
        items = self._items(torch.cat([self._first[activated], self._first[~activated]]))
        inside = int(activated.sum())
        asked = self._queries(queries, torch.arange(len(queries)))
        tile = self._tile(asked, items)
        best = torch.full((2, len(queries)), -math.inf, dtype=self._dtype, device=self._device)
        for j in range(len(items)):
            block = items[j]
            cut = min(max(inside - j * items.block_size, 0), items.rows_in(j))
            for i in range(len(asked)):
                score(asked[i], block, self._similarity, out=tile)
                rows = slice(i * asked.block_size, i * asked.block_size + asked.rows_in(i))
                scores = tile[: asked.rows_in(i), : items.rows_in(j)]
                for part, columns in enumerate((scores[:, :cut], scores[:, cut:])):
                    if columns.shape[1]:
                        best[part, rows] = torch.maximum(best[part, rows], columns.amax(dim=1))
        return best[0] >= best[1]


class _LogSum:
    """Running ``log Σ exp(x)`` of each column, in float64 and relative to the greatest x so far."""

    def __init__(self, columns: int, device: torch.device, dtype: torch.dtype) -> None:
        self._highest = torch.full((columns,), -math.inf, dtype=dtype, device=device)
        self._total = torch.zeros(columns, dtype=torch.float64, device=device)

    def add(self, x: Float[Tensor, "n columns"]) -> None:
        """Add rows; what they hold afterwards is of no use."""
        highest = torch.maximum(self._highest, x.amax(dim=0))
        self._total *= (self._highest - highest).double().exp()
        self._total += x.sub_(highest).exp_().sum(dim=0)
        self._highest = highest

    def value(self) -> Float[Tensor, "columns"]:
        return (self._highest.double() + self._total.log()).to(self._highest.dtype)


class _Best:
    """Of each query of a bank: its best score so far, the item that has it, and whether others have it too."""

    def __init__(self, bank: Blocks, device: torch.device, dtype: torch.dtype) -> None:
        count = sum(bank.rows_in(i) for i in range(len(bank)))
        self.value = torch.full((count,), -math.inf, dtype=dtype, device=device)
        self.item = torch.zeros(count, dtype=torch.int64, device=device)
        self.tied = torch.zeros(count, dtype=torch.bool, device=device)

    def see(self, scores: Float[Tensor, "n c"], first_query: int, first_item: int) -> None:
        """Take in the scores of some queries with some items."""
        rows = slice(first_query, first_query + len(scores))
        value, item = scores.max(dim=1)
        scores.scatter_(1, item[:, None], -math.inf)  # so that the second best shows; put back below
        several = scores.amax(dim=1) == value
        scores.scatter_(1, item[:, None], value[:, None])
        better, equal = value > self.value[rows], value == self.value[rows]
        self.tied[rows] = torch.where(better, several, self.tied[rows] | equal)
        self.item[rows] = torch.where(better, first_item + item, self.item[rows])
        self.value[rows] = torch.where(better, value, self.value[rows])


def _speaking(bank: Float[Tensor, "B E"], similarity: str) -> Int[Tensor, "b"]:
    """The rows of a bank that prefer some items: under cosine and dot, a zero vector scores 0 with everything."""
    if similarity == "euclidean":
        return torch.arange(len(bank))
    return (bank != 0).any(dim=1).nonzero().flatten().cpu()


def _distinct(blocks: Blocks, count: int) -> tuple[Int[Tensor, "D"], Int[Tensor, "G"]]:
    """The first row of each distinct vector, and of each row the number of its vector.

    Rows are told apart by a 64-bit fingerprint, which integer sums make the same wherever a row stands.
    """
    found = [_fingerprints(blocks[i])[: blocks.rows_in(i)] for i in range(len(blocks))]
    _, number = torch.cat(found).unique(return_inverse=True)
    rows = torch.arange(count, device=number.device)
    first = torch.full((int(number.max()) + 1,), count, device=number.device)
    return first.scatter_reduce(0, number, rows, "amin"), number


def _fingerprints(rows: Float[Tensor, "n width"]) -> Int[Tensor, "n"]:
    """``Σ_e r_e · mix(bits of row_e)`` modulo 2⁶⁴, with odd random r."""
    bits = (rows + 0.0).view(torch.int64 if rows.dtype == torch.float64 else torch.int32).long()  # −0 + 0 is 0
    mixed = bits * _ODD
    mixed ^= mixed >> 32  # the bits of small whole numbers differ at the top alone: bring them down
    random = torch.Generator().manual_seed(_SEED)
    factors = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=random) * 2 + 1
    return (mixed * factors.to(rows.device)).sum(dim=1)
