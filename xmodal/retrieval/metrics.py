"""Retrieval metrics, as pure functions of the positions of relevant items, one value per query.

Ranks and positions are 1-based. Where several items are relevant, the r-th best of them stands at position ``r +`` the
number of non-relevant items that score at least as high: ties count against the model. A rank of 0 marks a query
without any match, which takes no part in any figure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

NDCG_AT = 10


@dataclass(frozen=True)
class Relevant:
    """The P relevant items of those queries that have any, query by query and best first.

    Attributes:
        queries: the C queries with a relevant item, ascending.
        query: index into ``queries`` of each relevant item, ascending.
        number: r, counting the relevant items of a query from 1.
        position: where the item stands in the full ranking.
        per_query: R, number of relevant items of each of the C queries.
    """

    queries: Int[np.ndarray, "C"]
    query: Int[np.ndarray, "P"]
    number: Int[np.ndarray, "P"]
    position: Int[np.ndarray, "P"]
    per_query: Int[np.ndarray, "C"]

    @classmethod
    def from_pairs(cls, queries: Int[np.ndarray, "P"], ahead: Int[np.ndarray, "P"]) -> "Relevant":
        """From the query of each true pair (any numbers) and the non-matching items that stand before it."""
        order = np.lexsort((ahead, queries))
        present, query, per_query = np.unique(queries[order], return_inverse=True, return_counts=True)
        number = 1 + np.arange(len(order)) - np.repeat(np.cumsum(per_query) - per_query, per_query)
        return cls(present, query.reshape(-1), number, number + ahead[order], per_query)

    def sum(self, values: Float[np.ndarray, "P"]) -> Float[np.ndarray, "C"]:
        """Sum of ``values`` over the relevant items of each query."""
        return np.bincount(self.query, weights=values, minlength=len(self.per_query)).astype(np.float64, copy=False)


def best_rank(relevant: Relevant) -> Int[np.ndarray, "C"]:
    """Where the best relevant item of each query stands."""
    return relevant.position[relevant.number == 1]


def hit(rank: Int[np.ndarray, "C"], k: int) -> Float[np.ndarray, "C"]:
    """Recall@K, any hit, in percent: 100 where a match is among the first K, else 0."""
    return np.where(rank <= k, 100.0, 0.0)


def fractional_recall(relevant: Relevant, k: int) -> Float[np.ndarray, "C"]:
    """Share of the R relevant items that are among the first K, in percent; at most ``100·K/R``.

    What information retrieval calls recall@K. With five captions an image, image→text @1 can't exceed 20.
    """
    return 100.0 * relevant.sum((relevant.position <= k).astype(np.float64)) / relevant.per_query


def average_precision(relevant: Relevant) -> Float[np.ndarray, "C"]:
    """Average precision over the full ranking, in percent: ``1/R · Σ_r r / position_r``."""
    return 100.0 * relevant.sum(relevant.number / relevant.position) / relevant.per_query


def average_precision_at_r(relevant: Relevant) -> Float[np.ndarray, "C"]:
    """mAP@R's term, in percent: ``1/R · Σ r / position_r`` over the relevant items at positions up to R.

    Musgrave et al., A Metric Learning Reality Check, ECCV 2020.
    """
    within = relevant.position <= relevant.per_query[relevant.query]
    return 100.0 * relevant.sum(np.where(within, relevant.number / relevant.position, 0.0)) / relevant.per_query


def r_precision(relevant: Relevant) -> Float[np.ndarray, "C"]:
    """R-Precision, in percent: share of relevant items among the first R."""
    within = relevant.position <= relevant.per_query[relevant.query]
    return 100.0 * relevant.sum(within.astype(np.float64)) / relevant.per_query


def ndcg(relevant: Relevant, k: int = NDCG_AT) -> Float[np.ndarray, "C"]:
    """nDCG@K with binary relevance, in percent: ``Σ_{position ≤ K} 1/log2(1 + position)`` over its largest value.

    Järvelin and Kekäläinen, ACM TOIS 20(4), 2002.
    """
    gain = np.where(relevant.position <= k, 1.0 / np.log2(1.0 + relevant.position), 0.0)
    ideal = np.where(relevant.number <= k, 1.0 / np.log2(1.0 + relevant.number), 0.0)
    return 100.0 * relevant.sum(gain) / relevant.sum(ideal)


def values_by_name(relevant: Relevant, ks: Sequence[int] = (1, 5, 10)) -> dict[str, Float[np.ndarray, "C"]]:
    """Every metric that is a mean over queries, by its name without the direction: the value of each query.

    Recall is given at every K of ``ks``, and at 1, 5 and 10, which rsum needs.
    """
    rank = best_rank(relevant)
    ks = sorted({1, 5, 10, *ks})
    return (
        {f"R{k}": hit(rank, k) for k in ks}
        | {f"fractional_R{k}": fractional_recall(relevant, k) for k in ks}
        | {
            "meanR": rank.astype(np.float64),
            "mAP": average_precision(relevant),
            "mAP@R": average_precision_at_r(relevant),
            "RPrecision": r_precision(relevant),
            f"nDCG@{NDCG_AT}": ndcg(relevant),
        }
    )


_NONE = Relevant(*np.zeros((5, 0), dtype=np.int64))


@dataclass(frozen=True)
class Queries:
    """The Q queries of one direction: rank, value of every metric, and what they are resampled by.

    Attributes:
        ranks: rank of the best match; 0 where a query has none, or was not asked.
        values: metric name without direction → value of each query (0 where the rank is 0).
        groups: the image that each query belongs to, by its id: captions of an image are resampled together.
        folds: the fold that each query was ranked in; figures are means over folds of the means within each.
    """

    ranks: Int[np.ndarray, "Q"]
    values: dict[str, Float[np.ndarray, "Q"]]
    groups: np.ndarray
    folds: Int[np.ndarray, "Q"]

    @classmethod
    def from_relevant(cls, relevant: Relevant, groups: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> "Queries":
        """From the relevant items of some of the queries; ``groups`` has an entry for every query."""
        return cls.from_chunks([relevant], groups, ks)

    @classmethod
    def from_chunks(cls, chunks: Iterable[Relevant], groups: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> "Queries":
        """From the relevant items of different queries, a chunk at a time: never all of them at once."""
        ranks = np.zeros(len(groups), dtype=np.int64)
        values = {name: np.zeros(len(groups)) for name in values_by_name(_NONE, ks)}
        for relevant in chunks:
            ranks[relevant.queries] = best_rank(relevant)
            for name, found in values_by_name(relevant, ks).items():
                values[name][relevant.queries] = found
        return cls(ranks, values, groups, np.zeros(len(groups), dtype=np.int64))

    @property
    def matched(self) -> Bool[np.ndarray, "Q"]:
        """The queries that take part: those with a match."""
        return self.ranks > 0

    def metrics(self) -> dict[str, float]:
        """The figures of this direction: the mean of each value and the median rank, averaged over folds."""
        folds = [self.matched & (self.folds == fold) for fold in np.unique(self.folds[self.matched])]
        means = {name: float(np.mean([v[fold].mean() for fold in folds])) for name, v in self.values.items()}
        return means | {"medR": float(np.mean([np.median(self.ranks[fold]) for fold in folds]))}


def named_figures(queries: Mapping[str, Queries]) -> dict[str, float]:
    """``i2t_R1`` … of every direction (``i2t``, ``t2i`` and, by class, ``i2i``, ``t2t``), and ``rsum``."""
    figures = {f"{way}_{name}": value for way, side in queries.items() for name, value in side.metrics().items()}
    return figures | {"rsum": rsum(figures)}


def rsum(figures: Mapping[str, float]) -> float:
    """Sum of recall@1, @5 and @10 of both directions between images and texts: 0 … 600."""
    return sum(figures[f"{way}_R{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10))
