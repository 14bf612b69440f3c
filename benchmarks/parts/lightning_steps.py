"""Training steps through pl.Trainer, on the clock once they are warm."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from alternation import synchronize
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.loggers import CSVLogger

from xmodal.features.datamodule import PairDataModule
from xmodal.models.dual_encoder import DualEncoder

SEED = 0


@dataclass(frozen=True)
class Training:
    """What is trained, and for how many steps."""

    cfg: DictConfig
    datamodule: PairDataModule
    new_model: Callable[[], DualEncoder]  # the same each time
    device: torch.device
    warmup: int
    steps: int
    clock: Callable[[], float] = time.perf_counter


def through_lightning(training: Training) -> tuple[float, float]:
    """Steps per second of the real path, with logging, without validation and checkpoints; and the last loss."""
    stopwatch = Stopwatch(training)
    with tempfile.TemporaryDirectory() as folder:
        trainer = instantiate(
            training.cfg.trainer,
            accelerator="gpu" if training.device.type == "cuda" else "cpu",
            max_epochs=-1,
            max_steps=training.warmup + training.steps,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            logger=CSVLogger(folder),
            callbacks=[stopwatch],
            default_root_dir=folder,
        )
        trainer.fit(training.new_model(), datamodule=training.datamodule)
    return training.steps / stopwatch.seconds, stopwatch.loss


class Stopwatch(pl.Callback):
    """Seconds from the end of the last warm-up step to the end of the last step."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.start = self.seconds = self.loss = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, i: int) -> None:
        if i == 0:
            torch.manual_seed(SEED + trainer.current_epoch)  # so that drop-out is the bare loop's

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: dict, batch: object, i: int
    ) -> None:
        if trainer.global_step == self.training.warmup:
            synchronize(self.training.device)
            self.start = self.training.clock()
        if trainer.global_step == self.training.warmup + self.training.steps:
            self.loss = float(outputs["loss"])
            synchronize(self.training.device)
            self.seconds = self.training.clock() - self.start
