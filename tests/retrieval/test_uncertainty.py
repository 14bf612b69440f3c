"""Intervals and tests against lists that are really resampled, swapped and sorted, and against known truths."""

import statistics
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from xmodal.errors import ConfigError, DataError
from xmodal.retrieval import uncertainty
from xmodal.retrieval.evaluate import evaluate_retrieval
from xmodal.retrieval.metrics import Queries, Relevant, named_figures
from xmodal.retrieval.uncertainty import bootstrap_intervals, distribution, folds_of, paired_test, resample

NAMES = ("R1", "R5", "R10", "meanR", "mAP")


def of_ranks(ranks: Sequence[int], groups: Sequence, folds: Sequence[int] | None = None) -> Queries:
    """Queries with one relevant item each; rank 0: none."""
    rows = np.flatnonzero(ranks)
    relevant = Relevant.from_pairs(rows, np.asarray(ranks)[rows] - 1)
    queries = Queries.from_relevant(relevant, np.asarray(groups))
    values = {name: queries.values[name] for name in NAMES}
    return replace(queries, values=values, folds=np.zeros(len(ranks), int) if folds is None else np.asarray(folds))


def directions(seed: int, captions: Sequence[int], folds: int = 1, largest: int = 30) -> dict[str, Queries]:
    """Ranks at random: one per image that has captions, one per caption; the captions in any order."""
    random = np.random.default_rng(seed)
    ids = random.permutation(len(captions)) + 100
    text_ids = random.permutation(np.repeat(ids, captions))
    fold_of = {int(image): row % folds for row, image in enumerate(ids)}
    i2t = random.integers(1, largest, len(ids)) * (np.array(captions) > 0)
    t2i = random.integers(1, largest, len(text_ids))
    return {
        "i2t": of_ranks(i2t, ids, [fold_of[int(i)] for i in ids]),
        "t2i": of_ranks(t2i, text_ids, [fold_of[int(i)] for i in text_ids]),
    }


def naive_figures(queries: dict[str, Queries], drawn: dict[int, list]) -> dict[str, float]:
    """Figures of lists into which the queries of each image went as often as the image was drawn, fold by fold."""
    figures = {}
    for way, side in queries.items():
        rows_of_folds = []
        for fold, images in drawn.items():
            of_image = {
                image: [r for r, g in enumerate(side.groups) if g == image and side.folds[r] == fold and side.ranks[r]]
                for image in set(images)
            }
            rows_of_folds.append([row for image in images for row in of_image[image]])
        for name, values in side.values.items():
            figures[f"{way}_{name}"] = statistics.mean(
                statistics.mean(float(values[row]) for row in rows) for rows in rows_of_folds
            )
        figures[f"{way}_medR"] = statistics.mean(
            statistics.median(int(side.ranks[row]) for row in rows) for rows in rows_of_folds
        )
    figures["rsum"] = sum(figures[f"{way}_R{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10))
    return figures


def clusters(queries: dict[str, Queries], fold: int) -> list:
    """The images that can be drawn in a fold, ascending."""
    found = {
        g.item()
        for s in queries.values()
        for g, f, r in zip(s.groups, s.folds, s.ranks, strict=True)
        if r and f == fold
    }
    return sorted(found)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 9999),
    captions=st.lists(st.integers(0, 7), min_size=3, max_size=12).filter(lambda counts: min(counts[:3]) > 0),
    folds=st.integers(1, 3),
)
def test_figures_of_a_draw_are_those_of_lists_really_resampled(seed: int, captions: list[int], folds: int) -> None:
    queries, random = directions(seed, captions, folds), np.random.default_rng(seed)
    weights, draws = [], [{} for _ in range(4)]
    for fold in range(folds):
        images = clusters(queries, fold)
        chosen = random.integers(0, len(images), (4, len(images)))
        weights.append(np.stack([np.bincount(row, minlength=len(images)) for row in chosen], axis=1).astype(float))
        for draw, row in zip(draws, chosen, strict=True):
            draw[fold] = [images[i] for i in row]
    given_weights = iter(weights)
    found = distribution(folds_of(queries), 4, lambda fold, size: fold.figures(next(given_weights)))
    for number, draw in enumerate(draws):
        expected = naive_figures(queries, draw)
        assert {name: values[number] for name, values in found.items()} == pytest.approx(expected)


def test_intervals_have_the_names_of_the_figures_and_hold_them() -> None:
    random = np.random.default_rng(0)
    image, ids = random.normal(size=(60, 8)), np.arange(60)
    text = np.repeat(image, 3, axis=0) + random.normal(size=(180, 8))
    for labels in (None, ids % 7):
        queries = evaluate_retrieval(image, text, ids, np.repeat(ids, 3), image_labels=labels).queries
        figures, intervals = named_figures(queries), bootstrap_intervals(queries, 300)
        assert list(intervals) == list(figures)
        assert ("i2i_mAP" in intervals) == (labels is not None)
        assert all(low <= figures[name] <= high for name, (low, high) in intervals.items())
        assert intervals["rsum"][0] < figures["rsum"] < intervals["rsum"][1]


def test_ends_are_percentiles_of_the_distribution() -> None:
    queries = directions(0, [5] * 50)
    random = np.random.default_rng(7)
    [fold] = folds_of(queries)
    drawn = fold.figures(resample(fold.counts, 400, random))
    for name, values in drawn.items():
        expected = np.percentile(values, 2.5), np.percentile(values, 97.5)
        assert bootstrap_intervals(queries, 400, seed=7)[name] == pytest.approx(expected)


def test_one_fold_after_another_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    queries = directions(1, [2] * 40, folds=4)
    expected = bootstrap_intervals(queries, 50, seed=3)
    monkeypatch.setattr(uncertainty, "_CHUNK", 300)
    assert bootstrap_intervals(queries, 50, seed=3) == expected


def test_the_seed_decides_and_the_order_of_queries_does_not() -> None:
    queries = directions(2, [1, 2, 3, 4, 5] * 8)
    expected = bootstrap_intervals(queries, 200, seed=1)
    assert bootstrap_intervals(queries, 200, seed=1) == expected
    assert bootstrap_intervals(queries, 200, seed=2) != expected
    shuffled = {}
    for way, side in queries.items():
        order = np.random.default_rng(0).permutation(len(side.ranks))
        values = {name: found[order] for name, found in side.values.items()}
        shuffled[way] = Queries(side.ranks[order], values, side.groups[order], side.folds[order])
    found = bootstrap_intervals(shuffled, 200, seed=1)
    assert list(found) == list(expected)
    assert list(found.values()) == [pytest.approx(ends) for ends in expected.values()]


def test_names_of_images_do_not_change_the_widths() -> None:
    queries = directions(3, [3] * 200)
    renamed = {
        way: replace(side, groups=np.array([f"{(int(g) * 7919) % 1009:x}.jpg" for g in side.groups]))
        for way, side in queries.items()
    }
    widths = [
        {name: high - low for name, (low, high) in bootstrap_intervals(side, 2000).items()}
        for side in (queries, renamed)
    ]
    assert widths[0]["rsum"] == pytest.approx(widths[1]["rsum"], rel=0.1)
    assert widths[0]["t2i_mAP"] == pytest.approx(widths[1]["t2i_mAP"], rel=0.1)


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    random = np.random.default_rng(4)
    ranks = random.integers(1, 100, 2000)
    queries = {way: of_ranks(ranks, np.arange(2000)) for way in ("i2t", "t2i")}
    low, high = bootstrap_intervals(queries, 4000)["i2t_meanR"]
    error = 1.96 * ranks.std() / np.sqrt(2000)
    assert (low, high) == (pytest.approx(ranks.mean() - error, abs=0.1), pytest.approx(ranks.mean() + error, abs=0.1))


def test_clustered_intervals_cover_the_truth_where_captions_of_an_image_fail_together() -> None:
    random, truth, repetitions = np.random.default_rng(5), 50.0, 200
    covered = {"clustered": 0, "single": 0}
    for repetition in range(repetitions):
        ease = random.beta(0.5, 0.5, 60)  # of each image: its captions are found nearly all, or hardly any; mean 1/2
        ranks = np.where(random.random((60, 5)) < ease[:, None], 1, 20).reshape(-1)
        for kind, groups in {"clustered": np.repeat(np.arange(60), 5), "single": np.arange(300)}.items():
            queries = {way: of_ranks(ranks, groups) for way in ("i2t", "t2i")}
            low, high = bootstrap_intervals(queries, 200, seed=repetition)["t2i_R1"]
            covered[kind] += low <= truth <= high
    assert 0.90 <= covered["clustered"] / repetitions <= 0.99
    assert covered["single"] / repetitions < 0.85


def test_every_draw_has_a_query_in_every_direction() -> None:
    """Half of the images are queries in one direction alone: a quarter of plain draws of two would lack one."""
    queries = {"i2t": of_ranks([1, 3, 0], [0, 1, 2]), "t2i": of_ranks([2, 9, 4], [2, 3, 2])}
    [fold] = folds_of(queries)
    weights = resample(fold.counts, 2000, np.random.default_rng(0))
    assert (weights.sum(axis=0) == 4).all()
    assert (weights[:2].sum(axis=0) > 0).all()
    assert (weights[2:].sum(axis=0) > 0).all()
    assert all(np.isfinite(ends).all() for ends in bootstrap_intervals(queries, 2000).values())


