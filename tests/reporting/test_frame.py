"""Runs as a table of pandas."""

import json

import pytest

from xmodal.errors import ConfigError
from xmodal.reporting.frame import frame_of
from xmodal.reporting.runs import find_runs


def test_a_row_per_run_with_settings_that_differ_and_all_figures(make_run):
    folders = {
        size: make_run(f"size-{size}", {"embedding_dim": size, "loss.margin": 0.2}, draw=size) for size in (64, 128)
    }
    make_run.failed("broken", "out of memory")
    frame = frame_of(find_runs([make_run.root]))
    assert frame.index.name == "run"
    assert frame["status"].to_dict() == {"broken": "failed", "size-64": "finished", "size-128": "finished"}
    assert frame["embedding_dim"].to_dict() == {"broken": 4096, "size-64": 64, "size-128": 128}
    assert "loss.margin" not in frame  # the same in all
    for size, folder in folders.items():
        metrics = json.loads((folder / "metrics.json").read_text())
        assert frame.loc[f"size-{size}", list(metrics)].to_dict() == metrics
    assert frame.loc["broken"].drop(["status", "data", "embedding_dim"]).isna().all()


def test_a_frame_can_be_pivoted(make_run):
    for i, (size, way) in enumerate((size, way) for size in (64, 128) for way in ("sum", "mean")):
        make_run(f"{i}", {"embedding_dim": size, "text_aggregator": way}, draw=i)
    frame = frame_of(find_runs([make_run.root]))
    pivot = frame.pivot_table(index="embedding_dim", columns="text_aggregator", values="test/i2t_R1")
    assert pivot.shape == (2, 2)
    assert pivot.loc[64, "sum"] == frame.loc["0", "test/i2t_R1"]


def test_without_pandas_it_says_how_to_get_it(make_run, monkeypatch):
    make_run("one")
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"pip install .*\.\[notebooks\]"):
        frame_of(find_runs([make_run.root]))
