"""Sweeps as a user meets them: `python train.py -m …` in processes of its own."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from joblib import cpu_count

from xmodal.reporting.runs import find_runs

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 16
TINY = [
    "data.train_size=8", "data.val_size=4", "data.test_size=4", "data.image_size=32", "image_encoder=precomputed",
    "text_encoder.vector_size=16", "text_encoder.epochs=1", "text_encoder.bucket=500", "trainer=cpu",
    "trainer.max_epochs=1", "trainer.enable_progress_bar=false", "logger=none", "bootstrap=0",
]  # fmt: skip


class Room:
    """A folder with scenes, features and files of image vectors that several sweeps share."""

    def __init__(self, start, root: Path) -> None:
        self.start, self.root = start, root
        self.good, self.late = root / "good.npy", root / "late.npy"
        np.save(self.good, vectors(IMAGES))

    def begin(self, name: str, *overrides: str, threads: str | None = "1"):
        kept = [f"data.root={self.root}/scenes", *(f"paths.{k}={self.root}/{k}" for k in ("features_dir", "cache_dir"))]
        words = ["-m", *TINY, *kept, f"paths.output_dir={self.root / name}", *overrides]
        return self.start([str(ROOT / "train.py"), *words], ROOT, OMP_NUM_THREADS=threads)

    def sweep(self, name: str, *overrides: str) -> subprocess.CompletedProcess:
        return self.begin(name, *overrides).finish(600)

    def folders(self, name: str) -> list[Path]:
        """Of its sweeps, the oldest first."""
        return sorted((self.root / name / "multirun").iterdir())

    def sweep_without_late_file(self, name: str, *overrides: str, **more: None) -> subprocess.CompletedProcess:
        """Each second job fails: it has vectors of other photos."""
        np.save(self.late, vectors(3))
        return self.begin(name, f"image_encoder.path={self.good},{self.late}", *overrides, **more).finish(600)


def vectors(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 6)).astype(np.float32)


def told(job: Path) -> dict:
    return json.loads((job / "provenance.json").read_text())


def jobs_in(sweep: Path) -> list[Path]:
    return sorted(folder for folder in sweep.iterdir() if folder.name.isdigit())


@pytest.fixture(scope="module")
def room(start, tmp_path_factory) -> Room:
    return Room(start, tmp_path_factory.mktemp("sweeps"))


@pytest.fixture(scope="module")
def grid(room):
    """Four jobs, of which the second and the fourth fail; then the same command with what was missing."""
    words = ["sweep=embedding_dim", "embedding_dim=8,16", "text_aggregator=sum"]
    first = room.sweep_without_late_file("grid", *words)
    np.save(room.late, vectors(IMAGES))
    return first, room.sweep("grid", f"image_encoder.path={room.good},{room.late}", *words, "resume=true")


@pytest.mark.slow
def test_a_job_that_fails_is_listed_at_the_end_and_the_others_run(grid, room):
    done, sweep = grid[0], room.folders("grid")[0]
    assert done.returncode == 1
    assert [told(job)["status"] for job in jobs_in(sweep)] == ["finished", "failed", "finished", "failed"]
    lines = done.stderr[done.stderr.index("2 of 4 jobs that were begun did not finish:") :].splitlines()
    assert lines[1].split() == ["#1", "embedding_dim=8", f"image_encoder.path={room.late}"]
    assert lines[2].startswith(f"     failed: {room.late} has the shape (3, 6)")
    assert lines[3].strip() == str(sweep / "1")
    assert lines[4].split()[0] == "#3"
    assert lines[-1].endswith(" resume=true")
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_features_are_made_once_for_all_jobs(grid, room):
    logs = [(job / "train.log").read_text() for job in jobs_in(room.folders("grid")[0])]
    assert ["Extracting words of scenes" in log for log in logs] == [True, False, False, False]
    assert "Features of scenes with text-fasttext" in logs[2]


@pytest.mark.slow
def test_resume_runs_what_is_missing_and_one_folder_holds_the_whole_sweep(grid, room):
    done, (earlier, sweep) = grid[1], room.folders("grid")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        "4 of 4 jobs finished. Their tables and figures:",
        f"  xmodal report {sweep}",
    ]
    assert re.findall(r"Finished before \(val/rsum [\d.]+\), not run again: (\S+)", done.stdout) == [
        str(earlier / "0"),
        str(earlier / "2"),
    ]
    assert [(job / "provenance.json").exists() for job in jobs_in(sweep)] == [False, True, False, True]
    runs = find_runs([sweep])
    assert [run.folder for run in runs] == [earlier / "0", earlier / "2", sweep / "1", sweep / "3"]
    assert {run.status for run in runs} == {"finished"}


@pytest.mark.slow
def test_ctrl_c_ends_the_sweep_and_resume_goes_on_where_a_job_stopped(room):
    words = ["trainer.max_epochs=25,1", f"image_encoder.path={room.good}"]
    process = room.begin("interrupted", *words)
    end = time.monotonic() + 300
    while not list(room.root.glob("interrupted/multirun/*/0/checkpoints/last.ckpt")):
        assert process.poll() is None, process.finish()
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    done = process.finish()
    assert done.returncode == 130, done.stderr
    stopped = room.folders("interrupted")[0]
    assert [told(job)["status"] for job in jobs_in(stopped)] == ["interrupted"]
    assert "The sweep was interrupted." in done.stderr
    assert done.stderr.splitlines()[-1].endswith(" resume=true")
    assert "ckpt_path=" not in done.stderr

    done = room.sweep("interrupted", *words, "resume=true")
    assert done.returncode == 0, done.stderr
    assert f"Going on with {stopped}/0/checkpoints/last.ckpt" in done.stdout
    one, other = find_runs([room.folders("interrupted")[1]])
    assert [[row["epoch"] for row in run.history] for run in (one, other)] == [list(range(25)), [0]]
    assert told(one.folder)["identity"] == told(stopped / "0")["identity"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_job_that_fails_elsewhere_is_listed_too(room, launcher: str):
    done = room.sweep_without_late_file(launcher, f"hydra/launcher={launcher}", "embedding_dim=8", threads=None)
    sweep = room.folders(launcher)[0]
    jobs = [told(job) for job in jobs_in(sweep)]
    assert done.returncode == 1
    assert [job["status"] for job in jobs] == ["finished", "failed"], done.stderr
    assert "1 of 2 jobs that were begun did not finish:" in done.stderr
    assert f"failed: {room.late} has the shape (3, 6)" in done.stderr
    assert "validated against ConfigStore schema" not in done.stderr
    if launcher == "joblib":  # two at a time, which share the cores
        assert [job["machine"]["threads"] for job in jobs] == [max(1, cpu_count() // 2)] * 2


@pytest.mark.slow
def test_optuna_goes_on_with_its_study(room):
    words = [
        "hydra/sweeper=optuna", "embedding_dim=8,16", "loss.margin=interval(0.1,0.4)", "optimized_metric=val/i2t_R5",
        f"image_encoder.path={room.good}",
    ]  # fmt: skip
    first = room.sweep("optuna", *words, "hydra.sweeper.n_trials=2")
    assert first.returncode == 0, first.stderr
    again = room.sweep("optuna", *words, "hydra.sweeper.n_trials=3")
    assert again.returncode == 2
    assert "this study has 2 trials already. Add resume=true" in again.stderr
    assert "Traceback" not in again.stderr
    resumed = room.sweep("optuna", *words, "hydra.sweeper.n_trials=3", "resume=true")
    assert resumed.returncode == 0, resumed.stderr
    sweeps = room.folders("optuna")
    assert [len(jobs_in(sweep)) for sweep in sweeps] == [2, 0, 1]
    figures = [json.loads((job / "metrics.json").read_text())["val/i2t_R5"] for s in sweeps for job in jobs_in(s)]
    best = (sweeps[2] / "optimization_results.yaml").read_text()
    assert f"best_value: {max(figures)}" in best
    assert f"xmodal report {sweeps[0]} {sweeps[2]}" in resumed.stdout
