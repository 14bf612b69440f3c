"""Interrupting a run and going on with it, without losing the best model or its score."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from xmodal.atomic import complete_file
from xmodal.callbacks.averaging import KEPT, AveragedWeights, restore_training_weights
from xmodal.callbacks.diagnosis import are_numbers

log = logging.getLogger(__name__)

LAST = "last.ckpt"


class Resume(Checkpoint):
    """Keeps ``last.ckpt`` of every epoch, and carries best checkpoint and score into the folder of the resumed run.

    Lightning's own ``save_last`` writes only where the best has just been written, so that an interrupted run would go
    on from its best epoch. It also forgets the best score when a run goes on in another folder: a worse epoch would
    be taken for the best. (``Checkpoint`` has no code: it makes Lightning call this after all other callbacks, in the
    order of the configuration, so that what they know of the epoch is kept.)

    Args:
        checkpoints: the run's folder of checkpoints.
        monitor: the figure of validation that a plateau scheduler waits for.
    """

    def __init__(self, checkpoints: str | Path, monitor: str = "val/rsum") -> None:
        self.checkpoints = Path(checkpoints)
        self.monitor = monitor
        # of the epoch that ends: a plateau scheduler sees it only after checkpoints are saved
        self._monitored: float | None = None

    @property
    def state_key(self) -> str:
        """With the figure's name: where a run goes on by another one, the value of the first means nothing."""
        return self._generate_state_key(monitor=self.monitor)

    def state_dict(self) -> dict[str, Any]:
        return {"monitored": self._monitored, "random": _random_states()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Draw from now on what would have been drawn next (drop-out), not what the first epoch drew."""
        self._monitored = state_dict["monitored"]
        _set_random_states(state_dict.get("random", {}))  # older checkpoints have none

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make up for the step of a plateau scheduler that the resumed checkpoint was saved before."""
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau) and self._monitored is not None:
                config.scheduler.step(self._monitored)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._monitored = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._monitored = float(trainer.callback_metrics[self.monitor])

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Runs before the callbacks take their state out of ``checkpoint``."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                state = checkpoint["callbacks"].get(callback.state_key)
                if state and state["dirpath"] != callback.dirpath:
                    self._adopt(state, trainer.is_global_zero)
        if KEPT in checkpoint and trainer.training and not _averages(trainer):
            log.info("Going on without callbacks/averaging, with the weights that the average was of.")
            restore_training_weights(pl_module, checkpoint)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """In the first epoch there is no ``last.ckpt`` yet: keep the parameters as they are now."""
        last = self.checkpoints / LAST
        if isinstance(exception, KeyboardInterrupt) and trainer.global_step > 0 and not last.exists():
            trainer.save_checkpoint(last, weights_only=False)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the epoch, unless its weights are no numbers: nothing can go on from these."""
        if not are_numbers(pl_module):
            return
        trainer.save_checkpoint(self.checkpoints / LAST, weights_only=False)

    def _adopt(self, state: dict[str, Any], is_first: bool) -> None:
        best = Path(state["best_model_path"])
        if not best.is_file():  # the old folder was moved or removed: without the file its score means nothing
            if state["best_model_path"]:
                log.warning("The best checkpoint so far, %s, is gone: the best epoch is chosen among the next.", best)
            state |= {"best_model_score": None, "best_k_models": {}, "best_model_path": "", "kth_best_model_path": ""}
            state |= {"dirpath": str(self.checkpoints), "last_model_path": ""}
            return
        copy = self.checkpoints / best.name
        if is_first:  # of several processes
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            with complete_file(copy) as partial:
                shutil.copy2(best, partial)
        state["dirpath"] = str(self.checkpoints)
        state["best_model_path"] = state["kth_best_model_path"] = str(copy)
        state["best_k_models"] = {str(copy): state["best_model_score"]}
        state["last_model_path"] = ""


def _random_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: dict[str, Tensor]) -> None:
    if "cpu" in states:
        torch.set_rng_state(states["cpu"].cpu())
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())


def _averages(trainer: pl.Trainer) -> bool:
    return any(isinstance(callback, AveragedWeights) for callback in trainer.callbacks)  # type: ignore[attr-defined]
