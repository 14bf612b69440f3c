"""What is brought together: seeds of one setting, runs of one set of queries."""

import statistics

import numpy as np
import pytest

from xmodal.reporting.groups import groups_of, left_out
from xmodal.reporting.replicates import replicates_of
from xmodal.reporting.runs import find_runs
from xmodal.reporting.swept import swept_keys


def rows_of(make_run):
    runs = find_runs([make_run.root])
    return replicates_of(runs, swept_keys(runs))


def test_runs_that_differ_in_seed_alone_are_one_row_with_mean_and_deviation(make_run):
    for number, seed in enumerate((3, 1, 2)):
        make_run(f"{number}", {"embedding_dim": 64}, seed=seed, draw=seed)
    make_run("other", {"embedding_dim": 128})
    rows, notes = rows_of(make_run)
    assert [[run.name for run in row.runs] for row in rows] == [["1", "2", "0"], ["other"]]
    assert notes == []
    values = [run.metrics["test/t2i_R5"] for run in rows[0].runs]
    found = rows[0].figure("t2i_R5")
    assert found.value == pytest.approx(sum(values) / 3)
    assert found.sd == pytest.approx(statistics.stdev(values))
    assert found.low < found.value < found.high
    assert rows[1].figure("t2i_R5").sd is None
    assert rows[0].loss("val/loss").sd == 0


def test_the_joined_queries_of_seeds_have_the_mean_of_their_figures(make_run):
    for seed in range(3):
        make_run(f"{seed}", seed=seed, draw=seed, skill=0.05 * (1 + seed))
    [row], _ = rows_of(make_run)
    for way in ("i2t", "t2i"):
        expected = np.mean([run.evaluation.queries[way].metrics()["mAP"] for run in row.runs])
        assert row.queries[way].metrics()["mAP"] == pytest.approx(expected)


def test_a_single_run_keeps_the_interval_that_it_wrote(make_run):
    make_run("one")
    [row], _ = rows_of(make_run)
    metrics = row.runs[0].metrics
    found = row.figure("i2t_mAP")
    assert (found.low, found.high) == (metrics["test/i2t_mAP_low"], metrics["test/i2t_mAP_high"])


def test_the_same_settings_and_seed_count_once_and_a_note_says_so(make_run):
    make_run("a", seed=1, draw=1)
    make_run("b", seed=1, draw=1)
    make_run("c", seed=2, draw=2)
    [row], notes = rows_of(make_run)
    assert [run.name for run in row.runs] == ["a", "c"]
    assert notes == ["b has the settings and the seed of a, and is not counted again."]


def test_another_run_of_the_same_shown_settings_and_seed_has_a_row_of_its_own(make_run):
    for name, identity in (("a", "1f"), ("b", "2e"), ("c", "1f")):
        make_run(name, seed=1, draw=1, provenance={"identity": identity})
    rows, notes = rows_of(make_run)
    assert [row.name for row in rows] == ["a", "b"]
    assert [note.split(" has ")[0] for note in notes] == ["b", "c"]
    assert "is another run (their identities in provenance.json differ)" in notes[0]
    assert notes[1].endswith("is not counted again.")


def test_a_run_known_by_its_command_is_not_pooled_with_one_known_by_its_settings(make_run):
    make_run("a", {"embedding_dim": 64}, seed=1)
    folder = make_run("b", seed=2)
    (folder / "config.yaml").unlink()
    (folder / "command.txt").write_text("python train.py embedding_dim=64 seed=2")
    rows, _ = rows_of(make_run)
    assert [row.name for row in rows] == ["a", "b"]


def test_runs_without_any_configuration_are_never_brought_together(make_run):
    for name in ("a", "b"):
        (make_run(name) / "config.yaml").unlink()
    rows, _ = rows_of(make_run)
    assert [row.name for row in rows] == ["a", "b"]


