"""Exact ranks of all true pairs, both directions from one blocked pass over the similarities."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from xmodal.errors import FeatureError
from xmodal.retrieval.similarity import Blocks, Offsets, common_centre, full_precision, score

_WIDEST_TILE = 8  # columns of a tile per row of it: five captions an image make tiles that hold their own matches
_KEPT_BYTES = 2**26  # of tiles with true pairs that are kept from their scoring to their counting


def pairs_per_query(query_ids: Shaped[np.ndarray, "Q"], gallery_ids: Shaped[np.ndarray, "G"]) -> Int[np.ndarray, "Q"]:
    """How many items of the gallery have the id of each query."""
    ordered = np.sort(gallery_ids)
    first, stop = (np.searchsorted(ordered, query_ids, side) for side in ("left", "right"))
    return stop - first


@dataclass(frozen=True)
class Matches:
    """The true (image, caption) pairs, and an order of both sides in which matches lie close to the diagonal."""

    image: Int[np.ndarray, "P"]  # row of the image of each pair
    text: Int[np.ndarray, "P"]  # row of its caption
    image_order: Int[np.ndarray, "N"]
    text_order: Int[np.ndarray, "M"]

    @classmethod
    def from_ids(cls, image_ids: np.ndarray, text_image_ids: np.ndarray) -> "Matches":
        """All pairs of equal id; an id may occur any number of times on either side, and on one side alone."""
        _, codes = np.unique(np.concatenate([image_ids, text_image_ids]), return_inverse=True)
        image_codes, text_codes = np.split(codes.reshape(-1), [len(image_ids)])
        image_order, text_order = (np.argsort(c, kind="stable") for c in (image_codes, text_codes))
        first, stop = (
            np.searchsorted(image_codes[image_order], text_codes[text_order], side) for side in ("left", "right")
        )
        count = stop - first
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        image = image_order[np.repeat(first, count) + within]
        return cls(image, np.repeat(text_order, count), image_order, text_order)


@dataclass(frozen=True)
class Ahead:
    """What stands before each of the P true pairs: non-matching items scoring at least as high; 0 where not asked."""

    captions: Int[np.ndarray, "P"]  # with the image as the query
    images: Int[np.ndarray, "P"]  # with the caption as the query


def count_ahead(
    image: Float[Tensor, "N E"],
    text: Float[Tensor, "M E"],
    matches: Matches,
    similarity: str,
    block_size: int,
    i2t: Offsets | None = None,
    t2i: Offsets | None = None,
    ways: Collection[str] = ("i2t", "t2i"),
) -> Ahead:
    """Count, for every true pair (i, t), the non-matching captions t' with ``s(i, t') ≥ s(i, t)`` and the
    non-matching images i' with ``s(i', t) ≥ s(i, t)``.

    The similarity matrix is walked in tiles of one shape. The few tiles with true pairs come first, for the scores of
    the pairs; they are made again by the same product, so that a pair is compared with scores of its own kind.
    Memory is that of two tiles and two blocks, whatever N and M. Time grows with the pairs of a query: each is compared
    with the whole gallery; ``class_relevance`` sorts instead. Runs on the device of ``image``.

    Args:
        block_size: images per tile, rounded up to a multiple of 64.
        i2t: added to the scores where images are the queries and captions the gallery.
        t2i: added to the scores where captions are the queries and images the gallery.
        ways: the directions that are asked.

    Raises:
        FeatureError: scores of true pairs that overflow.
    """
    with torch.inference_mode(), full_precision(image.device):
        return _TiledPass(image, text, matches, similarity, block_size, i2t, t2i, ways).run()


class _TilePairs(NamedTuple):
    """The true pairs of one tile: where they stand in it, and their numbers among all P pairs."""

    rows: Tensor
    columns: Tensor
    pairs: Tensor


class _Slot(NamedTuple):
    """Queries of one block (positions in it) with one of their true pairs each, by its number among all P pairs."""

    queries: Tensor
    pairs: Tensor


class _TiledPass:
    def __init__(
        self,
        image: Float[Tensor, "N E"],
        text: Float[Tensor, "M E"],
        matches: Matches,
        similarity: str,
        block_size: int,
        i2t: Offsets | None,
        t2i: Offsets | None,
        ways: Collection[str],
    ) -> None:
        device = image.device
        dtype = torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)
        image_order, text_order = torch.from_numpy(matches.image_order), torch.from_numpy(matches.text_order)
        self.similarity = similarity
        centre = common_centre(image, text, similarity=similarity)
        self.images = Blocks(image, image_order, block_size, similarity, device, dtype, centre)
        captions_per_image = min(max(1.0, len(text) / len(image)), _WIDEST_TILE)
        text_block_size = int(self.images.block_size * captions_per_image)
        self.texts = Blocks(text, text_order, text_block_size, similarity, device, dtype, centre)
        rows = np.argsort(matches.image_order)[matches.image]
        columns = np.argsort(matches.text_order)[matches.text]
        tile = (self.images.block_size, self.texts.block_size)
        self.tile_pairs = _pairs_of_tiles(rows, columns, tile, device)
        self.image_slots = _slots_of_blocks(rows, tile[0], device) if "i2t" in ways else {}
        self.text_slots = _slots_of_blocks(columns, tile[1], device) if "t2i" in ways else {}
        self.scores = torch.empty(tile, dtype=dtype, device=device)
        self.less = torch.empty(tile, dtype=dtype, device=device)  # not bool, whose sums are ten times slower
        self.target = torch.empty(len(rows), dtype=dtype, device=device)
        self.kept: dict[tuple[int, int], Tensor] = {}
        self.i2t = _Correction.of(i2t, matches.image_order, matches.text_order, tile, self.scores)
        self.t2i = _Correction.of(t2i, matches.text_order, matches.image_order, tile[::-1], self.scores)
        self.rows, self.columns = torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)

    def run(self) -> Ahead:
        self._score_targets()
        i2t_target = self.i2t.of_pairs(self.target, self.rows, self.columns)
        t2i_target = self.t2i.of_pairs(self.target, self.columns, self.rows)
        captions, images = torch.zeros(2, len(self.target), dtype=torch.int64, device=self.target.device)
        for i in range(len(self.images)):
            image_block = self.images[i]
            for j in range(len(self.texts)):
                tile = self.kept.pop((i, j), None)
                if tile is None:
                    tile = score(image_block, self.texts[j], self.similarity, out=self.scores)
                if (i, j) in self.tile_pairs:
                    rows, columns, _ = self.tile_pairs[i, j]
                    tile[rows, columns] = -torch.inf  # a match never stands before a match
                scores = tile[: self.images.rows_in(i), : self.texts.rows_in(j)]
                i2t, t2i = self.i2t.of_tile(scores, i, j), self.t2i.of_tile(scores.T, j, i)
                _add(captions, i2t, i2t_target, self.less, self.image_slots.get(i, []))
                _add(images, t2i, t2i_target, self.less.T, self.text_slots.get(j, []))
        return Ahead(captions.cpu().numpy(), images.cpu().numpy())

    def _score_targets(self) -> None:
        most_kept = _KEPT_BYTES // self.scores.nbytes
        for (i, j), (rows, columns, pairs) in self.tile_pairs.items():
            tile = torch.empty_like(self.scores) if len(self.kept) < most_kept else self.scores
            score(self.images[i], self.texts[j], self.similarity, out=tile)
            self.target[pairs] = tile[rows, columns]
            if tile is not self.scores:
                self.kept[i, j] = tile
        overflown = int((~self.target.isfinite()).sum())
        if overflown:
            raise FeatureError(
                f"{self.similarity} similarity leaves the range of {self.target.dtype} for {overflown} of "
                f"{len(self.target)} true pairs: scale the embeddings down, or use similarity=cosine"
            )


def _add(totals: Tensor, scores: Tensor, target: Tensor, less: Tensor, slots: list[_Slot]) -> None:
    """Add to ``totals`` how many columns of ``scores`` stand before each pair; a row is a query."""
    for queries, pairs in slots:
        rows = scores if len(queries) == len(scores) else scores[queries]
        # Counting what is less, not what is at least as high, puts an overflow (NaN) before the match.
        below = torch.lt(rows, target[pairs, None], out=less[: len(rows), : rows.shape[1]]).sum(dim=1)
        totals[pairs] += rows.shape[1] - below.long()


class _Correction:
    """The offsets of one direction in the order of its blocks; none leaves every score as it is.

    A pair's score and the scores it is compared with are corrected by the same addition, so that equal ones stay equal.
    """

    def __init__(self, queries: Tensor | None, gallery: Tensor | None, tile: tuple[int, int]) -> None:
        self._queries = queries
        self._gallery = gallery
        self._tile = tile

    @classmethod
    def of(
        cls,
        offsets: Offsets | None,
        query_order: np.ndarray,
        gallery_order: np.ndarray,
        tile: tuple[int, int],
        like: Tensor,
    ) -> "_Correction":
        if offsets is None:
            return cls(None, None, tile)
        queries = offsets.queries.to(like.device)[torch.from_numpy(query_order).to(like.device)]
        gallery = offsets.gallery.to(like)[torch.from_numpy(gallery_order).to(like.device)]
        return cls(queries, gallery, tile)

    def of_tile(self, scores: Tensor, query_block: int, gallery_block: int) -> Tensor:
        """The corrected scores of one tile, whose rows are queries."""
        if self._queries is None or self._gallery is None:
            return scores
        row, column = query_block * self._tile[0], gallery_block * self._tile[1]
        corrected = self._queries[row : row + scores.shape[0], None]
        return torch.where(corrected, scores + self._gallery[column : column + scores.shape[1]], scores)

    def of_pairs(self, scores: Tensor, queries: Tensor, gallery: Tensor) -> Tensor:
        """The corrected scores of pairs, given by their positions in the order of the blocks."""
        if self._queries is None or self._gallery is None:
            return scores
        return torch.where(self._queries[queries], scores + self._gallery[gallery], scores)


def _pairs_of_tiles(
    rows: np.ndarray, columns: np.ndarray, tile: tuple[int, int], device: torch.device
) -> dict[tuple[int, int], _TilePairs]:
    """The tiles that hold true pairs, from the positions of the pairs in the ordered sides."""
    tiles = np.stack([rows // tile[0], columns // tile[1]])
    order = np.lexsort(tiles[::-1])
    changes = np.flatnonzero(np.diff(tiles[:, order]).any(axis=0)) + 1
    return {
        (int(tiles[0, pairs[0]]), int(tiles[1, pairs[0]])): _TilePairs(
            *(torch.from_numpy(part).to(device) for part in (rows[pairs] % tile[0], columns[pairs] % tile[1], pairs))
        )
        for pairs in np.split(order, changes)
    }


def _slots_of_blocks(positions: np.ndarray, block_size: int, device: torch.device) -> dict[int, list[_Slot]]:
    """Per block of queries: its pairs in slots of at most one per query, from the position of each pair's query."""
    order = np.argsort(positions, kind="stable")
    queries = positions[order]
    number = np.arange(len(queries)) - np.searchsorted(queries, queries)  # of the pair among those of its query
    keys = np.stack([queries // block_size, number])
    by_slot = np.lexsort(keys[::-1])
    changes = np.flatnonzero(np.diff(keys[:, by_slot]).any(axis=0)) + 1
    slots: dict[int, list[_Slot]] = {}
    for chosen in np.split(by_slot, changes):
        local, pairs = queries[chosen] % block_size, order[chosen]
        slot = _Slot(torch.from_numpy(local).to(device), torch.from_numpy(pairs).to(device))
        slots.setdefault(int(keys[0, chosen[0]]), []).append(slot)
    return slots
