"""Two run folders held against each other, from the files that evaluations left in them."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from xmodal.errors import ConfigError, DataError
from xmodal.experiment.comparison import compare, print_comparison, write_comparison
from xmodal.retrieval.evaluate import evaluate_retrieval
from xmodal.retrieval.metrics import named_figures
from xmodal.retrieval.record import EvaluationRecord, read_record, write_record
from xmodal.retrieval.uncertainty import paired_test


def leave(
    run: Path,
    name: str,
    noise: float,
    data_name: str = "birds",
    images: int = 50,
    similarity: str = "cosine",
    content: str | None = None,
) -> None:
    """An evaluation in a run's folder; the more noise, the worse."""
    random = np.random.default_rng(0)
    ids = np.arange(images)
    image = random.normal(size=(images, 8))
    text = np.repeat(image, 3, axis=0) + noise * random.normal(size=(3 * images, 8))
    queries = evaluate_retrieval(image, text, ids, np.repeat(ids, 3), similarity).queries
    run.mkdir(exist_ok=True)
    write_record(run / f"evaluation_{name}.npz", EvaluationRecord(name, data_name, similarity, queries, content))


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "a", tmp_path / "b"
    leave(first, "test", noise=1.0)
    leave(second, "test", noise=0.5)
    return first, second


def test_figures_are_compared_by_the_names_of_the_split(runs: tuple[Path, Path]) -> None:
    found = compare(*runs, None, 200, 7).differences
    records = [read_record(run / "evaluation_test.npz").queries for run in runs]
    assert found == {f"test/{name}": of for name, of in paired_test(*records, 200, 7).items()}
    assert found["test/rsum"].first == named_figures(records[0])["rsum"]
    assert found["test/rsum"].difference > 0
    assert found["test/rsum"].p_value == pytest.approx(1 / 201)


def test_the_files_themselves_can_be_named(runs: tuple[Path, Path], tmp_path: Path) -> None:
    expected = compare(*runs, None, 40, 0).differences
    files = [run / "evaluation_test.npz" for run in runs]
    assert compare(files[0], files[1], None, 40, 0).differences == expected
    other = shutil.copy(files[1], tmp_path / "kept.npz")
    assert compare(runs[0], Path(other), None, 40, 0).differences == expected


def test_two_files_are_compared_though_their_names_differ(runs: tuple[Path, Path], capsys) -> None:
    leave(runs[0], "test_querybank", noise=0.5)
    files = [runs[0] / f"evaluation_{name}.npz" for name in ("test", "test_querybank")]
    found = compare(*files, None, 40, 0)
    queries = [read_record(file).queries for file in files]
    expected = paired_test(*queries, 40, 0)
    assert found.differences == {f"test vs test_querybank/{name}": of for name, of in expected.items()}
    print_comparison(found)
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].strip() == "test vs test_querybank"
    assert f"B: {files[1]}, test_querybank (cosine)" in printed
    with pytest.raises(DataError, match=r"no evaluation 'test' of both runs: .* has test; .* has test_querybank"):
        compare(*files, "test", 40, 0)


def test_two_files_are_compared_in_the_directions_that_both_have(tmp_path: Path) -> None:
    """By class, corrected figures have no image → image and text → text."""
    random = np.random.default_rng(0)
    sides, labels = (random.normal(size=(12, 4)), random.normal(size=(12, 4))), np.arange(12) % 3
    queries = evaluate_retrieval(*sides, np.arange(12), np.arange(12), image_labels=labels).queries
    across = {way: queries[way] for way in ("i2t", "t2i")}
    for name, some in (("all", queries), ("across", across)):
        write_record(tmp_path / f"{name}.npz", EvaluationRecord(name, "birds", "cosine", some))
    found = compare(tmp_path / "all.npz", tmp_path / "across.npz", None, 40, 0)
    assert {name.split("/")[1].split("_")[0] for name in found.differences} == {"i2t", "t2i", "rsum"}
    assert {of.difference for of in found.differences.values()} == {0.0}


def test_a_checkpoint_stands_for_its_evaluations(runs: tuple[Path, Path], tmp_path: Path) -> None:
    expected = compare(*runs, None, 40, 0).differences
    (runs[0] / "checkpoints").mkdir()
    for file in (runs[0] / "config.yaml", best := runs[0] / "checkpoints" / "best.ckpt", tmp_path / "lone[1].ckpt"):
        file.touch()
    shutil.copy(runs[1] / "evaluation_test.npz", tmp_path / "lone[1].evaluation_test.npz")
    assert compare(best, tmp_path / "lone[1].ckpt", None, 40, 0).differences == expected
    (tmp_path / "other.ckpt").touch()
    with pytest.raises(DataError, match=r"other\.ckpt holds no evaluation \(other\.evaluation_\*\.npz\)\. First run"):
        compare(best, tmp_path / "other.ckpt", None, 40, 0)


