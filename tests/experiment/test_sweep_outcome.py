"""Which jobs of a sweep did not finish, read from their folders."""

import json
import os
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from xmodal.experiment.sweep import SweepBeginning
from xmodal.experiment.sweep_outcome import described, outcomes

COMMON = ["data=scenes", "seed=1"]


def job(sweep: Path, number: int, *own: str, age: float = 0, **provenance: object) -> Path:
    folder = sweep / str(number)
    (folder / ".hydra").mkdir(parents=True)
    overrides = folder / ".hydra" / "overrides.yaml"
    overrides.write_text("".join(f"- {line}\n" for line in [*COMMON, *own]))
    files = [overrides]
    if provenance:
        files.append(folder / "provenance.json")
        files[-1].write_text(json.dumps(provenance))
    begun = (sweep / "multirun.yaml").stat().st_mtime
    for later, file in enumerate(files, start=1):
        os.utime(file, (begun - age + later,) * 2)
    return folder


def sweep_in(folder: Path) -> Path:
    (folder / "multirun.yaml").write_text("")
    return folder


def test_jobs_are_told_apart_by_how_they_ended(tmp_path: Path):
    sweep = sweep_in(tmp_path)
    job(sweep, 10, "embedding_dim=4", status="interrupted", error=None)
    job(sweep, 0, "embedding_dim=1", status="finished", error=None)
    job(sweep, 2, "embedding_dim=2", status="failed", error="no such thing")
    job(sweep, 3, "embedding_dim=3", status="running", error=None)
    job(sweep, 4, "embedding_dim=5")
    taken_over = job(sweep, 5, "embedding_dim=6")
    (taken_over / "earlier_run.json").write_text('{"format": 1, "run": "../../earlier/0"}')
    found = outcomes(sweep)
    statuses = [(job.folder.name, job.status) for job in found]
    assert statuses == [
        ("0", "finished"), ("2", "failed"), ("3", "failed"), ("4", "failed"), ("5", "finished"), ("10", "interrupted"),
    ]  # fmt: skip
    lines = described(found, sweep, ["-m", "embedding_dim=1,2"]).splitlines()
    assert lines[:4] == [
        "4 of 6 jobs that were begun did not finish:",
        "  #2 embedding_dim=2",
        "     failed: no such thing",
        f"     {sweep / '2'}",
    ]
    assert "it ended without a word" in lines[5]
    assert lines[-3:] == ["  #10 embedding_dim=4", "     interrupted", f"     {sweep / '10'}"]


def test_what_an_earlier_sweep_left_in_the_folder_is_not_of_this_one(tmp_path: Path):
    sweep = sweep_in(tmp_path)
    job(sweep, 0, "a=1", status="failed", error="then")
    job(sweep, 7, "a=2", age=100, status="failed", error="then")
    assert [found.folder.name for found in outcomes(sweep)] == ["0"]


def test_a_record_that_is_older_than_the_job_says_nothing_of_it(tmp_path: Path):
    sweep = sweep_in(tmp_path)
    folder = job(sweep, 0, "a=1", status="finished", error=None)
    os.utime(folder / "provenance.json", (1, 1))
    assert [found.status for found in outcomes(sweep)] == ["failed"]


def begun_with(folder: Path, *words: str) -> DictConfig:
    return OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}, "overrides": {"task": list(words)}}})


def test_the_folder_of_another_sweep_is_refused(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(SweepBeginning, "folder", None)
    OmegaConf.save(begun_with(tmp_path, "embedding_dim=32,64", "seed=1"), tmp_path / "multirun.yaml")
    SweepBeginning().on_multirun_start(begun_with(tmp_path, "embedding_dim=16,32"))  # nothing was begun there
    job(tmp_path, 0, "embedding_dim=32", status="finished", error=None)
    again = begun_with(tmp_path, "seed=1", "embedding_dim=32,64", "resume=true")
    SweepBeginning().on_multirun_start(again)
    assert SweepBeginning.folder == tmp_path
    with pytest.raises(SystemExit) as ending:
        SweepBeginning().on_multirun_start(begun_with(tmp_path, "embedding_dim=16,32,64", "seed=1", "resume=true"))
    assert ending.value.code == 2
    assert "holds the jobs of another sweep (embedding_dim=32,64 seed=1)" in capsys.readouterr().err
    SweepBeginning().on_multirun_start(begun_with(tmp_path / "elsewhere", "embedding_dim=16"))


def test_trials_that_are_added_do_not_take_the_folders_of_those_before(tmp_path: Path):
    from hydra_plugins.xmodal_sweeps.optuna_sweeper import _first_free

    assert _first_free(tmp_path) == 0
    for name in ("0", "10", "2", ".submitit", "notes"):
        (tmp_path / name).mkdir()
    assert _first_free(tmp_path) == 11
