"""Against exhaustive enumeration of all swaps, against the paired test, and Holm's procedure by hand."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from xmodal.reporting.significance import contest, contributions, not_rejected, p_against
from xmodal.retrieval.metrics import Queries, named_figures
from xmodal.retrieval.uncertainty import paired_test

FIGURES = ["i2t_R1", "i2t_R10", "t2i_R5", "t2i_mAP", "i2t_medR", "t2i_medR", "rsum"]


def swapped(one: Queries, other: Queries, images) -> Queries:
    """The queries of ``one``, those of some images taken from ``other``: query by query."""
    taken = [group in images for group in one.groups]
    ranks = np.array([b if take else a for a, b, take in zip(one.ranks, other.ranks, taken, strict=True)])
    values = {
        name: np.array([b if take else a for a, b, take in zip(v, other.values[name], taken, strict=True)])
        for name, v in one.values.items()
    }
    return Queries(ranks, values, one.groups, one.folds)


def exhaustive_p(one, other, figure: str, images: int) -> float:
    """Share of all 2^images swaps whose difference is as large as the observed one."""

    def difference(chosen) -> float:
        sides = ({way: swapped(a[way], b[way], chosen) for way in a} for a, b in ((one, other), (other, one)))
        first, second = (named_figures(queries)[figure] for queries in sides)
        return abs(first - second)

    observed = difference(())
    all_swaps = [[i for i, is_in in enumerate(row) if is_in] for row in product((0, 1), repeat=images)]
    return float(np.mean([difference(chosen) >= observed - 1e-9 for chosen in all_swaps]))


@pytest.mark.parametrize("figure", FIGURES)
def test_p_value_is_the_share_of_all_swaps(figure, evaluation):
    one, other = evaluation(0, 0.5, images=6).queries, evaluation(1, 0.25, images=6).queries
    [found] = p_against(one, [other], figure, swaps=20_000)
    expected = exhaustive_p(one, other, figure, 6)
    assert found == pytest.approx(expected, abs=4 * np.sqrt(0.25 / 20_000))


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("folds", [1, 4])
def test_agrees_with_the_paired_test_on_more_queries(figure, folds, evaluation):
    one, other = (
        {way: replace(side, folds=side.groups % folds) for way, side in evaluation(seed, skill, 60).queries.items()}
        for seed, skill in ((3, 0.11), (4, 0.09))
    )
    expected = paired_test(one, other, resamples=4000)[figure].p_value
    [found] = p_against(one, [other], figure, swaps=4000)
    assert found == pytest.approx(expected, abs=0.035)


@pytest.mark.parametrize("figure", [figure for figure in FIGURES if "medR" not in figure])
def test_contributions_add_up_to_the_figure(figure, evaluation):
    queries = {way: replace(side, folds=side.groups % 3) for way, side in evaluation(0, images=30).queries.items()}
    assert contributions(queries, figure).sum() == pytest.approx(named_figures(queries)[figure])


@pytest.mark.parametrize("figure", ["i2t_R5", "t2i_medR"])
def test_repeated_queries_weigh_as_one_another(figure, evaluation):
    """Three seeds against one: the same system three times over is the system itself."""
    one, other = evaluation(0, 0.2).queries, evaluation(1, 0.15).queries
    thrice = {
        way: Queries(
            np.tile(side.ranks, 3),
            {name: np.tile(values, 3) for name, values in side.values.items()},
            np.tile(side.groups, 3),
            np.tile(side.folds, 3),
        )
        for way, side in other.items()
    }
    assert p_against(one, [other], figure) == p_against(one, [thrice], figure)


def test_best_stands_alone_only_where_all_others_are_significantly_worse(evaluation):
    good, good_too, bad = evaluation(0, 0.5), evaluation(1, 0.5), evaluation(2, 0.02)
    systems = [bad.queries, good.queries, good_too.queries]
    values = [named_figures(queries)["t2i_R1"] for queries in systems]
    both = contest(systems, values, "t2i_R1")
    assert {both.best} | both.tied == {1, 2}
    alone = contest(systems[:2], values[:2], "t2i_R1")
    assert (alone.best, alone.tied) == (1, frozenset())
    assert alone.p_values[0] < 0.001


def test_less_is_better_for_median_ranks(evaluation):
    good, bad = evaluation(0, 0.5).queries, evaluation(1, 0.05).queries
    found = contest([bad, good], [named_figures(q)["t2i_medR"] for q in (bad, good)], "t2i_medR")
    assert (found.best, found.tied) == (1, frozenset())


def test_nothing_is_said_where_the_best_value_has_no_queries(evaluation):
    one, other = evaluation(0, 0.5).queries, evaluation(1, 0.1).queries
    assert contest([None, one, other], [99.0, 50.0, 10.0], "t2i_R1").best is None
    found = contest([None, one, other], [1.0, 50.0, 10.0], "t2i_R1")
    assert (found.best, set(found.p_values)) == (1, {2})
    assert contest([one, None], [50.0, None], "t2i_R1").best is None


def test_equal_systems_are_tied(evaluation):
    same = evaluation(0).queries
    found = contest([same, same], [10.0, 10.0], "i2t_R1")
    assert (found.best, found.tied, found.p_values) == (0, frozenset({1}), {1: 1.0})


def test_holm_by_hand():
    assert not_rejected({0: 0.01, 1: 0.02, 2: 0.049}) == frozenset()  # against 0.05/3, 0.05/2, 0.05
    assert not_rejected({0: 0.01, 1: 0.03, 2: 0.04}) == {1, 2}  # 0.03 > 0.025, and whatever comes behind
    assert not_rejected({0: 0.02, 1: 0.001, 2: 0.9}) == {2}
    assert not_rejected({}) == frozenset()