def test_test_is_preferred_and_others_are_named(runs: tuple[Path, Path]) -> None:
    for run, noise in zip(runs, (0.8, 0.4), strict=True):
        leave(run, "val", noise)
        leave(run, "test_folds5", noise)
    assert "test/rsum" in compare(*runs, None, 40, 0).differences
    assert "test_folds5/rsum" in compare(*runs, "test_folds5", 40, 0).differences
    for run in runs:
        (run / "evaluation_test.npz").unlink()
    with pytest.raises(DataError, match=r"several evaluations in common; name one .*--split: test_folds5, val"):
        compare(*runs, None, 40, 0)
    (runs[1] / "evaluation_test_folds5.npz").unlink()
    assert "val/rsum" in compare(*runs, None, 40, 0).differences


def test_evaluations_that_only_one_run_has(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no evaluation 'val' of both runs: .*a has test; .*b has test\. .*evaluate RUN"
    ):
        compare(*runs, "val", 40, 0)
    leave(tmp_path / "c", "val", 1.0)
    with pytest.raises(DataError, match=r"no evaluation of the same name: .*a has test; .*c has val"):
        compare(runs[0], tmp_path / "c", None, 40, 0)


def test_runs_that_are_not_there_or_not_evaluated(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: there is no such run"):
        compare(runs[0], tmp_path / "nowhere", None, 40, 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no evaluation .*First run: xmodal evaluate .*empty$"):
        compare(tmp_path / "empty", runs[1], None, 40, 0)
    (runs[1] / "evaluation_test.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"b/evaluation_test\.npz can't be read"):
        compare(*runs, None, 40, 0)


def test_other_queries_are_not_compared(runs: tuple[Path, Path], tmp_path: Path) -> None:
    leave(tmp_path / "c", "test", 1.0, data_name="flowers")
    with pytest.raises(DataError, match=r"a was evaluated on the data set birds, .*c on flowers"):
        compare(runs[0], tmp_path / "c", None, 40, 0)
    leave(tmp_path / "d", "test", 1.0, images=49)
    with pytest.raises(DataError, match=r"a and .*d: .*i2t has 50 queries in the first, 49 in the second"):
        compare(runs[0], tmp_path / "d", None, 40, 0)
    for run, content in ((runs[0], "1f"), (tmp_path / "e", "2e")):
        leave(run, "test", 1.0, content=content)
    with pytest.raises(DataError, match=r"evaluated on different images or captions, though both call them birds"):
        compare(runs[0], tmp_path / "e", None, 40, 0)
    assert compare(*runs, None, 40, 0).name == "test"  # of one of them the content is not known
    with pytest.raises(ConfigError, match=r"at least 40.*found 0"):
        compare(*runs, None, 0, 0)


def test_the_table_says_what_it_rests_on(runs: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    leave(runs[1], "test", noise=0.5, similarity="euclidean")
    found = compare(*runs, None, 50, 0)
    print_comparison(found)
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("│")]
    assert "rsum" in rows[0]
    assert "i2t_fractional_R10" in printed
    assert len(rows) == len(found.differences)
    of = found.differences["test/rsum"]
    for cell in (f"{of.first:.2f}", f"{of.second:.2f}", f"{of.difference:+.2f}", f"[{of.low:+.2f}, {of.high:+.2f}]"):
        assert cell in rows[0]
    assert f"{of.p_value:.4f}" in rows[0]
    assert f"A: {runs[0]}, test (cosine)" in printed
    assert f"B: {runs[1]}, test (euclidean)" in printed
    assert "Queries of birds: 50 images, 150 captions" in printed
    assert "without correction for multiple comparisons" in printed


def test_names_with_brackets_are_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "m[" / "b]x"
    run.parent.mkdir()
    leave(run, "test[b]", noise=1.0, data_name="birds[/i]")
    print_comparison(compare(run, run, None, 40, 0))
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].strip() == "test[b]"
    assert f"A: {run}, test[b] (cosine)" in printed
    assert "Queries of birds[/i]" in printed


def test_the_differences_as_json(runs: tuple[Path, Path], tmp_path: Path) -> None:
    found = compare(*runs, None, 40, 0)
    write_comparison(tmp_path / "difference.json", found)
    written = json.loads((tmp_path / "difference.json").read_text(encoding="utf-8"))
    assert written == {name: asdict(difference) for name, difference in found.differences.items()}
    assert set(written["test/i2t_R1"]) == {"first", "second", "difference", "low", "high", "p_value"}
    with pytest.raises(DataError, match=r"absent/d\.json can't be written \(No such file or directory\).*--json"):
        write_comparison(tmp_path / "absent" / "d.json", found)
