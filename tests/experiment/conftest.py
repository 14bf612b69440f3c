"""Ctrl-C at a chosen moment of a small real experiment, and the features that an experiment began with."""

from collections.abc import Callable

import pytest
import pytorch_lightning as pl

from xmodal.experiment.features import load_dataset
from xmodal.experiment.parts import build_parts
from xmodal.experiment.run import Experiment, build_datamodule
from xmodal.features.datamodule import PairDataModule


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


def before_pooling(experiment: Experiment) -> PairDataModule:
    """The data of a run with the features that its encoders made, of which training may have kept pooled ones only."""
    parts = build_parts(experiment.cfg)
    return build_datamodule(experiment.cfg, parts, load_dataset(experiment.cfg, parts))


@pytest.fixture(scope="session")
def stop_after() -> type[StopAfter]:
    return StopAfter


@pytest.fixture(scope="session")
def data_of() -> Callable[[Experiment], PairDataModule]:
    """See `before_pooling`."""
    return before_pooling
