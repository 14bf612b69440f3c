"""Exact positions of relevant items where a query may have any number of them, as by class or where ids recur."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from xmodal.errors import FeatureError
from xmodal.retrieval.metrics import Relevant
from xmodal.retrieval.similarity import Blocks, Offsets, common_centre, full_precision, score

STRIP = 2**23  # scores held at a time: some queries (64 at least) × the whole gallery
CHUNK = 2**20  # of these, scores sorted at a time, and relevant items given out at a time
_TALLEST = 1024  # queries in a strip
GALLERY_BLOCK = 2048


def class_relevance(
    queries: Float[Tensor, "Q E"],
    gallery: Float[Tensor, "G E"],
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    rows: Int[np.ndarray, "A"],
    similarity: str,
    offsets: Offsets | None = None,
    leave_out_itself: bool = False,
) -> Iterator[Relevant]:
    """Positions of all items of a query's class in the ranking of the gallery, for some queries at a time.

    The r-th best relevant item stands at ``r +`` the number of items of other classes that score at least as high.
    Those are counted by sorting the scores of the other classes and searching the relevant ones among them. Memory is
    ``O(64 · G)`` beside the chunk given out, whatever Q. Runs on the device of ``queries``.

    Args:
        query_labels: (Q,) classes, integers or strings.
        gallery_labels: (G,) classes of the same kind.
        rows: the queries that are asked.
        offsets: added to the scores.
        leave_out_itself: queries and gallery are the same items; none is in the gallery of its own query.

    Yields:
        Different queries in every chunk, in the order of ``rows``; those without any relevant item are in none.

    Raises:
        FeatureError: scores of relevant items that overflow.
    """
    order, asked = _Asked.of(query_labels, gallery_labels, rows, leave_out_itself)
    if not len(asked):
        return
    strips = Strips(queries, gallery, asked.rows, order, similarity, offsets)
    at_a_time = max(1, CHUNK // len(gallery))
    for strip in range(len(strips)):
        scores = strips[strip]
        for start in range(0, len(scores), at_a_time):
            chunk = scores[start : start + at_a_time]
            first = strip * strips.height + start
            yield _relevant(chunk, asked[first : first + len(chunk)], similarity)


@dataclass(frozen=True)
class _Asked:
    """The A queries with a relevant item; those of query a stand at ``first[a] … stop[a] − 1`` of the gallery in the
    order of its classes, where the query itself, if it is to be left out, stands at ``itself[a]`` (else −1)."""

    rows: Int[np.ndarray, "A"]
    first: Int[np.ndarray, "A"]
    stop: Int[np.ndarray, "A"]
    itself: Int[np.ndarray, "A"]

    @classmethod
    def of(
        cls, query_labels: np.ndarray, gallery_labels: np.ndarray, rows: np.ndarray, leave_out_itself: bool
    ) -> tuple[np.ndarray, "_Asked"]:
        """The order of the gallery by class, and those of ``rows`` that have a relevant item in it."""
        _, codes = np.unique(np.concatenate([query_labels, gallery_labels]), return_inverse=True)
        of_queries, of_gallery = np.split(codes.reshape(-1), [len(query_labels)])
        order = np.argsort(of_gallery, kind="stable")
        first, stop = (np.searchsorted(of_gallery[order], of_queries[rows], side) for side in ("left", "right"))
        itself = np.argsort(order)[rows] if leave_out_itself else np.full(len(rows), -1)
        asked = cls(rows, first, stop, itself)
        return order, asked[asked.per_query > 0]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: slice | np.ndarray) -> "_Asked":
        return _Asked(self.rows[chosen], self.first[chosen], self.stop[chosen], self.itself[chosen])

    @property
    def per_query(self) -> Int[np.ndarray, "A"]:
        """R, number of relevant items of each query."""
        return self.stop - self.first - (self.itself >= 0)


class Strips:
    """Scores of the asked queries with the whole gallery, in strips of queries that share one buffer.

    Made of tiles of one shape, so that equal items score equally wherever they stand.
    """

    def __init__(
        self,
        queries: Float[Tensor, "Q E"],
        gallery: Float[Tensor, "G E"],
        rows: Int[np.ndarray, "A"],
        order: Int[np.ndarray, "G"],
        similarity: str,
        offsets: Offsets | None,
    ) -> None:
        device = queries.device
        dtype = torch.promote_types(torch.promote_types(queries.dtype, gallery.dtype), torch.float32)
        asked, ordered = torch.from_numpy(rows), torch.from_numpy(order)
        tallest = min(_TALLEST, STRIP // len(gallery) // 64 * 64)
        centre = common_centre(queries, gallery, similarity=similarity)
        self._queries = Blocks(queries, asked, max(64, tallest), similarity, device, dtype, centre)
        self._gallery = Blocks(gallery, ordered, GALLERY_BLOCK, similarity, device, dtype, centre)
        self._similarity = similarity
        self.height = self._queries.block_size
        self._tile = torch.empty(self.height, self._gallery.block_size, dtype=dtype, device=device)
        self._scores = torch.empty(self.height, len(gallery), dtype=dtype, device=device)
        self._added = None if offsets is None else offsets.gallery.to(self._scores)[ordered.to(device)]
        self._corrected = None if offsets is None else offsets.queries.to(device)[asked.to(device)]

    def __len__(self) -> int:
        return len(self._queries)

    @torch.inference_mode()
    def __getitem__(self, strip: int) -> Float[Tensor, "a G"]:
        """The strip's scores, which the next strip overwrites; columns are the gallery in the order of its classes."""
        rows = self._queries.rows_in(strip)
        query_block = self._queries[strip]
        with full_precision(self._scores.device):
            for block in range(len(self._gallery)):
                tile = score(query_block, self._gallery[block], self._similarity, out=self._tile)
                start, width = block * self._gallery.block_size, self._gallery.rows_in(block)
                self._scores[:rows, start : start + width] = self._correct(tile[:rows, :width], strip, start)
        return self._scores[:rows]

    def _correct(self, scores: Tensor, strip: int, column: int) -> Tensor:
        if self._added is None or self._corrected is None:
            return scores
        corrected = self._corrected[strip * self.height :][: len(scores), None]
        return torch.where(corrected, scores + self._added[column : column + scores.shape[1]], scores)


