"""Whole tables of made-up sweeps, cell by cell against the files of the runs."""

import json

import pytest

from xmodal.reporting.runs import find_runs
from xmodal.reporting.tables import tables_of, write_tables


@pytest.fixture
def sweep(make_run):
    """Sizes × aggregators; the skill rises with the size for sum, and is highest for lstm at 64."""
    skills = {(64, "sum"): 0.02, (128, "sum"): 0.5, (64, "lstm"): 0.5, (128, "lstm"): 0.48}
    for number, ((size, name), skill) in enumerate(skills.items()):
        target = f"xmodal.aggregators.{name}.{name.title()}Aggregator"
        make_run(f"{number}", {"embedding_dim": size, "text_aggregator._target_": target}, skill=skill, draw=number)
    return make_run


def by_name(make_run):
    return {table.name: table for table in tables_of(find_runs([make_run.root]))}


def column(table, name):
    place = [one.name for one in table.columns].index(name)
    return [row[place] for row in table.rows]


def test_names_of_the_tables_of_a_grid(sweep):
    names = list(by_name(sweep))
    expected = []
    for way in ("image-to-text", "text-to-image"):
        expected += [f"made-up-test_{way}_{rest}" for rest in ("all", "text-aggregator-lstm", "text-aggregator-sum")]
    pivot = "made-up-test_pivot_embedding_dim_text_aggregator"
    expected += [f"{pivot}_{figure}" for figure in ("image-to-text_R1", "text-to-image_R1", "rsum")]
    expected += [f"made-up-test_pairs_{key}" for key in ("text_aggregator", "embedding_dim")]
    assert names == [*expected, "origin", "commands", "settings"]


