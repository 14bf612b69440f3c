"""Averaged weights: validated, kept as the best, tested and loaded, while the weights themselves go on learning."""

import logging
import math
from collections.abc import Callable
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from xmodal.errors import ConfigError

log = logging.getLogger(__name__)

# in a checkpoint, whose state_dict is the average: the weights in training, and how many the average is of
KEPT = "averaging"


def exponential(decay: float = 0.999, warm_up: bool = True, start_epoch: int | float = 0) -> "AveragedWeights":
    """An exponential moving average (EMA), taken after every optimizer step: ``a ← d·a + (1 − d)·w``.

    Polyak and Juditsky, Acceleration of stochastic approximation by averaging, 1992; the decay of the first steps,
    ``d = min(decay, (1 + n) / (10 + n))`` after n of them, is that of TensorFlow's ExponentialMovingAverage.

    Args:
        decay: in [0, 1): the average is of about the last 1 / (1 − decay) steps.
        warm_up: begin with a lower decay, so that the random weights of the beginning are soon forgotten.
        start_epoch: first epoch (from 0) that is averaged; between 0 and 1, a share of ``trainer.max_epochs``.

    Raises:
        ConfigError: a value out of its range.
    """
    if not 0 <= decay < 1:
        raise ConfigError(f"callbacks.averaging.decay must lie in [0, 1), found {decay}.")

    def share(count: int) -> float:
        return 1 - (min(decay, (1 + count) / (10 + count)) if warm_up else decay)

    return AveragedWeights(share, "step", start_epoch)


def equal(start_epoch: int | float = 0.75) -> "AveragedWeights":
    """The mean of the weights at the end of each epoch from ``start_epoch`` on: ``a ← a + (w − a) / (n + 1)``.

    Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, UAI 2018 (SWA), equation 1.

    Args:
        start_epoch: first epoch (from 0) that is averaged; between 0 and 1, a share of ``trainer.max_epochs``.

    Raises:
        ConfigError: a negative epoch.
    """
    return AveragedWeights(lambda count: 1 / (count + 1), "epoch", start_epoch)