@torch.inference_mode()
def _relevant(scores: Float[Tensor, "a G"], asked: _Asked, similarity: str) -> Relevant:
    """The positions from the scores of some queries, which are overwritten."""
    first, stop, itself = (
        torch.from_numpy(part).to(scores.device)[:, None] for part in (asked.first, asked.stop, asked.itself)
    )
    columns = first + torch.arange(int((asked.stop - asked.first).max()), device=scores.device)
    present = (columns < stop) & (columns != itself)
    matches = scores.gather(1, columns.clamp(max=scores.shape[1] - 1)).masked_fill(~present, -torch.inf)
    _require_finite(matches[present], asked, similarity)
    _keep_others(scores, first, stop)
    ahead = scores.shape[1] - torch.searchsorted(_sort(scores), _sort(matches).flip(1))
    per_query = asked.per_query
    numbers = np.broadcast_to(np.arange(1, matches.shape[1] + 1), matches.shape)
    present_first = numbers <= per_query[:, None]  # matches are now sorted, what is not one behind them
    number = numbers[present_first]
    query = np.repeat(np.arange(len(asked)), per_query)
    return Relevant(asked.rows, query, number, number + ahead.cpu().numpy()[present_first], per_query)


def _keep_others(scores: Float[Tensor, "a G"], first: Int[Tensor, "a 1"], stop: Int[Tensor, "a 1"]) -> None:
    """Put the items of a query's own class behind all; an overflow (NaN) of another class stands before all matches."""
    column = torch.arange(scores.shape[1], device=scores.device)
    scores.nan_to_num_(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    scores.masked_fill_((column >= first) & (column < stop), -torch.inf)


def _require_finite(matches: Float[Tensor, "P"], asked: _Asked, similarity: str) -> None:
    overflown = int((~matches.isfinite()).sum())
    if overflown:
        raise FeatureError(
            f"{similarity} similarity leaves the range of {matches.dtype} for {overflown} of {len(matches)} matching "
            f"pairs, of queries {asked.rows[0]} to {asked.rows[-1]}: scale the embeddings down, or use "
            "similarity=cosine"
        )


def _sort(rows: Float[Tensor, "a n"]) -> Float[Tensor, "a n"]:
    """Each row ascending, in the same memory."""
    if rows.device.type == "cpu":
        rows.numpy().sort(axis=1)  # six times as fast as torch's, which sorts positions along
        return rows
    return rows.copy_(rows.sort(dim=1).values)
