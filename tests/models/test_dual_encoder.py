"""Trainable tails in the optimizer: own learning rates, and frozen until their epoch."""

from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

from xmodal.aggregators.mean import MeanAggregator
from xmodal.errors import ConfigError
from xmodal.losses.infonce import InfoNCELoss
from xmodal.losses.triplet import TripletLoss
from xmodal.models.dual_encoder import DualEncoder
from xmodal.models.projection import Projection
from xmodal.models.tower import Tower
from xmodal.types import FeatureBatch, PairBatch

LR = 0.1
EPOCHS = 4


class Tail(nn.Module):
    """A linear layer and drop-out; remembers in which mode each training batch was seen."""

    output_dim = 5

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)
        self.dropout = nn.Dropout(0.5)
        self.modes: list[bool] = []

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        self.modes.append(self.training)
        return self.dropout(self.layer(x)), mask


class Watch(pl.Callback):
    """The tail's weights after every epoch, and the rates of both groups during it."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []
        self.rates: list[list[float]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, DualEncoder)
        self.weights.append(pl_module.text_tower.tail.layer.weight.detach().clone())


def tower(feature_dim: int) -> Tower:
    return Tower(feature_dim, MeanAggregator(feature_dim), partial(Projection, output_dim=4, num_layers=1))


def model(with_tail: bool = True, scheduler: Any = None, optimizer: Any = None, **settings: Any) -> DualEncoder:
    torch.manual_seed(0)
    make = optimizer or partial(torch.optim.Adam, lr=LR)
    made = DualEncoder(tower(6), tower(5), TripletLoss(), make, scheduler, monitor="val/rsum", **settings)
    if with_tail:
        made.text_tower.attach(Tail())
    return made


def batches(count: int = 2, text_dim: int = 3) -> DataLoader[Any]:
    draw = torch.Generator().manual_seed(1)
    mask, ids = torch.ones(4, 2, dtype=torch.bool), torch.arange(4)

    def side(width: int) -> FeatureBatch:
        return FeatureBatch(torch.randn(4, 2, width, generator=draw), mask, ids)

    return DataLoader([PairBatch(side(6), side(text_dim)) for _ in range(count)], batch_size=None)


class Logging(DualEncoder):
    """With a figure for the plateau scheduler, without any validation; each epoch is as good as the last."""

    def on_train_epoch_end(self) -> None:
        self.log("val/rsum", 1.0)


def fit(made: DualEncoder, *callbacks: pl.Callback, epochs: int = EPOCHS, ckpt_path: str | None = None, **options: Any):
    settings: dict[str, Any] = {"logger": False, "enable_checkpointing": False} | options
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        gradient_clip_val=2.0,
        **settings,
    )
    trainer.fit(made, batches(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def test_without_tails_there_is_one_group_of_all_parameters() -> None:
    optimizer = model(with_tail=False).configure_optimizers()
    assert [group["lr"] for group in optimizer.param_groups] == [LR]
    assert "name" not in optimizer.param_groups[0]


def test_a_tail_is_a_group_with_its_own_rate() -> None:
    made = model(tail_lr_factor=0.25)
    heads, tail = made.configure_optimizers().param_groups
    assert (heads["name"], heads["lr"], tail["name"], tail["lr"]) == ("heads", LR, "tail", LR * 0.25)
    names = {id(parameter): name for name, parameter in made.named_parameters()}
    in_tail = sorted(names[id(parameter)] for parameter in tail["params"])
    assert in_tail == ["text_tower.tail.layer.bias", "text_tower.tail.layer.weight"]
    assert len(heads["params"]) + len(tail["params"]) == len(names)


def cosine(epoch: int) -> float:
    return 0.5 * (1 + torch.cos(torch.tensor(torch.pi * epoch / EPOCHS)).item())


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (None, [1.0, 1.0, 1.0, 1.0]),
        (partial(StepLR, step_size=2, gamma=0.1), [1.0, 1.0, 0.1, 0.1]),
        (partial(CosineAnnealingLR, T_max=EPOCHS), [cosine(epoch) for epoch in range(EPOCHS)]),
        (partial(ReduceLROnPlateau, mode="max", factor=0.5, patience=0), [1.0, 1.0, 0.5, 0.25]),
    ],
    ids=["none", "step", "cosine", "plateau"],
)
def test_every_scheduler_keeps_the_ratio_of_the_two_rates(scheduler: Any, expected: list[float]) -> None:
    torch.manual_seed(0)
    made = Logging(tower(6), tower(5), TripletLoss(), partial(torch.optim.Adam, lr=LR), scheduler, tail_lr_factor=0.25)
    made.text_tower.attach(Tail())
    watch = Watch()
    fit(made, watch)
    for (heads, tail), share in zip(watch.rates, expected, strict=True):
        assert heads == pytest.approx(LR * share)
        assert tail == pytest.approx(LR * share * 0.25)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_a_tail_stays_as_it_is_until_its_epoch(weight_decay: float) -> None:
    """Neither gradients nor weight decay move it, and its drop-out is off."""
    made = model(unfreeze_epoch=2, optimizer=partial(torch.optim.AdamW, lr=LR, weight_decay=weight_decay))
    before, head = made.text_tower.tail.layer.weight.detach().clone(), made.text_tower.projection.layers[0].weight
    head_before, watch = head.detach().clone(), Watch()
    fit(made, watch)
    assert torch.equal(watch.weights[0], before)
    assert torch.equal(watch.weights[1], before)
    assert not torch.equal(watch.weights[2], before)
    assert not torch.equal(head.detach(), head_before)
    assert made.text_tower.tail.modes == [False] * 4 + [True] * 4


def test_a_tail_without_a_learning_rate_never_moves_but_drops_out() -> None:
    made = model(tail_lr_factor=0.0, optimizer=partial(torch.optim.AdamW, lr=LR, weight_decay=0.5))
    before, watch = made.text_tower.tail.layer.weight.detach().clone(), Watch()
    fit(made, watch, epochs=2)
    assert torch.equal(watch.weights[-1], before)
    assert all(made.text_tower.tail.modes)


def test_a_resumed_run_unfreezes_when_an_uninterrupted_one_does(tmp_path: Any) -> None:
    """Drop-out off, because its draws are not part of a checkpoint."""

    def fresh() -> DualEncoder:
        made = model(unfreeze_epoch=2, scheduler=partial(StepLR, step_size=1, gamma=0.5))
        made.text_tower.tail.dropout.p = 0.0
        return made

    whole, watch = fresh(), Watch()
    fit(whole, watch)
    for stop in (1, 3):
        part, rest = fresh(), Watch()
        fit(part, epochs=stop).save_checkpoint(tmp_path / "part.ckpt")
        resumed = fresh()
        fit(resumed, rest, ckpt_path=str(tmp_path / "part.ckpt"))
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name
        assert rest.rates == watch.rates[stop:]


def test_validation_between_epochs_leaves_a_waiting_tail_in_evaluation_mode() -> None:
    made = model(unfreeze_epoch=1)
    made.train()
    assert not made.text_tower.tail.training
    assert made.text_tower.projection.training
    made.eval()
    made.train()
    assert not made.text_tower.tail.dropout.training
    assert model(unfreeze_epoch=0).train().text_tower.tail.training


def test_both_rates_are_logged(tmp_path: Any) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    fit(model(tail_lr_factor=0.25), LearningRateMonitor("epoch"), epochs=1, logger=logger)
    header, first, *_ = (tmp_path / "metrics.csv").read_text().splitlines()
    row = dict(zip(header.split(","), first.split(","), strict=True))
    assert float(row["lr-Adam/heads"]) == LR
    assert float(row["lr-Adam/tail"]) == LR * 0.25


def test_pooled_batches_go_to_the_projection_alone() -> None:
    made = model(with_tail=False).eval()
    x, mask, ids = torch.randn(3, 4, 6), torch.tensor([[True] * 4, [True] + [False] * 3, [False] * 4]), torch.arange(3)
    whole = made.embed_images(FeatureBatch(x, mask, ids))
    pooled = made.image_tower.pool(x, mask)[:, None]
    again = made.embed_images(FeatureBatch(pooled, torch.ones(3, 1, dtype=torch.bool), ids, pooled=True))
    assert torch.equal(whole, again)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tail_lr_factor": -0.1}, r"optimizer\.tail_lr_factor must be a number of at least 0, found -0\.1"),
        ({"tail_lr_factor": float("nan")}, r"optimizer\.tail_lr_factor must be a number of at least 0, found nan"),
        ({"unfreeze_epoch": -1}, r"unfreeze_epoch must be at least 0, found -1"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model(**settings)


def test_what_a_loss_learns_does_not_decay() -> None:
    torch.manual_seed(0)
    made = DualEncoder(tower(6), tower(5), InfoNCELoss(), partial(torch.optim.AdamW, lr=LR, weight_decay=0.2))
    heads, learned = made.configure_optimizers().param_groups
    assert (heads["name"], heads["weight_decay"]) == ("heads", 0.2)
    assert (learned["name"], learned["weight_decay"], len(learned["params"])) == ("loss", 0.0, 1)
    assert len(heads["params"]) + 1 == len(list(made.parameters()))


def test_a_loss_of_an_older_checkpoint_finds_its_place() -> None:
    made = DualEncoder(tower(6), tower(5), InfoNCELoss(), partial(torch.optim.Adam, lr=LR))
    older = {name.replace("objective.loss.", "loss."): value + 0.25 for name, value in made.state_dict().items()}
    assert any(name.startswith("loss.") for name in older)
    made.load_state_dict(older)
    for name, value in made.state_dict().items():
        torch.testing.assert_close(value, older[name.replace("objective.loss.", "loss.")])