class AveragedWeights(pl.Callback):
    """Keeps a running average of the weights, and shows it wherever the model is looked at.

    Averaged are all parameters, and the running statistics of batch normalisation, which belong to the weights that
    made them. All other buffers (standardisation, memories, counts) are those of the model in training.

    In validation the model holds the average. So does ``state_dict`` of every checkpoint, for all who read one;
    the weights in training lie beside it, and a resumed run goes on from them. Half-precision weights are averaged in
    float32. (Lightning's own callback copies the whole model with its encoders and memories, averages all of its
    buffers, and puts the weights in training back when a checkpoint is loaded for a test.)

    Args:
        share: of the newest weights in the average, given how many it is of so far (at least 1).
        every: whether weights are taken up after each optimizer step, or at the end of each epoch.
        start_epoch: first epoch that is averaged; between 0 and 1, a share of ``trainer.max_epochs``.

    Raises:
        ConfigError: a negative epoch.
    """

    def __init__(
        self, share: Callable[[int], float], every: Literal["step", "epoch"], start_epoch: int | float = 0
    ) -> None:
        if not math.isfinite(start_epoch) or start_epoch < 0 or (start_epoch > 1 and start_epoch != int(start_epoch)):
            raise ConfigError(
                "callbacks.averaging.start_epoch must be an epoch (0, 1, …) or a share of trainer.max_epochs between 0 "
                f"and 1, found {start_epoch}."
            )
        self._share = share
        self._every = every
        self._start_epoch = start_epoch
        self._forget()

    def _forget(self) -> None:
        self._count = 0  # how many weights the average is of
        self._average: dict[str, Tensor] = {}
        self._in_training: dict[str, Tensor] | None = None  # set aside while the model holds the average
        self._last_step = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Before a checkpoint is loaded; raises ConfigError for a share of an endless training."""
        if stage != "fit":
            return
        self._forget()
        if 0 < self._start_epoch < 1 and trainer.max_epochs in (None, -1):
            raise ConfigError(
                f"callbacks.averaging.start_epoch={self._start_epoch} is a share of trainer.max_epochs, which sets no "
                "limit. Name an epoch, or set trainer.max_epochs."
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step = trainer.global_step
        live = averaged_tensors(pl_module)
        self._average = {name: average.to(live[name].device) for name, average in self._average.items()}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Before the validation that may follow, so that what is validated is what is kept."""
        if trainer.global_step == self._last_step:  # gradients are still being accumulated
            return
        self._last_step = trainer.global_step
        if trainer.current_epoch >= self._first_epoch(trainer) and (self._every == "step" or trainer.is_last_batch):
            self._take_up(pl_module)

    def _first_epoch(self, trainer: pl.Trainer) -> int:
        share = self._start_epoch if self._start_epoch < 1 else 0
        return int(share * (trainer.max_epochs or 0)) if share else int(self._start_epoch)

    @torch.no_grad()
    def _take_up(self, model: nn.Module) -> None:
        live = averaged_tensors(model)
        if self._count == 0:
            self._average = {name: _exact(tensor).clone() for name, tensor in live.items()}
        else:
            newest = [_exact(tensor) for tensor in live.values()]
            get_ema_multi_avg_fn(1 - self._share(self._count))([self._average[name] for name in live], newest, None)
        self._count += 1

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if _is_fitting(trainer):
            self._show(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if _is_fitting(trainer):
            self._hide(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The model that training leaves is the average; where none was begun, that is said."""
        if self._count == 0 and trainer.is_global_zero:
            log.warning(
                "callbacks.averaging.start_epoch=%s: training ended in epoch %d, before any weights were averaged. "
                "The model is as training left it.",
                self._start_epoch,
                trainer.current_epoch,
            )
        self._show(pl_module)

    @torch.no_grad()
    def _show(self, model: nn.Module) -> None:
        if self._count == 0 or self._in_training is not None:
            return
        live = averaged_tensors(model)
        self._in_training = {name: tensor.detach().clone() for name, tensor in live.items()}
        _fill(live, self._average)

    def _hide(self, model: nn.Module) -> None:
        if self._in_training is not None:
            _fill(averaged_tensors(model), self._in_training)
            self._in_training = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Also right where validation was interrupted, and the model still holds the average."""
        if self._count == 0 or not _is_fitting(trainer):
            return
        live = averaged_tensors(pl_module)
        names = {id(tensor): name for name, tensor in live.items()}
        for name, tensor in pl_module.state_dict(keep_vars=True).items():  # one tensor may have several names
            if id(tensor) in names:
                checkpoint["state_dict"][name] = self._average[names[id(tensor)]]
        current = self._in_training or {name: tensor.detach() for name, tensor in live.items()}
        checkpoint[KEPT] = {"count": self._count, "in_training": current}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The model has been given the average already: to test it, that is all."""
        if not _is_fitting(trainer) or KEPT not in checkpoint:
            return
        live = averaged_tensors(pl_module)
        self._count = checkpoint[KEPT]["count"]
        self._average = {name: _exact(checkpoint["state_dict"][name]).clone() for name in live}
        restore_training_weights(pl_module, checkpoint)


def averaged_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What is averaged of a model, by name, each tensor once: its parameters, and statistics of batch normalisation."""
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    for prefix, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            found = {name: getattr(module, name) for name in ("running_mean", "running_var")}
            tensors |= {f"{prefix}.{name}": tensor for name, tensor in found.items() if tensor is not None}
    return tensors


def restore_training_weights(model: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Put the weights that were in training when ``checkpoint`` was saved into the model."""
    _fill(averaged_tensors(model), checkpoint[KEPT]["in_training"])


@torch.no_grad()
def _fill(tensors: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(values[name])


def _exact(tensor: Tensor) -> Tensor:
    """In half precision, a thousandth of the difference would be rounded away."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _is_fitting(trainer: pl.Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING
