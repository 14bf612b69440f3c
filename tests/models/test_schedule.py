"""The learning rate of every optimizer step, under warm-ups, schedulers by steps and by epochs, and after a stop."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader
from transformers import get_cosine_schedule_with_warmup

from xmodal.aggregators.mean import MeanAggregator
from xmodal.config.check import check
from xmodal.config.command_line import compose
from xmodal.config.sources import ConfigSource
from xmodal.errors import ConfigError
from xmodal.losses.triplet import TripletLoss
from xmodal.models.build import schedule_of
from xmodal.models.dual_encoder import DualEncoder
from xmodal.models.projection import Projection
from xmodal.models.schedule import Schedule
from xmodal.models.tower import Tower
from xmodal.types import FeatureBatch, PairBatch

LR, BATCHES, EPOCHS = 0.1, 5, 4
ALL = BATCHES * EPOCHS
Rate = Callable[[int], float]  # of step t, as a share of the full one


class Watched(torch.optim.SGD):
    """Remembers the rate that each step was made with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rates: list[float] = []

    def step(self, closure: Any = None) -> Any:
        self.rates.append(self.param_groups[0]["lr"])
        return super().step(closure)


class Plateau(DualEncoder):
    """Each epoch is as good as the last."""

    def on_train_epoch_end(self) -> None:
        self.log("val/rsum", 1.0)


def model(schedule: Any, kind: type[DualEncoder] = DualEncoder, optimizer: Any = None) -> DualEncoder:
    torch.manual_seed(0)
    towers = [Tower(6, MeanAggregator(6), partial(Projection, output_dim=4, num_layers=1)) for _ in range(2)]
    return kind(*towers, TripletLoss(), optimizer or partial(Watched, lr=LR), schedule)


def pairs() -> DataLoader[Any]:
    draw = torch.Generator().manual_seed(1)
    mask, ids = torch.ones(4, 2, dtype=torch.bool), torch.arange(4)
    sides = [FeatureBatch(torch.randn(4, 2, 6, generator=draw), mask, ids) for _ in range(2 * BATCHES)]
    return DataLoader([PairBatch(*two) for two in zip(sides[::2], sides[1::2], strict=True)], batch_size=None)