def test_draws_are_multinomial() -> None:
    weights = resample(np.ones((1, 5)), 40_000, np.random.default_rng(0))
    assert weights.mean(axis=1) == pytest.approx(np.ones(5), abs=0.02)
    assert weights.var(axis=1) == pytest.approx(np.full(5, 0.8), abs=0.03)
    assert np.cov(weights)[0, 1] == pytest.approx(-0.2, abs=0.03)


def test_equal_runs_do_not_differ() -> None:
    queries = directions(6, [5] * 30, folds=3)
    for name, found in paired_test(queries, queries, 200).items():
        assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0), name
        assert found.first == found.second == named_figures(queries)[name]


def test_a_clear_difference_is_significant() -> None:
    worse = directions(7, [5] * 80)
    better = {
        way: replace(of_ranks(np.maximum(1, side.ranks - 9), side.groups), folds=side.folds)
        for way, side in worse.items()
    }
    found = paired_test(worse, better, 999)
    assert found["rsum"].difference > 0
    assert found["rsum"].low > 0
    assert found["rsum"].p_value == 0.001
    assert found["t2i_medR"].difference == pytest.approx(-9, abs=1)
    assert found["t2i_medR"].high < 0
    assert found["t2i_medR"].p_value < 0.05
    back = paired_test(better, worse, 999)
    assert back["rsum"].difference == -found["rsum"].difference
    assert (back["rsum"].low, back["rsum"].high) == pytest.approx((-found["rsum"].high, -found["rsum"].low))


def test_p_values_are_those_of_scipy_on_independent_queries() -> None:
    random = np.random.default_rng(8)
    before, after = random.integers(1, 40, 60), random.integers(1, 34, 60)
    sides = [{way: of_ranks(ranks, np.arange(60)) for way in ("i2t", "t2i")} for ranks in (before, after)]
    found = paired_test(*sides, 20_000)["i2t_mAP"]
    values = [side["i2t"].values["mAP"] for side in sides]
    expected = stats.permutation_test(
        values, lambda x, y, axis: np.mean(y - x, axis=axis), permutation_type="samples", n_resamples=20_000, rng=0
    )
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.015)
    assert found.p_value == pytest.approx(stats.ttest_rel(*values).pvalue, abs=0.03)
    assert 0.01 < found.p_value < 0.99
    error = 1.96 * np.std(values[1] - values[0]) / np.sqrt(60)
    assert (found.low, found.high) == pytest.approx((found.difference - error, found.difference + error), abs=0.5)


def test_few_images_are_swapped_in_every_way() -> None:
    """Three images with 1 to 3 captions: the eight swaps, enumerated on lists."""
    queries = [directions(seed, [1, 2, 3], largest=15) for seed in (0, 0)]
    other = {way: of_ranks((side.ranks * 7) % 13 + 1, side.groups) for way, side in queries[0].items()}
    images = clusters(queries[0], 0)
    observed, swapped = {}, {name: [] for name in named_figures(queries[0])}
    for number in range(8):
        swap = {image: bool(number >> bit & 1) for bit, image in enumerate(images)}
        systems = []
        for pair in ((queries[0], other), (other, queries[0])):
            ranks = {
                way: [pair[swap[g.item()]][way].ranks[row] for row, g in enumerate(side.groups)]
                for way, side in queries[0].items()
            }
            systems.append(naive_figures({w: of_ranks(r, other[w].groups) for w, r in ranks.items()}, {0: images}))
        difference = {name: systems[1][name] - systems[0][name] for name in systems[0]}
        observed = observed or difference
        for name, value in difference.items():
            swapped[name].append(value)
    for name, found in paired_test(queries[0], other, 20_000).items():
        expected = np.mean([abs(value) >= abs(observed[name]) - 1e-9 for value in swapped[name]])
        assert found.difference == pytest.approx(observed[name])
        assert found.p_value == pytest.approx(expected, abs=0.02), name


def test_p_values_are_uniform_where_nothing_differs() -> None:
    random = np.random.default_rng(9)
    p_values = []
    for repetition in range(150):
        ease = random.normal(size=(40, 1))
        ranks = [np.exp(ease + random.normal(size=(40, 3)) + 1).astype(int).reshape(-1) + 1 for _ in range(2)]
        sides = [{way: of_ranks(r, np.repeat(np.arange(40), 3)) for way in ("i2t", "t2i")} for r in ranks]
        p_values.append(paired_test(*sides, 99, seed=repetition)["t2i_mAP"].p_value)
    assert 0.01 <= np.mean(np.array(p_values) <= 0.05) <= 0.1
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.06)


