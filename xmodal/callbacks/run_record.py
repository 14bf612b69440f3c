"""What a run leaves behind whatever the logger: history.csv, row by row, and metrics.json."""

import csv
import json
import logging
import math
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from xmodal.atomic import complete_file
from xmodal.callbacks.pace import Pace
from xmodal.types import PairBatch

log = logging.getLogger(__name__)

Row = dict[str, float | int]  # one epoch: name → figure

HISTORY = "history.csv"
METRICS = "metrics.json"
PACE = "pairs_per_second"

_OF_A_STEP = ("train/loss_step", "train/lr")


class RunRecord(pl.Callback):
    """Writes one row per epoch to ``history.csv``; knows the metrics of every epoch.

    Args:
        folder: the run directory.
        monitor: the figure that the best epoch is chosen by.
    """

    def __init__(self, folder: str | Path, monitor: str = "val/rsum") -> None:
        self.folder = Path(folder)
        self.monitor = monitor
        self.history: list[Row] = []
        self._started = time.monotonic()
        self._learning_rate = 0.0
        self._pace = Pace()
        self._is_validated = False
        self._is_training = True

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._is_training = stage == "fit"  # testing the best checkpoint must not take back what came after it

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        before = self.history[-1]["seconds"] if self.history else 0.0  # of the run that this one goes on with
        self._started = time.monotonic() - before

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # at the end of the epoch the scheduler has already set the rate of the next
        self._learning_rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        self._is_validated = False
        self._pace.begin()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: PairBatch, batch_idx: int
    ) -> None:
        self._pace.count(len(batch.image.image_ids) * trainer.world_size)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._is_validated = not trainer.sanity_checking
        self._pace.go_on()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        row: Row = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "seconds": round(time.monotonic() - self._started, 2),
            "lr": self._learning_rate,
        }
        if (pace := self._pace.pairs_per_second) is not None:
            row[PACE] = round(pace, 1)
            for logger in trainer.loggers:
                logger.log_metrics({f"train/{PACE}": pace, "epoch": trainer.current_epoch}, trainer.global_step)
        row |= {
            name: round(float(value), 5)  # the logger keeps float32
            for name, value in sorted(trainer.callback_metrics.items())
            if (name.startswith("train/") and name not in _OF_A_STEP)
            or (self._is_validated and name.startswith("val/"))  # else of an earlier epoch
        }
        self.history.append(row)
        if trainer.is_global_zero:
            log.info("%s", _line(row, self.monitor))
            _write(self.folder / HISTORY, _as_csv(self.history))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A resumed run with nothing left to train still has a history."""
        if self.history and trainer.is_global_zero:
            _write(self.folder / HISTORY, _as_csv(self.history))

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._is_training:
            self.history = list(state_dict["history"])

    def row_of(self, epoch: int) -> Row:
        """Figures of an epoch (counted from 0); none where it is not recorded."""
        return next((row for row in self.history if row["epoch"] == epoch), {})

    def best_row(self) -> Row:
        """Figures of the first epoch in which the monitored one was highest; none where it is in no epoch."""
        known = [row for row in self.history if not math.isnan(row.get(self.monitor, math.nan))]
        return max(known, key=lambda row: row[self.monitor], default={})

    def write_metrics(self, metrics: Row) -> None:
        """Write ``metrics.json``: flat names such as ``test/i2t_R1``."""
        _write(self.folder / METRICS, json.dumps(metrics, indent=2) + "\n")


def _line(row: Row, monitor: str) -> str:
    """One epoch in one line: losses, recall at 1, 5 and 10 in both directions, what is monitored, seconds so far."""
    parts = [f"epoch {row['epoch']:.0f}:"]
    parts += [f"{name} {row[name]:.4f}" for name in ("train/loss", "val/loss") if name in row]
    for direction in ("i2t", "t2i"):
        recalls = [f"{row[name]:.1f}" for k in (1, 5, 10) if (name := f"val/{direction}_R{k}") in row]
        parts += [f"{direction} R@1/5/10 {' '.join(recalls)}"] if recalls else []
    parts += [f"{monitor.removeprefix('val/')} {row[monitor]:.1f}"] if monitor in row else []
    return "  ".join([*parts, f"({row['seconds']:.0f} s)"])


def _as_csv(rows: list[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    with complete_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
