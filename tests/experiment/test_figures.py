"""Names of figures, records that hold the data set's own ids, and the table of a run."""

from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from xmodal.experiment.figures import figures_table, flat_figures, record_of
from xmodal.retrieval.evaluate import RetrievalResult, evaluate_retrieval

CAPTIONS = [0, 0, 2, 2, 2, 5, 7, 7, 8]


@pytest.fixture(scope="module")
def result() -> RetrievalResult:
    """Ten images known by their rows, five of them without caption."""
    random = np.random.default_rng(0)
    sides = random.normal(size=(10, 4)), random.normal(size=(len(CAPTIONS), 4))
    found = evaluate_retrieval(*sides, list(range(10)), CAPTIONS)
    return replace(found, intervals={"i2t_R1": (1.25, 36.123456), "rsum": (100.4, 299.6)})


def printed(figures: dict[str, float], width: int = 80) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(figures_table(figures))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_figures_have_the_names_of_metrics_json(result: RetrievalResult) -> None:
    found = flat_figures("test", replace(result, intervals={}))
    assert found == {f"test/{name}": round(value, 5) for name, value in result.metrics.items()}
    assert all(type(value) is float for value in found.values())


def test_ends_of_intervals_follow_their_figures(result: RetrievalResult) -> None:
    found = flat_figures("test_folds5", result)
    ends = {name: value for name, value in found.items() if name.endswith(("_low", "_high"))}
    assert ends == {
        "test_folds5/i2t_R1_low": 1.25,
        "test_folds5/i2t_R1_high": 36.12346,
        "test_folds5/rsum_low": 100.4,
        "test_folds5/rsum_high": 299.6,
    }


@pytest.mark.parametrize("ids", [np.arange(900, 910), np.array([f"photo{i}" for i in range(10)])])
def test_a_record_holds_the_ids_of_the_data_set(result: RetrievalResult, ids: np.ndarray) -> None:
    record = record_of("test", "some", "dot", result, ids)
    assert (record.name, record.data_name, record.similarity) == ("test", "some", "dot")
    assert record.queries["i2t"].groups.tolist() == ids.tolist()
    assert record.queries["t2i"].groups.tolist() == [ids[row] for row in CAPTIONS]
    for way, side in record.queries.items():
        assert side.metrics() == result.queries[way].metrics()


def test_the_table_has_a_row_per_direction_and_its_intervals_below(result: RetrievalResult) -> None:
    named = {"val/i2t_R1": 3.25, "val/t2i_R1": 4.0, "val/rsum": 17.0, "train/loss": 0.5, "best_epoch": 3}
    lines = printed(named | flat_figures("test", result))
    (val,) = (line for line in lines if line.startswith("val") and "image → text" in line)
    assert val.split()[-2:] == ["3.2", "17.0"]
    (row,) = (place for place, line in enumerate(lines) if line.startswith("test") and "image → text" in line)
    shown = [f"{result.metrics[f'i2t_{name}']:.1f}" for name in ("R1", "R5", "R10", "medR", "meanR", "mAP")]
    assert lines[row].split()[-7:] == [*shown, f"{result.metrics['rsum']:.1f}"]
    assert lines[row + 1].split() == ["1.2–36.1", "100–300"]
    assert lines[row + 1].index("1.2–36.1") + len("1.2–36.1") == lines[row].index(shown[0]) + len(shown[0])
    assert lines[row + 2].startswith("test")
    assert "text → image" in lines[row + 2]
    assert "interval" in lines[-1]


def test_without_intervals_the_table_does_not_speak_of_them(result: RetrievalResult) -> None:
    lines = printed(flat_figures("val", replace(result, intervals={})))
    assert len([line for line in lines if "→" in line]) == 2
    assert not any("interval" in line for line in lines)


def test_by_class_the_table_has_queries_of_the_same_kind_too(result: RetrievalResult) -> None:
    figures = {f"test/{way}_R1": 10.0 for way in ("i2t", "t2i", "i2i", "t2t")} | {"test/rsum": 20.0}
    lines = [line for line in printed(figures) if "→" in line]
    assert [" ".join(line.split()[1:4]) for line in lines] == [
        "image → text",
        "text → image",
        "image → image",
        "text → text",
    ]


def test_full_intervals_fit_into_eighty_columns(result: RetrievalResult) -> None:
    full = replace(result, intervals=dict.fromkeys(result.metrics, (10.04, 99.96)))
    lines = printed(flat_figures("test", full) | flat_figures("test_folds5_querybank", full))
    assert max(map(len, lines)) <= 80
    assert len([line for line in lines if "10.0–100.0 10.0–100.0 10.0–100.0" in line]) == 4