def test_only_figures_of_both_are_compared() -> None:
    queries = directions(10, [2] * 10)
    fewer = {way: replace(side, values={n: side.values[n] for n in NAMES[:3]}) for way, side in queries.items()}
    expected = {f"{way}_{name}" for way in ("i2t", "t2i") for name in ("R1", "R5", "R10", "medR")} | {"rsum"}
    assert set(paired_test(queries, fewer, 40)) == set(paired_test(fewer, queries, 40)) == expected


def test_the_paired_test_is_the_same_in_chunks_and_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = directions(11, [2] * 30), directions(11, [2] * 30, largest=40)
    expected = paired_test(first, second, 100, seed=5)
    assert paired_test(first, second, 100, seed=5) == expected
    assert paired_test(first, second, 100, seed=6) != expected
    monkeypatch.setattr(uncertainty, "_CHUNK", 800)
    assert paired_test(first, second, 100, seed=5) == expected


BASE = {"i2t": of_ranks([1, 2, 3], [7, 8, 9]), "t2i": of_ranks([4, 5, 6], [7, 8, 9])}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"t2t": of_ranks([1], [7])}, r"the first has i2t, t2i, the second i2t, t2i, t2t\. .*same split"),
        ({"t2i": of_ranks([4, 5], [7, 8])}, r"t2i has 3 queries in the first, 2 in the second"),
        (
            {"t2i": of_ranks([4, 5, 6], [7, 10, 9])},
            r"t2i, query 1 \(image 8\): the image of the query is 8 in the first, 10 in the second; 1 of 3 queries",
        ),
        (
            {"i2t": of_ranks([1, 2, 3], ["7", "8", "9"])},
            r"i2t, query 0 \(image 7\): .* 7 in the first, '7' in the second; 3 of 3 queries",
        ),
        ({"t2i": of_ranks([4, 0, 0], [7, 8, 9])}, r"query 1 .* has a match: True in the first, False .*; 2 of 3"),
        ({"i2t": of_ranks([1, 2, 3], [7, 8, 9], [0, 0, 1])}, r"query 2 .* fold of the query is 0 .*, 1 in the second"),
    ],
)
def test_other_queries_are_not_compared(changed: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        paired_test(BASE, BASE | changed)


def test_too_few_resamples() -> None:
    for call in (lambda: bootstrap_intervals(BASE, 39), lambda: paired_test(BASE, BASE, -3)):
        with pytest.raises(ConfigError, match=r"resamples must be at least 40 for a 95 % interval, found (39|-3)"):
            call()


def test_a_direction_without_match_is_an_error() -> None:
    with pytest.raises(DataError, match="t2i: not one of 3 queries has a match"):
        bootstrap_intervals(BASE | {"t2i": of_ranks([0, 0, 0], [7, 8, 9])}, 40)


def test_an_image_in_two_folds_is_an_error() -> None:
    apart = {way: replace(side, folds=np.array([0, 0, 1])) for way, side in BASE.items()}
    apart["t2i"] = replace(apart["t2i"], folds=np.array([0, 1, 1]))
    with pytest.raises(DataError, match=r"those of image 8 lie in folds 0, 1 \(1 such images\)"):
        bootstrap_intervals(apart, 40)


def test_a_single_image_gives_no_interval() -> None:
    assert bootstrap_intervals({"i2t": of_ranks([3, 0], [7, 8]), "t2i": of_ranks([2, 9], [7, 7])}, 40) == {}
    result = evaluate_retrieval(np.eye(1), np.eye(2)[:, :1], [7], [7, 7], bootstrap=40)
    assert result.intervals == {}


def test_a_direction_with_a_single_image_in_a_fold_gives_no_interval() -> None:
    queries = {"i2t": of_ranks([3, 0, 0], [7, 8, 9]), "t2i": of_ranks([2, 9, 1], [7, 8, 9])}
    found = bootstrap_intervals(queries, 40)
    assert set(found) == {f"t2i_{name}" for name in queries["t2i"].metrics()}
    folded = {"i2t": of_ranks([3, 1, 2, 4], [6, 7, 8, 9]), "t2i": of_ranks([2, 9, 1, 0], [6, 7, 8, 9], [0, 0, 1, 1])}
    folded["i2t"] = replace(folded["i2t"], folds=np.array([0, 0, 1, 1]))
    assert set(bootstrap_intervals(folded, 40)) == {f"i2t_{name}" for name in folded["i2t"].metrics()}
