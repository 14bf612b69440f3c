"""Retrieval metrics, as pure functions of ranks and of the positions of relevant items.

Ranks and positions are 1-based. A rank of 0 marks a query without any match; it takes no part in any figure.
Where several items are relevant, the r-th best of them stands at position ``r +`` the number of non-relevant
items that score at least as high: ties count against the model.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


def best_ranks(queries: Int[np.ndarray, "P"], ahead: Int[np.ndarray, "P"], query_count: int) -> Int[np.ndarray, "Q"]:
    """Rank of the best true match of each query: ``1 + min`` of ``ahead`` over its pairs; 0 where it has none.

    Args:
        queries: the query of each true pair, in 0 … query_count − 1.
        ahead: number of non-matching items that score at least as high as the pair.
        query_count: Q.
    """
    none = np.iinfo(np.int64).max
    best = np.full(query_count, none, dtype=np.int64)
    np.minimum.at(best, queries, ahead)
    return np.where(best == none, 0, best + 1)


def recall(ranks: Int[np.ndarray, "Q"], k: int) -> float:
    """Recall@K, any hit, in percent: queries with at least one match among the first K."""
    found = ranks[ranks > 0]
    return float(100.0 * np.mean(found <= k))


def median_rank(ranks: Int[np.ndarray, "Q"]) -> float:
    """Median of the ranks of the best match (the mean of the two middle ones for an even number)."""
    return float(np.median(ranks[ranks > 0]))


def mean_rank(ranks: Int[np.ndarray, "Q"]) -> float:
    """Mean of the ranks of the best match."""
    return float(np.mean(ranks[ranks > 0]))


def rsum(i2t_ranks: Int[np.ndarray, "N"], t2i_ranks: Int[np.ndarray, "M"]) -> float:
    """Sum of recall@1, @5 and @10 of both directions: 0 … 600."""
    return sum(recall(ranks, k) for ranks in (i2t_ranks, t2i_ranks) for k in (1, 5, 10))


@dataclass(frozen=True)
class Relevant:
    """The P relevant items of Q queries, query by query and best first.

    Attributes:
        query: number of the query, in 0 … Q − 1, ascending.
        number: r, counting the relevant items of a query from 1.
        position: where the item stands in the full ranking.
        per_query: R, number of relevant items of each query.
    """

    query: Int[np.ndarray, "P"]
    number: Int[np.ndarray, "P"]
    position: Int[np.ndarray, "P"]
    per_query: Int[np.ndarray, "Q"]

    @classmethod
    def from_pairs(cls, queries: Int[np.ndarray, "P"], ahead: Int[np.ndarray, "P"]) -> "Relevant":
        """From the query of each true pair (any numbers) and the non-matching items that stand before it."""
        order = np.lexsort((ahead, queries))
        _, query, per_query = np.unique(queries[order], return_inverse=True, return_counts=True)
        number = 1 + np.arange(len(order)) - np.repeat(np.cumsum(per_query) - per_query, per_query)
        return cls(query, number, number + ahead[order], per_query)

    def sum(self, values: Float[np.ndarray, "P"]) -> Float[np.ndarray, "Q"]:
        """Sum of ``values`` over the relevant items of each query."""
        return np.bincount(self.query, weights=values, minlength=len(self.per_query))


def mean_average_precision(relevant: Relevant) -> float:
    """mAP over the full ranking, in percent: mean over queries of ``1/R · Σ_r r / position_r``."""
    precision = relevant.number / relevant.position
    return float(100.0 * np.mean(relevant.sum(precision) / relevant.per_query))


def map_at_r(relevant: Relevant) -> float:
    """mAP@R, in percent: ``1/R · Σ r / position_r`` over the relevant items at positions up to R.

    Musgrave et al., A Metric Learning Reality Check, ECCV 2020.
    """
    within = relevant.position <= relevant.per_query[relevant.query]
    precision = np.where(within, relevant.number / relevant.position, 0.0)
    return float(100.0 * np.mean(relevant.sum(precision) / relevant.per_query))


def r_precision(relevant: Relevant) -> float:
    """R-Precision, in percent: share of relevant items among the first R."""
    within = relevant.position <= relevant.per_query[relevant.query]
    return float(100.0 * np.mean(relevant.sum(within.astype(np.float64)) / relevant.per_query))


def ndcg(relevant: Relevant, k: int = 10) -> float:
    """nDCG@K with binary relevance, in percent: ``Σ_{position ≤ K} 1/log2(1 + position)`` over its largest value.

    Järvelin and Kekäläinen, ACM TOIS 20(4), 2002.
    """
    gain = np.where(relevant.position <= k, 1.0 / np.log2(1.0 + relevant.position), 0.0)
    ideal = np.where(relevant.number <= k, 1.0 / np.log2(1.0 + relevant.number), 0.0)
    return float(100.0 * np.mean(relevant.sum(gain) / relevant.sum(ideal)))
