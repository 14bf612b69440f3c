"""Finding the earlier runs that ``resume=true`` takes over or goes on with."""

import json
from pathlib import Path
from zipfile import ZipFile

import pytest

from xmodal.config.command_line import compose
from xmodal.config.identity import identity
from xmodal.config.values import resolved
from xmodal.experiment.earlier_runs import finished_run, going_on


@pytest.fixture
def cfg(tmp_path: Path):
    return compose([f"paths.output_dir={tmp_path}", "resume=true", "seed=3"])


def left(folder: Path, cfg, status: str, started: str = "2026-01-01T00:00:00+00:00", **files: str) -> Path:
    """A run folder with what the search looks at."""
    (folder / "checkpoints").mkdir(parents=True)
    told = {"format": 1, "status": status, "started": started, "identity": identity(resolved(cfg))}
    for name, text in {"provenance.json": json.dumps(told), **files}.items():
        (folder / name).write_text(text)
    if "checkpoints/last.ckpt" in files:  # a checkpoint is a zip file
        with ZipFile(folder / "checkpoints" / "last.ckpt", "w") as file:
            file.writestr("archive/data.pkl", "state " * 100)
    return folder


FIGURES = {"metrics.json": '{"val/rsum": 12.5}'}
CHECKPOINT = {"checkpoints/last.ckpt": ""}


def test_the_latest_finished_run_of_the_same_settings_is_found_anywhere_below_the_outputs(cfg, tmp_path: Path):
    left(tmp_path / "multirun" / "one" / "0", cfg, "finished", **FIGURES)
    latest = left(tmp_path / "runs" / "scenes" / "b", cfg, "finished", "2026-02-01T00:00:00+00:00", **FIGURES)
    assert finished_run(cfg) == latest
    other = compose([f"paths.output_dir={tmp_path}", "resume=true", "seed=4"])
    assert finished_run(other) is None
    assert going_on(other) is other


def test_without_resume_nothing_is_looked_for(cfg, tmp_path: Path):
    left(tmp_path / "runs" / "a", cfg, "finished", **FIGURES, **CHECKPOINT)
    plain = compose([f"paths.output_dir={tmp_path}", "seed=3"])
    assert finished_run(plain) is None
    assert going_on(plain) is plain


@pytest.mark.parametrize("status", ["running", "failed", "interrupted"])
def test_a_run_that_stopped_is_gone_on_with_where_it_has_an_epoch(cfg, tmp_path: Path, status: str):
    left(tmp_path / "runs" / "early", cfg, status)  # no epoch was finished
    assert going_on(cfg) is cfg
    stopped = left(tmp_path / "runs" / "later", cfg, status, **CHECKPOINT)
    assert finished_run(cfg) is None
    assert going_on(cfg).ckpt_path == str(stopped / "checkpoints" / "last.ckpt")
    assert cfg.ckpt_path is None
    assert identity(resolved(going_on(cfg))) == identity(resolved(cfg))


def test_a_checkpoint_that_was_cut_off_is_passed_over(cfg, tmp_path: Path, caplog):
    older = left(tmp_path / "runs" / "a", cfg, "interrupted", **CHECKPOINT) / "checkpoints" / "last.ckpt"
    later = left(tmp_path / "runs" / "b", cfg, "running", "2026-02-01T00:00:00+00:00", **CHECKPOINT)
    cut = later / "checkpoints" / "last.ckpt"
    assert going_on(cfg).ckpt_path == str(cut)
    cut.write_bytes(cut.read_bytes()[:100])
    assert going_on(cfg).ckpt_path == str(older)
    assert f"{cut} was cut off" in caplog.text
    older.write_bytes(older.read_bytes()[:100])
    assert going_on(cfg) is cfg


def test_a_checkpoint_that_was_typed_is_left_alone(tmp_path: Path):
    cfg = compose([f"paths.output_dir={tmp_path}", "resume=true", "ckpt_path=mine.ckpt"])
    left(tmp_path / "runs" / "a", cfg, "interrupted", **CHECKPOINT)
    assert going_on(cfg) is cfg


def test_a_finished_run_without_figures_and_damaged_records_are_passed_over(cfg, tmp_path: Path):
    left(tmp_path / "runs" / "a", cfg, "finished")
    left(tmp_path / "runs" / "b", cfg, "finished", **{"metrics.json": '{"val/rs'})
    left(tmp_path / "runs" / "c", cfg, "finished", **(FIGURES | {"provenance.json": "[]"}))
    assert finished_run(cfg) is None
