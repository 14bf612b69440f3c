"""Values of a setting, two by two."""

from itertools import combinations

import pytest

from xmodal.reporting.groups import groups_of
from xmodal.reporting.pairs import pair_tables
from xmodal.reporting.runs import find_runs
from xmodal.retrieval.uncertainty import paired_test


def tables(root):
    [group] = groups_of(find_runs([root]))
    return {table.name: table for table in pair_tables(group)}


def test_every_two_values_are_compared_over_the_other_settings(make_run):
    skills = {"mean": 0.1, "sum": 0.1, "lstm": 0.4}
    for size in (64, 128):
        for i, (way, skill) in enumerate(skills.items()):
            settings = {"embedding_dim": size, "text_aggregator": way}
            make_run(f"{way}-{size}", settings, skill, draw=size + i, images=200)
    found = tables(make_run.root)
    assert set(found) == {"made-up-test_pairs_text_aggregator", "made-up-test_pairs_embedding_dim"}
    table = found["made-up-test_pairs_text_aggregator"]
    rows = [tuple(cell.value for cell in row) for row in table.rows]
    expected = list(combinations(["lstm", "mean", "sum"], 2))
    ways = ("Image → text", "Text → image")
    assert [row[:3] for row in rows] == [(way, *pair) for way in ways for pair in expected]
    for _, one, other, first, second, difference, p, significant in rows:
        assert difference == pytest.approx(first - second)
        assert significant == ("yes" if "lstm" in (one, other) else "no")
        assert (p < 0.01) == (significant == "yes")
    assert table.notes[0] == "R@1: mean over 2 values of embedding size."


def test_p_is_that_of_comparing_the_two_runs(make_run):
    for i, way in enumerate(("mean", "sum")):
        make_run(way, {"text_aggregator": way}, 0.2 + 0.02 * i, draw=i, images=200)
    [table] = tables(make_run.root).values()
    mean, total = sorted(find_runs([make_run.root]), key=lambda run: run.name)
    for way, row in zip(("i2t", "t2i"), table.rows, strict=True):
        oracle = paired_test(total.evaluation.queries, mean.evaluation.queries, 20_000, seed=3)[f"{way}_R1"]
        assert row[6].value == pytest.approx(oracle.p_value, abs=0.03)
        assert row[5].value == pytest.approx(mean.figure(f"{way}_R1") - total.figure(f"{way}_R1"))


def test_runs_without_queries_are_not_compared(make_run):
    for i, way in enumerate(("mean", "sum")):
        make_run(way, {"text_aggregator": way}, 0.1 + 0.3 * i, keep_queries=False)
    assert tables(make_run.root) == {}
