"""Sweeps as a user meets them: `python train.py -m …` in processes of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from xmodal.reporting.runs import find_runs

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 16
TINY = [
    "data.train_size=8", "data.val_size=4", "data.test_size=4", "data.image_size=32", "image_encoder=precomputed",
    "text_encoder.vector_size=16", "text_encoder.epochs=1", "text_encoder.bucket=500", "trainer=cpu",
    "trainer.max_epochs=2", "trainer.enable_progress_bar=false", "logger=none", "bootstrap=0",
]  # fmt: skip


class Room:
    """A folder with scenes, features and files of image vectors that several sweeps share."""

    def __init__(self, start, root: Path) -> None:
        self.start, self.root = start, root
        self.good, self.late = root / "good.npy", root / "late.npy"
        np.save(self.good, vectors(IMAGES))

    def begin(self, name: str, *overrides: str):
        kept = [f"data.root={self.root}/scenes", *(f"paths.{k}={self.root}/{k}" for k in ("features_dir", "cache_dir"))]
        words = ["-m", *TINY, *kept, f"paths.output_dir={self.root / name}", *overrides]
        return self.start([str(ROOT / "train.py"), *words], ROOT, OMP_NUM_THREADS="1")

    def sweep(self, name: str, *overrides: str) -> subprocess.CompletedProcess:
        return self.begin(name, *overrides).finish(600)

    def folders(self, name: str) -> list[Path]:
        """Of its sweeps, the oldest first."""
        return sorted((self.root / name / "multirun").iterdir())

    def begin_without_late_file(self, name: str, *overrides: str) -> subprocess.CompletedProcess:
        """Each second job fails: it has vectors of other photos."""
        np.save(self.late, vectors(3))
        return self.sweep(name, f"image_encoder.path={self.good},{self.late}", *overrides)


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
    first = room.begin_without_late_file("grid", *words)
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
    words = ["embedding_dim=8,16", f"image_encoder.path={room.good}", "trainer.max_epochs=25"]
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
    assert [row["epoch"] for row in one.history] == [row["epoch"] for row in other.history] == list(range(25))
    assert told(one.folder)["identity"] == told(stopped / "0")["identity"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_job_that_fails_elsewhere_is_listed_too(room, launcher: str):
    done = room.begin_without_late_file(launcher, f"hydra/launcher={launcher}", "embedding_dim=8")
    sweep = room.folders(launcher)[0]
    assert done.returncode == 1
    assert [told(job)["status"] for job in jobs_in(sweep)] == ["finished", "failed"]
    assert "1 of 2 jobs that were begun did not finish:" in done.stderr
    assert f"failed: {room.late} has the shape (3, 6)" in done.stderr
    assert "validated against ConfigStore schema" not in done.stderr


# Writes into the folder of each job how many threads it has.
THREADS = """
import os, sys
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig
from xmodal.config.sources import CONF_DIR

@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
def main(cfg):
    import torch
    folder = Path(HydraConfig.get().runtime.output_dir)
    (folder / "threads").write_text(f"{torch.get_num_threads()} {os.getpid()}")

main()
"""


@pytest.mark.slow
def test_jobs_side_by_side_share_the_cores(tmp_path: Path):
    (tmp_path / "app.py").write_text(THREADS)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    words = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2", f"paths.output_dir={tmp_path}/out"]
    done = subprocess.run(
        [sys.executable, "app.py", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = [path.read_text().split() for path in tmp_path.glob("out/multirun/*/*/threads")]
    cores = len(os.sched_getaffinity(0))
    assert [int(threads) for threads, _ in found] == [max(1, cores // 2)] * 2
    assert len({process for _, process in found}) == 2


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