def fit(made: DualEncoder, ckpt_path: Path | None = None, callbacks: Any = (), **options: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    settings: dict[str, Any] = {"max_epochs": EPOCHS, "accelerator": "cpu", "enable_checkpointing": False} | quiet
    trainer = pl.Trainer(**settings | options, callbacks=list(callbacks))
    trainer.fit(made, pairs(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def rates(schedule: Any, kind: type[DualEncoder] = DualEncoder, **options: Any) -> list[float]:
    trainer = fit(model(schedule, kind), **options)
    return [rate / LR for rate in trainer.optimizers[0].rates]


def ramp(t: int, steps: int) -> float:
    return min(1.0, (t + 1) / steps)


def half_cosine(t: float, length: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * t / length))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (None, lambda t: 1.0),
        (Schedule(None, warmup_steps=3), lambda t: ramp(t, 3)),
        (Schedule(partial(StepLR, step_size=3, gamma=0.1), "epoch", 5), lambda t: ramp(t, 5) * (0.1 if t >= 15 else 1)),
        (
            Schedule(partial(StepLR, step_size=6, gamma=0.5), "step", 2),
            lambda t: ramp(t, 2) * 0.5 ** (max(0, t - 2) // 6),
        ),
        (Schedule(partial(CosineAnnealingLR, T_max=EPOCHS)), lambda t: half_cosine(t // BATCHES, EPOCHS)),
        (Schedule(partial(CosineAnnealingLR, T_max=None)), lambda t: half_cosine(t // BATCHES, EPOCHS)),
        (
            Schedule(partial(CosineAnnealingLR, T_max=None), "step", 4),
            lambda t: ramp(t, 4) * half_cosine(max(0, t - 4), ALL - 4),
        ),
        (
            Schedule(partial(CosineAnnealingLR, T_max=None, eta_min=0.02), "step", 0.25),
            lambda t: ramp(t, 5) * (0.2 + 0.8 * half_cosine(max(0, t - 5), ALL - 5)),
        ),
        (Schedule(partial(LambdaLR, lr_lambda=lambda e: 1 / (e + 1)), "epoch", 7), lambda t: ramp(t, 7) / (t // 5 + 1)),
    ],
    ids=[
        "none",
        "warm-up",
        "step",
        "by steps",
        "cosine",
        "all epochs",
        "warm-up and cosine",
        "share and floor",
        "closed",
    ],
)
def test_rate_of_every_step(schedule: Any, expected: Rate) -> None:
    assert rates(schedule) == pytest.approx([expected(t) for t in range(ALL)], abs=1e-9)


def test_warm_up_goes_with_a_plateau_scheduler() -> None:
    schedule = Schedule(partial(ReduceLROnPlateau, mode="max", factor=0.5, patience=0), warmup_steps=8)
    expected = [ramp(t, 8) * (1, 1, 0.5, 0.25)[t // BATCHES] for t in range(ALL)]
    assert rates(schedule, Plateau) == pytest.approx(expected)


def test_schedulers_that_ask_for_all_steps_are_told() -> None:
    found = rates(Schedule(partial(OneCycleLR, max_lr=LR, total_steps=None, cycle_momentum=False), "step"))
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=LR)
    oracle, expected = OneCycleLR(optimizer, max_lr=LR, total_steps=ALL, cycle_momentum=False), []
    for step in range(ALL):
        expected.append(optimizer.param_groups[0]["lr"] / LR)
        optimizer.step()
        if step < ALL - 1:
            oracle.step()
    assert found == pytest.approx(expected)


def test_warm_up_and_cosine_are_those_of_transformers() -> None:
    """Theirs begins with a step of rate 0, so that ours is one step ahead in the warm-up, and the same after it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    oracle, expected = get_cosine_schedule_with_warmup(optimizer, 4, ALL), []
    for _ in range(ALL):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        oracle.step()
    found = rates(Schedule(partial(CosineAnnealingLR, T_max=None), "step", 4))
    assert found[:4] == pytest.approx(expected[1:5])
    assert found[4:] == pytest.approx(expected[4:])


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_steps": 7}, 7),
        ({"accumulate_grad_batches": 2}, 12),
        ({"limit_train_batches": 3}, 12),
        ({"overfit_batches": 2}, 8),
        ({"max_epochs": -1, "max_steps": 9}, 9),
        ({"max_epochs": 2}, 10),
    ],
)
def test_the_cosine_ends_with_the_run(options: dict[str, Any], steps: int) -> None:
    found = rates(Schedule(partial(CosineAnnealingLR, T_max=None), "step", 0.5), **options)
    warm = math.ceil(steps / 2)
    expected = [ramp(t, warm) * half_cosine(max(0, t - warm), steps - warm) for t in range(steps)]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("stop", [1, 2])
@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(partial(CosineAnnealingLR, T_max=None), "step", 8),
        Schedule(partial(StepLR, step_size=2, gamma=0.1), "epoch", 8),
    ],
    ids=["steps", "epochs"],
)
def test_a_resumed_run_has_the_rates_of_an_uninterrupted_one(schedule: Schedule, stop: int, tmp_path: Path) -> None:
    """It stops within the warm-up, and after it."""

    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.should_stop = trainer.current_epoch == stop - 1

    whole, part, rest = model(schedule), model(schedule), model(schedule)
    all_rates = fit(whole).optimizers[0].rates
    fit(part, callbacks=[Stop()]).save_checkpoint(tmp_path / "part.ckpt")
    assert fit(rest, tmp_path / "part.ckpt").optimizers[0].rates == all_rates[stop * BATCHES :]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name


def test_a_step_that_fails_leaves_the_rate_of_the_scheduler() -> None:
    class Interrupted(Watched):
        def step(self, closure: Any = None) -> Any:
            raise RuntimeError("stopped here")

    made, kept = model(Schedule(None, warmup_steps=10), optimizer=partial(Interrupted, lr=LR)), []

    class Keep(pl.Callback):
        def on_exception(self, trainer: pl.Trainer, *args: Any) -> None:
            kept.append(trainer.optimizers[0].param_groups[0]["lr"])

    with pytest.raises(RuntimeError, match="stopped here"):
        fit(made, callbacks=[Keep()])
    assert kept == [LR]


def test_the_rate_of_a_warm_up_is_logged(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    fit(model(Schedule(None, warmup_steps=3)), logger=logger, log_every_n_steps=1, max_epochs=1)
    header, *lines = (tmp_path / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    found = [float(row["train/lr"]) for row in rows if row["train/lr"]]
    assert found == pytest.approx([LR / 3, LR * 2 / 3, LR, LR, LR])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_steps": -1}, r"scheduler\.warmup_steps must be a number of optimizer steps .* found -1"),
        ({"warmup_steps": 1.5}, r"scheduler\.warmup_steps must be a number of optimizer steps .* found 1\.5"),
        ({"warmup_steps": float("inf")}, r"scheduler\.warmup_steps must be .* found inf"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Schedule(None, **settings)


def test_a_plateau_scheduler_by_steps_is_refused() -> None:
    with pytest.raises(ConfigError, match="waits for validations"):
        fit(model(Schedule(ReduceLROnPlateau, "step")))


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Schedule(None, warmup_steps=0.5), "nothing limits them: set trainer.max_epochs or trainer.max_steps"),
        (Schedule(partial(CosineAnnealingLR, T_max=None), "step"), "nothing limits them"),
        (Schedule(partial(CosineAnnealingLR, T_max=None)), r"scheduler\.T_max is all epochs of the run"),
    ],
)
def test_a_share_of_an_endless_run_is_refused(schedule: Schedule, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(model(schedule), max_epochs=-1, max_time="00:00:00:05")


def composed(*overrides: str) -> Schedule:
    return schedule_of(compose(list(overrides)).model)


def test_every_scheduler_can_have_a_warm_up() -> None:
    constant = composed("scheduler=none", "scheduler.warmup_steps=10")
    assert (constant.make, constant.warmup_steps) == (None, 10)
    for option in ("cosine", "step", "plateau"):
        made = composed(f"scheduler={option}", "scheduler.warmup_steps=0.1")
        assert (made.interval, made.warmup_steps) == ("epoch", 0.1)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        assert made.scheduler(optimizer, lambda: 100, 20) is not None


def test_warm_up_and_cosine_from_the_configuration() -> None:
    made = composed("scheduler=warmup_cosine")
    scheduler = made.scheduler(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), lambda: 200, 20)
    assert isinstance(scheduler, CosineAnnealingLR)
    assert (made.interval, made.warmup(lambda: 200), scheduler.T_max) == ("step", 10, 190)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["scheduler=warmup_cosine"], ["scheduler.T_max", "scheduler.warmup_steps=0.05"]),
        (["scheduler=warmup_cosine", "trainer.max_steps=50"], []),
        (["scheduler=none", "callbacks/averaging=swa"], ["callbacks.averaging.start_epoch=0.75"]),
        (["scheduler=none", "callbacks/averaging=ema", "scheduler.warmup_steps=20"], []),
    ],
)
def test_what_goes_by_the_length_of_an_endless_run_is_refused_before_it(overrides: list[str], named: list[str]) -> None:
    assert check(ConfigSource().load(overrides)) == []
    faults = check(ConfigSource().load([*overrides, "trainer.max_epochs=-1"]))
    assert [fault.split()[0] for fault in faults if "goes by the length" in fault] == named
