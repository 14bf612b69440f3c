"""The learning rate over a run: a linear warm-up by steps, and any scheduler of torch by steps or epochs."""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from xmodal.errors import ConfigError

Scheduler = LRScheduler | ReduceLROnPlateau
Steps = Callable[[], int | float]  # optimizer steps of the whole run; inf where nothing limits it

_LENGTHS = ("T_max", "total_steps", "total_iters")  # how schedulers of torch call the length of their course
KEYS = ("interval", "warmup_steps")  # of a scheduler's configuration that are not its constructor's


class Schedule:
    """What makes the scheduler, what it counts, and for how long the rate is still below its own.

    Of a scheduler by steps, the first is the one after the warm-up. One by epochs goes on beside the warm-up.

    Args:
        make: makes a scheduler when given the optimizer, such as ``partial(StepLR, step_size=8)``; None for a constant
            rate. A length (T_max, total_steps, total_iters) that is None, or needed and not given, is what the run has:
            all steps after the warm-up, or all epochs.
        interval: whether the scheduler is stepped after each optimizer step, or after each epoch.
        warmup_steps: optimizer steps before the rate is the scheduler's own: of W of them, step t (from 0) has
            (t + 1) / W of it (Goyal et al., Accurate, Large Minibatch SGD, 2017, section 2.2). Below 1: a share of
            all steps.

    Raises:
        ConfigError: a negative number of steps, or a broken one.
    """

    def __init__(
        self,
        make: Callable[..., Scheduler] | None = None,
        interval: Literal["epoch", "step"] = "epoch",
        warmup_steps: int | float = 0,
    ) -> None:
        if not math.isfinite(warmup_steps) or warmup_steps < 0 or (warmup_steps > 1 and warmup_steps % 1):
            raise ConfigError(
                "scheduler.warmup_steps must be a number of optimizer steps (0, 1, …), or a share of all steps between "
                f"0 and 1, found {warmup_steps}."
            )
        self.make = make
        self.interval = interval
        self.warmup_steps = warmup_steps

    def scheduler(self, optimizer: Optimizer, all_steps: Steps, epochs: int | None) -> Scheduler | None:
        """The scheduler of an optimizer; None where the rate is constant.

        Raises:
            ConfigError: its course has no length, or it waits for validations and was to be stepped in between.
        """
        if self.make is None:
            return None
        scheduler = self.make(optimizer, **self._lengths(all_steps, epochs))
        if self.interval == "step" and isinstance(scheduler, ReduceLROnPlateau):
            raise ConfigError("scheduler.interval=step: a plateau scheduler waits for validations. Choose epoch.")
        return scheduler

    def _lengths(self, all_steps: Steps, epochs: int | None) -> dict[str, int]:
        empty = _empty_lengths(self.make)
        if not empty:
            return {}
        if self.interval == "step":
            return dict.fromkeys(empty, max(1, _limited(all_steps()) - self.warmup(all_steps)))
        if epochs is None or epochs < 1:
            raise ConfigError(f"scheduler.{empty[0]} is all epochs of the run: set trainer.max_epochs.")
        return dict.fromkeys(empty, epochs)

    def warmup(self, all_steps: Steps) -> int:
        """Optimizer steps of the warm-up, rounded up."""
        share = 0 < self.warmup_steps < 1
        return math.ceil(self.warmup_steps * _limited(all_steps()) - 1e-9) if share else int(self.warmup_steps)


@contextmanager
def warming_up(optimizer: Optimizer, step: int, warmup_steps: int) -> Iterator[None]:
    """Lower the rates of ``optimizer`` for its step number ``step`` (from 0); they are the scheduler's again after it.

    Nothing of a warm-up is kept in optimizer or scheduler, so that it goes with any scheduler, and goes on by the
    number of the step alone.
    """
    if step >= warmup_steps:
        yield
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * (step + 1) / warmup_steps
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def _empty_lengths(make: Any) -> list[str]:
    """Lengths that a scheduler can't do without and has not been given, or that are None."""
    given, parameters = getattr(make, "keywords", {}), inspect.signature(make).parameters
    needed = [name for name in _LENGTHS if name in parameters and parameters[name].default is inspect.Parameter.empty]
    return [name for name in _LENGTHS if (given[name] is None if name in given else name in needed)]


def _limited(steps: int | float) -> int:
    if not math.isfinite(steps) or steps < 1:
        raise ConfigError(
            "The schedule goes by the number of all optimizer steps, and nothing limits them: set trainer.max_epochs "
            "or trainer.max_steps, or choose scheduler=none, step or plateau with scheduler.warmup_steps of 0, 1, …"
        )
    return int(steps)
