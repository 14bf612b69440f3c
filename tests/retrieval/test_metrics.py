"""Metrics against sorted lists of one query at a time, and against scikit-learn-like hand-made examples."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodal.retrieval import metrics
from xmodal.retrieval.metrics import Queries, Relevant

scores_and_relevance = st.lists(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12).filter(
        lambda q: any(r for _, r in q)
    ),
    min_size=1,
    max_size=6,
)


def as_pairs(queries: list) -> tuple[np.ndarray, np.ndarray]:
    pairs = [
        (number, sum(other >= score for other, match in items if not match))
        for number, items in enumerate(queries)
        for score, relevant in items
        if relevant
    ]
    return np.array([q for q, _ in pairs]), np.array([a for _, a in pairs])


def ranked_relevance(items: list) -> list[bool]:
    """Best score first; of equal scores the matches last."""
    return [relevant for _, relevant in sorted(items, key=lambda item: (-item[0], item[1]))]


def by_hand(items: list) -> dict[str, float]:
    ranking = ranked_relevance(items)
    count = sum(ranking)
    precision = [sum(ranking[: p + 1]) / (p + 1) for p in range(len(ranking))]
    gains = [1 / math.log2(p + 2) for p in range(10)]
    return {
        "mAP": sum(v for v, hit in zip(precision, ranking, strict=True) if hit) / count,
        "mAP@R": sum(v for v, hit in zip(precision[:count], ranking[:count], strict=True) if hit) / count,
        "RPrecision": sum(ranking[:count]) / count,
        "nDCG": sum(g for g, hit in zip(gains, ranking, strict=False) if hit) / sum(gains[:count]),
    } | {f"fractional_R{k}": sum(ranking[:k]) / count for k in (1, 3, 12)}


@given(scores_and_relevance)
def test_agree_with_sorted_lists(queries: list) -> None:
    relevant = Relevant.from_pairs(*as_pairs(queries))
    expected = [by_hand(items) for items in queries]
    found = {
        "mAP": metrics.average_precision(relevant),
        "mAP@R": metrics.average_precision_at_r(relevant),
        "RPrecision": metrics.r_precision(relevant),
        "nDCG": metrics.ndcg(relevant, 10),
    } | {f"fractional_R{k}": metrics.fractional_recall(relevant, k) for k in (1, 3, 12)}
    for name, values in found.items():
        assert values == pytest.approx([100 * e[name] for e in expected]), name


@given(scores_and_relevance)
def test_best_rank_is_the_first_hit_of_a_sorted_list(queries: list) -> None:
    relevant = Relevant.from_pairs(*as_pairs(queries))
    assert metrics.best_rank(relevant).tolist() == [ranked_relevance(items).index(True) + 1 for items in queries]


def queries_with_ranks(ranks: list[int], folds: list[int] | None = None) -> Queries:
    """Queries with a single relevant item each; rank 0: none."""
    rows = np.flatnonzero(ranks)
    queries = Queries.from_relevant(Relevant.from_pairs(rows, np.array(ranks)[rows] - 1), np.arange(len(ranks)))
    return queries if folds is None else replace(queries, folds=np.array(folds))


def test_recall_counts_any_hit_and_leaves_out_queries_without_match() -> None:
    relevant = Relevant.from_pairs(np.array([0, 2, 3, 4]), np.array([0, 2, 4, 5]))
    found = Queries.from_relevant(relevant, np.arange(6), ks=(1, 2, 3)).metrics()
    assert [found[f"R{k}"] for k in (1, 2, 3, 5, 10)] == [25.0, 25.0, 50.0, 75.0, 100.0]
    assert (found["medR"], found["meanR"]) == (4.0, 3.75)


def test_figures_are_means_over_folds_of_the_means_within() -> None:
    found = queries_with_ranks([1, 1, 1, 0, 2, 20], folds=[0, 0, 0, 0, 1, 1]).metrics()
    assert (found["R1"], found["R5"], found["medR"], found["meanR"]) == (50.0, 75.0, 6.0, 6.0)


def test_rsum_is_the_sum_of_six_recalls() -> None:
    figures = metrics.named_figures({"i2t": queries_with_ranks([1, 1]), "t2i": queries_with_ranks([1, 5, 10, 11])})
    assert figures["rsum"] == 300 + 25 + 50 + 75