def test_a_table_of_sizes_has_the_columns_asked_for_and_the_figures_of_the_runs(sweep):
    table = by_name(sweep)["made-up-test_image-to-text_text-aggregator-sum"]
    assert [one.title for one in table.columns] == [
        "Embedding size", "Train loss", "Validation loss", "R@1 (accuracy)", "R@5", "R@10", "medR", "mAP",
    ]  # fmt: skip
    assert table.title == "Image → text, text aggregator sum"
    assert [cell.value for cell in column(table, "embedding_dim")] == [64, 128]
    for number, row in enumerate(table.rows):
        metrics = json.loads((sweep.root / f"{number}" / "metrics.json").read_text())
        assert row[1].value == metrics["train/loss"]
        assert row[2].value == metrics["val/loss"]
        for cell, figure in zip(row[3:], ("R1", "R5", "R10", "medR", "mAP"), strict=True):
            name = f"test/i2t_{figure}"
            assert (cell.value, cell.low, cell.high) == (metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"])
            assert cell.text == f"{metrics[name]:.1f}"


def test_best_is_bold_alone_and_tied_in_company(sweep):
    tables = by_name(sweep)
    alone = column(tables["made-up-test_text-to-image_text-aggregator-sum"], "R1")
    assert [(cell.is_best, cell.is_tied) for cell in alone] == [(False, False), (True, False)]
    among_all = column(tables["made-up-test_text-to-image_all"], "R1")
    assert [cell.is_best for cell in among_all] == [False] * 4
    assert [cell.is_tied for cell in among_all] == [True, True, False, True]  # lstm before sum, each by size
    assert not any(
        cell.is_best or cell.is_tied for cell in column(tables["made-up-test_text-to-image_all"], "val_loss")
    )


def test_a_pivot_has_the_same_figures(sweep):
    tables = by_name(sweep)
    pivot = tables["made-up-test_pivot_embedding_dim_text_aggregator_image-to-text_R1"]
    assert [one.title for one in pivot.columns] == ["Embedding size", "text aggregator lstm", "text aggregator sum"]
    full = tables["made-up-test_image-to-text_all"]
    values = {(row[1].text, row[0].text): cell for row, cell in zip(full.rows, column(full, "R1"), strict=True)}
    for row in pivot.rows:
        assert list(row[1:]) == [values[row[0].text, "lstm"], values[row[0].text, "sum"]]


def test_a_pivot_with_holes_says_so(sweep):
    import shutil

    shutil.rmtree(sweep.root / "3")
    pivot = by_name(sweep)["made-up-test_pivot_embedding_dim_text_aggregator_rsum"]
    assert [cell.text == "–" for row in pivot.rows for cell in row] == [False, False, False, False, True, False]


def test_one_factor_at_a_time_around_a_base(make_run):
    base = {"embedding_dim": 512, "optimizer.lr": 0.001, "loss.margin": 0.2}
    settings = [base, {**base, "optimizer.lr": 0.01}, {**base, "loss.margin": 0.1}, {**base, "embedding_dim": 64}]
    settings.append({**base, "embedding_dim": 64, "loss.margin": 0.5})
    for number, one in enumerate(settings):
        make_run(f"{number}", one, skill=0.02 if number == 3 else 0.5, draw=number)
    table = by_name(make_run)["made-up-test_ablation"]
    runs = find_runs([make_run.root])
    assert [row[0].text for row in table.rows] == [
        "none: loss.margin=0.2, optimizer.lr=0.001, embedding_dim=512",
        "loss.margin: 0.2 → 0.1",
        "optimizer.lr: 0.001 → 0.01",
        "embedding size: 512 → 64",
    ]
    differences = {cell.value for cell in column(table, "rsum_difference")}
    rsum = [run.figure("rsum") for run in runs]
    assert differences == {None, *(rsum[i] - rsum[0] for i in (1, 2, 3))}
    assert column(table, "p")[3].value < 0.001
    assert column(table, "rsum_difference")[3].text.startswith("−")
    assert any(note.startswith("1 further row differs from the base in more than one setting") for note in table.notes)


def test_a_full_grid_has_no_base(sweep):
    assert not [name for name in by_name(sweep) if "ablation" in name]


def test_reference_figures_stand_beside_with_their_origin(make_run):
    expected = {"test/i2t_R1": 50, "test/rsum": 300.5, "val/loss": 1.0, "test/absent": 3}
    make_run("one", {"reference.source": "A. Author:  Title", "reference.expected.origin": "published"} | {
        f"reference.expected.figures.{name}": value for name, value in expected.items()
    })  # fmt: skip
    table = by_name(make_run)["made-up-test_reference"]
    [run] = find_runs([make_run.root])
    found = {row[1].text: row for row in table.rows}
    assert set(found) == {"test/i2t_R1", "test/rsum", "val/loss"}
    row = found["test/rsum"]
    assert [cell.value for cell in row[2:]] == [run.figure("rsum"), 300.5, run.figure("rsum") - 300.5, "published"]
    assert "Reference: A. Author: Title." in table.notes


def test_failed_runs_are_listed_with_their_error(sweep):
    sweep.failed("4", "RuntimeError: out of memory")
    table = by_name(sweep)["left-out"]
    assert [[cell.text for cell in row] for row in table.rows] == [["4", "failed", "RuntimeError: out of memory", "–"]]


def test_provenance(make_run):
    said = {
        "command": "python train.py embedding_dim=64", "git": {"commit": "a" * 40, "dirty": True},
        "versions": {"torch": "2.9", "python": "3.11"}, "started": "2025-01-01T00:00:00Z", "seconds": 61.4,
        "machine": {"system": "Linux", "processor": "x86", "cores": 2, "gpus": ["H200"]},
        "data": {"name": "made-up", "fingerprint": "0123456789abcdef0123"},
    }  # fmt: skip
    make_run("a", {"embedding_dim": 64}, provenance=said)
    make_run("b", {"embedding_dim": 128}, seed=1)
    tables = by_name(make_run)
    first, second = tables["origin"].rows
    texts = [cell.text for cell in first]
    assert texts[1:] == [
        "finished", "2025-01-01T00:00:00Z", "61", "aaaaaaaaaaaa (changed since)", "made-up", "0123456789abcdef",
        "Linux, x86, 2 cores, H200",
    ]  # fmt: skip
    assert [cell.text for cell in second] == ["b", "finished", "–", "30 training", "–", "made-up", "–", "–"]
    assert [[cell.text for cell in row] for row in tables["settings"].rows] == [["a", "0", "64"], ["b", "1", "128"]]
    assert tables["commands"].rows[0][1].text == said["command"]
    assert [one.title for one in tables["versions"].columns] == ["Run", "python", "torch"]


def test_the_same_runs_make_the_same_files_byte_for_byte(sweep, tmp_path):
    orders = ([sweep.root], [sweep.root / "3", sweep.root / "0", sweep.root])
    written = [write_tables(find_runs(paths), tmp_path / f"{i}") for i, paths in enumerate(orders)]
    first, second = ({path.name: path.read_bytes() for path in paths} for paths in written)
    assert first == second
    assert {path.suffix for path in written[0]} == {".md", ".csv", ".tex"}


def test_names_of_files_are_safe_whatever_the_data_set_is_called(make_run):
    make_run("a", data="../Ünsafe name/→ $x")
    for name in by_name(make_run):
        assert name.isascii()
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_R")


def test_long_names_are_cut_and_told_apart(make_run):
    for number in range(2):
        make_run(f"{number}", {"embedding_dim": 2**number, "data.limit": "x" * 150 + str(number)}, draw=number)
    names = list(by_name(make_run))
    assert len(names) == len(set(names))
    assert max(map(len, names)) <= 105


def test_all_figures_of_all_runs_in_full_precision(sweep, tmp_path):
    import csv

    sweep.failed("4", "no")
    write_tables(find_runs([sweep.root]), tmp_path / "tables")
    rows = list(csv.DictReader((tmp_path / "tables" / "all_runs.csv").open()))
    assert [row["status"] for row in rows] == ["finished"] * 4 + ["failed"]
    metrics = json.loads((sweep.root / "0" / "metrics.json").read_text())
    assert {name: float(rows[0][name]) for name in metrics} == metrics
    assert (rows[0]["embedding_dim"], rows[0]["text_aggregator"], rows[4]["test/rsum"]) == ("64", "sum", "")


def test_a_median_over_seeds_has_no_interval_and_no_mark(make_run):
    for way, skill in (("sum", 0.4), ("mean", 0.1)):
        for seed in (1, 2, 3):
            make_run(f"{way}-{seed}", {"text_aggregator": way}, skill, seed=seed, draw=seed, images=200)
    table = by_name(make_run)["made-up-test_text-to-image_all"]
    places = {column.name: i for i, column in enumerate(table.columns)}
    medians = [row[places["medR"]] for row in table.rows]
    assert [(cell.low, cell.is_best, cell.is_tied) for cell in medians] == [(None, False, False)] * 2
    assert all(cell.sd is not None for cell in medians)
    assert any(row[places["R1"]].is_best for row in table.rows)
    assert any("a medR over seeds is the mean of theirs" in note for note in table.notes)


@pytest.mark.parametrize(("split", "said"), [("val", True), ("test", False)])
def test_what_was_chosen_on_the_reported_split_is_said_to_be(make_run, split, said):
    make_run("one", split=split)
    [table] = [table for name, table in by_name(make_run).items() if name.endswith("image-to-text_all")]
    assert any("chosen on this split" in note for note in table.notes) == said
