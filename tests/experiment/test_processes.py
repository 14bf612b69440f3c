"""Several processes make one run: a multirun of two jobs with two processes each, looked at from all sides."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xmodal.config.command_line import compose
from xmodal.experiment.run import Experiment

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Sweep:
    """A finished multirun: its folder of jobs, and what was printed."""

    folder: Path
    printed: str

    def metrics(self, job: int) -> dict[str, float]:
        return json.loads((self.folder / str(job) / "metrics.json").read_text())


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Tiny scenes, none of whose numbers can be halved, with random image features."""
    folder = tmp_path_factory.mktemp("settings")
    np.save(folder / "images.npy", np.random.default_rng(0).random((9 + 5 + 7, 6), dtype=np.float32))
    return [
        *("data=scenes", "data.train_size=9", "data.val_size=5", "data.test_size=7", "data.image_size=48"),
        *(f"data.root={folder / 'scenes'}", "data.batch_size=8", "image_encoder=precomputed"),
        *(f"image_encoder.path={folder / 'images.npy'}", "text_encoder.vector_size=8", "text_encoder.epochs=1"),
        *("text_encoder.bucket=100", "embedding_dim=8", "logger=none", "trainer.max_epochs=2"),
        "trainer.enable_progress_bar=false",
    ]


@pytest.fixture(scope="module")
def sweep(start: Callable[..., Any], settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Of its two jobs the second one ends before the first validation."""
    outputs = tmp_path_factory.mktemp("a folder")
    ddp = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    logged = 'hydra.job_logging.formatters.full.format="written: %(message)s"'
    words = ["-m", *settings, *ddp, logged, "trainer.max_steps=-1,2", f"paths.output_dir={outputs}"]
    done = start([str(ROOT / "train.py"), *words], ROOT).finish()
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    (folder,) = (outputs / "multirun").iterdir()
    assert {path.name for path in outputs.iterdir()} <= {"multirun", "features", "cache"}, "a process made its own run"
    return Sweep(folder, printed)


@pytest.fixture(scope="module")
def alone(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The same configuration in this process."""
    cfg = compose([*settings, "trainer=cpu", f"paths.output_dir={tmp_path_factory.mktemp('alone')}"])
    return Experiment.build(cfg)


def test_processes_of_each_job_share_its_folder(sweep: Sweep) -> None:
    assert {path.name for path in sweep.folder.iterdir()} == {"0", "1", "multirun.yaml"}
    for job in ("0", "1"):
        names = {path.name for path in (sweep.folder / job).iterdir()}
        assert {"train.log", "train_rank_1.log", "config.yaml", "history.csv", "metrics.json"} <= names
        assert "epoch 0:" in (sweep.folder / job / "train.log").read_text()
        assert "written: Features of" in (sweep.folder / job / "train_rank_1.log").read_text()  # as Hydra was told


def test_an_epoch_is_one_line_and_a_run_one_table(sweep: Sweep) -> None:
    assert sweep.printed.count(" epoch 0:") == 2, "of two jobs"
    assert sweep.printed.count(" epoch 1:") == 1
    assert sweep.printed.count("No epoch was validated") == 1
    assert sweep.printed.count("metrics.json") == 2, sweep.printed


@pytest.mark.parametrize("job", [0, 1])
def test_figures_are_those_of_an_evaluation_by_one_process(sweep: Sweep, alone: Experiment, job: int) -> None:
    found = sweep.metrics(job)
    best = alone.folder / "checkpoints" / "best.ckpt"
    best.parent.mkdir(exist_ok=True)
    shutil.copy2(sweep.folder / str(job) / "checkpoints" / "best.ckpt", best)
    alone.test()
    expected = {name: value for name, value in alone.metrics.items() if name.startswith("test/")}
    assert len(expected) > 30
    assert {name: value for name, value in found.items() if name.startswith("test/")} == expected
    alone._evaluate("val")
    for name in ("val/rsum", "val/loss", "val/i2t_mAP", "val/t2i_meanR"):
        assert found[name] == pytest.approx(alone.metrics[name], abs=2e-5)  # of float32, rounded