def test_a_figure_that_one_seed_lacks_is_no_mean(make_run):
    make_run("a", seed=1)
    make_run("b", seed=2, keep_queries=False)
    (make_run.root / "b" / "metrics.json").write_text('{"test/rsum": 1.0}')
    [row], _ = rows_of(make_run)
    assert row.figure("i2t_R1") is None
    assert row.figure("rsum").low is None
    assert row.queries is None


def test_other_data_and_other_splits_are_groups_of_their_own(make_run):
    make_run("a")
    make_run("b", split="val")
    make_run("c", data="else")
    make_run.failed("d", "no")
    runs = find_runs([make_run.root])
    assert [(group.title, [run.name for run in group.runs]) for group in groups_of(runs)] == [
        ("else, test", ["c"]),
        ("made-up, test", ["a"]),
        ("made-up, val", ["b"]),
    ]
    assert [run.name for run in left_out(runs)] == ["d"]


def test_other_images_and_captions_of_the_same_ids_are_not_compared(make_run):
    for name, content in (("a", "1f"), ("b", "2e"), ("c", "1f")):
        make_run(name, content=content)
    first, second = groups_of(find_runs([make_run.root]))
    assert [[run.name for run in group.runs] for group in (first, second)] == [["a", "c"], ["b"]]
    assert "2 sets of queries go by the name made-up, test: they are not compared." in first.notes


def test_a_run_of_an_earlier_version_goes_with_the_others_of_its_ids(make_run):
    make_run("a", content="1f")
    make_run("b")
    assert [len(group.runs) for group in groups_of(find_runs([make_run.root]))] == [2]


def test_rows_of_other_seeds_are_said(make_run):
    make_run("a", {"embedding_dim": 1}, seed=1)
    make_run("b", {"embedding_dim": 2}, seed=3)
    [group] = groups_of(find_runs([make_run.root]))
    assert any("Not all rows are of the same seeds (1, 3)" in note for note in group.notes)


def test_other_queries_under_the_same_name_are_not_compared(make_run):
    make_run("a", images=40)
    make_run("b", images=30)
    make_run("c", images=40)
    first, second = groups_of(find_runs([make_run.root]))
    assert (first.title, [run.name for run in first.runs]) == ("made-up, test (1)", ["a", "c"])
    assert (second.title, [run.name for run in second.runs]) == ("made-up, test (2)", ["b"])
    for group in (first, second):
        assert "2 sets of queries go by the name made-up, test: they are not compared." in group.notes
    assert "Queries: 40 image → text, 200 text → image." in first.notes


def test_runs_without_queries_join_the_others_and_a_note_says_so(make_run):
    make_run("a")
    make_run("b", keep_queries=False)
    [group] = groups_of(find_runs([make_run.root]))
    assert any(note.startswith("No evaluation_test.npz: b. Nothing is tested there") for note in group.notes)


def test_runs_without_queries_stay_apart_where_it_is_not_known_whose_they_are(make_run):
    make_run("a", images=40)
    make_run("b", images=30)
    make_run("c", keep_queries=False)
    assert [[run.name for run in group.runs] for group in groups_of(find_runs([make_run.root]))] == [
        ["a"],
        ["b"],
        ["c"],
    ]


def test_similarities_commits_and_training_data_that_differ_are_noted(make_run):
    from dataclasses import replace

    from xmodal.retrieval.record import read_record, write_record

    for name in ("a", "b", "c"):
        commit = "f" * 40 if name == "a" else "0" * 40
        folder = make_run(
            name, provenance={"git": {"commit": commit}, "data": {"name": "made-up", "fingerprint": name}}
        )
    path = folder / "evaluation_test.npz"
    write_record(path, replace(read_record(path), similarity="dot"))
    [group] = groups_of(find_runs([make_run.root]))
    assert "Similarities differ: cosine (2 runs), dot (1 runs)." in group.notes
    assert "Made by different commits: 000000000000 (2 runs), ffffffffffff (1 runs)." in group.notes
    assert any(note.startswith("Training data differ (fingerprint): a (1 runs)") for note in group.notes)
