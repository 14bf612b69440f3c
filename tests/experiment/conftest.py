"""Small real experiments: rendered scenes, their thumbnails as image features, FastText trained on their captions."""

import contextlib
import io
import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from PIL import Image

from xmodal.config.command_line import compose
from xmodal.experiment.features import load_dataset
from xmodal.experiment.parts import build_parts
from xmodal.experiment.run import Experiment, build_datamodule
from xmodal.features.datamodule import PairDataModule

SIZES = {"train": 40, "val": 12, "test": 14}


@dataclass
class Finished:
    """A run that has ended, its experiment, and what it printed."""

    experiment: Experiment
    folder: Path
    output: str
    score: float | None


class StopAfter(pl.Callback):
    """Ctrl-C at the end of an epoch, after every other callback has had its turn, or after a training step."""

    def __init__(self, epoch: int | None = None, step: int | None = None) -> None:
        self.epoch, self.step = epoch, step

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.epoch is not None and trainer.current_epoch > self.epoch:
            raise KeyboardInterrupt

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        if self.step is not None and trainer.global_step >= self.step:
            raise KeyboardInterrupt


@dataclass
class Workshop:
    """Makes experiments that share scenes, features and word vectors, each with an output folder of its own."""

    root: Path
    finished: dict[str, Finished] = field(default_factory=dict)

    def compose(self, name: str, *overrides: str) -> DictConfig:
        sizes = [f"data.{split}_size={size}" for split, size in SIZES.items()]
        fixed = [
            "data=scenes",
            *sizes,
            "data.image_size=48",
            f"data.root={self.root / 'scenes'}",
            "data.batch_size=64",
            "embedding_dim=16",
            "model.image_tower.projection.hidden_dim=32",
            "model.text_tower.projection.hidden_dim=32",
            "trainer=cpu",
            "trainer.max_epochs=3",
            "trainer.enable_progress_bar=false",
            "logger=none",
            "optimizer.lr=0.005",
            f"paths.output_dir={self.root / name}",
            f"paths.features_dir={self.root / 'features'}",
            f"paths.cache_dir={self.root / 'cache'}",
        ]
        if not any(line.startswith("image_encoder=") for line in overrides):
            fixed += ["image_encoder=precomputed", f"image_encoder.path={self.root / 'thumbnails.npy'}"]
        if not any(line.startswith("text_encoder=") for line in overrides):
            fixed += ["text_encoder.vector_size=16", "text_encoder.epochs=1", "text_encoder.bucket=500"]
        return compose([*fixed, *overrides])  # of two settings of a key the later one counts

    def build(self, name: str, *overrides: str) -> Experiment:
        return Experiment.build(self.compose(name, *overrides))

    def run(self, name: str, *overrides: str) -> Finished:
        """The whole run, as train.py does it."""
        experiment = self.build(name, *overrides)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), attached_log(printed):
            experiment.fit()
            experiment.test()
            score = experiment.finish()
        return Finished(experiment, experiment.folder, printed.getvalue(), score)

    def interrupted(self, name: str, stop: StopAfter, *overrides: str) -> tuple[Experiment, SystemExit, str]:
        """A run stopped by Ctrl-C; Lightning ignores further signals from then on, so the handler is put back."""
        experiment = self.build(name, *overrides)
        experiment.trainer.callbacks.insert(0, stop)  # type: ignore[attr-defined]
        handler, printed = signal.getsignal(signal.SIGINT), io.StringIO()
        try:
            with contextlib.redirect_stderr(printed), pytest.raises(SystemExit) as leaving:
                experiment.fit()
        finally:
            signal.signal(signal.SIGINT, handler)
        return experiment, leaving.value, printed.getvalue()


@contextlib.contextmanager
def attached_log(stream: io.StringIO) -> Iterator[None]:
    handler, logger = logging.StreamHandler(stream), logging.getLogger("xmodal")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def before_pooling(experiment: Experiment) -> PairDataModule:
    """The data of a run with the features that its encoders made, of which training may have kept pooled ones only."""
    parts = build_parts(experiment.cfg)
    return build_datamodule(experiment.cfg, parts, load_dataset(experiment.cfg, parts))


def thumbnails(items, side: int = 6) -> np.ndarray:
    pictures = [Image.open(image.path).convert("RGB").resize((side, side)) for image in items.images]
    return np.stack([np.asarray(picture, dtype=np.float32).ravel() / 255 for picture in pictures])


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    torch.set_num_threads(1)
    made = Workshop(tmp_path_factory.mktemp("experiments"))
    np.save(made.root / "thumbnails.npy", np.zeros((1, 1), dtype=np.float32))  # the check wants a file
    cfg = made.compose("first")
    items = load_dataset(cfg, build_parts(cfg)).full
    np.save(made.root / "thumbnails.npy", thumbnails(items))
    return made


@pytest.fixture(scope="session")
def plain_run(workshop: Workshop) -> Finished:
    """Three epochs with the CSV logger, to the end."""
    return workshop.run("plain", "logger=csv")


@pytest.fixture(scope="session")
def stop_after() -> type[StopAfter]:
    return StopAfter


@pytest.fixture(scope="session")
def data_of() -> Callable[[Experiment], PairDataModule]:
    """See `before_pooling`."""
    return before_pooling
