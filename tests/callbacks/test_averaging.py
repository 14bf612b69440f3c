"""Averages of the weights in real training: against loops over the weights of every step, and through checkpoints."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from xmodal.aggregators.mean import MeanAggregator
from xmodal.callbacks.averaging import KEPT, AveragedWeights, averaged_tensors, equal, exponential
from xmodal.callbacks.resume import LAST, Resume
from xmodal.errors import ConfigError
from xmodal.losses.triplet import TripletLoss
from xmodal.models.dual_encoder import DualEncoder
from xmodal.models.projection import Projection
from xmodal.models.schedule import Schedule
from xmodal.models.tower import Tower
from xmodal.types import FeatureBatch, PairBatch

BATCHES, EPOCHS = 3, 4
State = dict[str, Tensor]


class Tail(nn.Module):
    """With batch normalisation, as the tails of many image encoders."""

    output_dim = 5

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.norm(self.layer(x).transpose(1, 2)).transpose(1, 2), mask


def model(**settings: Any) -> DualEncoder:
    torch.manual_seed(0)
    towers = [Tower(d, MeanAggregator(d), partial(Projection, output_dim=4, num_layers=1)) for d in (6, 5)]
    made = DualEncoder(*towers, TripletLoss(), partial(torch.optim.Adam, lr=0.1), **settings)
    made.text_tower.attach(Tail())
    return made


def side(width: int, draw: torch.Generator) -> FeatureBatch:
    return FeatureBatch(torch.randn(4, 2, width, generator=draw), torch.ones(4, 2, dtype=torch.bool), torch.arange(4))


def pairs() -> DataLoader[Any]:
    draw = torch.Generator().manual_seed(1)
    return DataLoader([PairBatch(side(6, draw), side(3, draw)) for _ in range(BATCHES)], batch_size=None)


def galleries() -> list[DataLoader[Any]]:
    draw = torch.Generator().manual_seed(2)
    return [DataLoader([side(width, draw)], batch_size=None) for width in (6, 3)]


def copied(module: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


class Watch(pl.Callback):
    """The state of the model after every optimizer step, in every validation, and when an epoch begins."""

    def __init__(self) -> None:
        self.steps: list[State] = []
        self.epochs: list[int] = []
        self.validated: list[State] = []
        self.begun: list[State] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.begun.append(copied(pl_module))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if trainer.global_step > len(self.steps):
            self.steps.append(copied(pl_module))
            self.epochs.append(trainer.current_epoch)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self.validated.append(copied(pl_module))


class StopInValidation(pl.Callback):
    def on_validation_batch_end(self, *args: Any) -> None:
        raise KeyboardInterrupt


def trainer_with(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0, "logger": False}
    keeps = any(isinstance(callback, Checkpoint) for callback in callbacks)
    settings: dict[str, Any] = {"max_epochs": EPOCHS, "accelerator": "cpu", "enable_checkpointing": keeps} | quiet
    return pl.Trainer(**settings | options, callbacks=list(callbacks))


def fit(made: DualEncoder, *callbacks: pl.Callback, ckpt_path: Path | None = None, **options: Any) -> pl.Trainer:
    trainer = trainer_with(*callbacks, **options)
    trainer.fit(made, pairs(), galleries(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def assert_same(left: State, right: State, **tolerance: float) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], **(tolerance or {"rtol": 0, "atol": 0}), msg=name)


def assert_average(found: State, expected: State, newest: State) -> None:
    """``expected`` names what is averaged; everything else is that of the model in training."""
    for name, value in found.items():
        torch.testing.assert_close(value, expected.get(name, newest[name]), rtol=1e-4, atol=1e-6, msg=name)


def moving(states: list[State], names: set[str], decay: float, warm_up: bool) -> list[State]:
    """After every state, the average of those so far."""
    averages: list[State] = []
    for count, state in enumerate(states):
        d = min(decay, (1 + count) / (10 + count)) if warm_up else decay
        before = averages[-1] if averages else state
        averages.append({name: d * before[name] + (1 - d) * state[name] for name in names})
    return averages


@pytest.mark.parametrize("warm_up", [True, False])
def test_exponential_average_is_that_of_a_loop(warm_up: bool) -> None:
    made, watch = model(), Watch()
    names = set(averaged_tensors(made))
    fit(made, watch, exponential(0.8, warm_up=warm_up), gradient_clip_val=0.1)
    averages = moving(watch.steps, names, 0.8, warm_up)
    assert_average(copied(made), averages[-1], watch.steps[-1])
    for epoch in range(EPOCHS):  # both galleries saw the average, and training went on from where it was
        last = BATCHES * (epoch + 1) - 1
        for seen in watch.validated[2 * epoch : 2 * epoch + 2]:
            assert_average(seen, averages[last], watch.steps[last])
        if epoch:
            assert_same(watch.begun[epoch], watch.steps[last - BATCHES])
    far = (averages[-1]["text_tower.tail.layer.weight"] - watch.steps[-1]["text_tower.tail.layer.weight"]).abs().max()
    assert far > 0.001  # otherwise nothing was compared


def test_statistics_of_batch_normalisation_are_averaged_and_counts_are_not() -> None:
    made, watch = model(), Watch()
    assert {name for name in averaged_tensors(made) if "norm" in name} == {
        f"text_tower.tail.norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")
    }
    made.image_tower.standardizer.mean.fill_(0.1)
    fit(made, watch, exponential(0.9))
    assert made.text_tower.tail.norm.num_batches_tracked == BATCHES * EPOCHS
    assert (made.image_tower.standardizer.mean == 0.1).all()
    assert not torch.equal(made.text_tower.tail.norm.running_mean, watch.steps[-1]["text_tower.tail.norm.running_mean"])


@pytest.mark.parametrize(("start", "first"), [(0, 0), (1, 1), (2, 2), (0.5, 2), (0.75, 3)])
def test_equal_average_is_the_mean_over_the_ends_of_epochs(start: int | float, first: int) -> None:
    made, watch = model(), Watch()
    names = set(averaged_tensors(made))
    fit(made, watch, equal(start))
    ends = watch.steps[BATCHES - 1 :: BATCHES]
    for epoch in range(EPOCHS):
        taken = ends[first : epoch + 1]
        expected = {name: torch.stack([state[name] for state in taken]).mean(0) for name in names} if taken else {}
        assert_average(watch.validated[2 * epoch], expected, ends[epoch])
    assert_average(copied(made), expected, ends[-1])


def test_an_exponential_average_can_begin_later() -> None:
    made, watch = model(), Watch()
    names = set(averaged_tensors(made))
    fit(made, watch, exponential(0.8, start_epoch=2))
    assert_same(watch.validated[0], watch.steps[BATCHES - 1])
    later = [state for state, epoch in zip(watch.steps, watch.epochs, strict=True) if epoch >= 2]
    assert_average(copied(made), moving(later, names, 0.8, True)[-1], watch.steps[-1])


def test_an_average_that_never_began_is_told(caplog: pytest.LogCaptureFixture) -> None:
    made, watch = model(), Watch()
    fit(made, watch, equal(start_epoch=2), max_steps=2 * BATCHES)  # compatible epochs, but fewer steps
    assert (
        "callbacks.averaging.start_epoch=2: training ended in epoch 2, before any weights were averaged" in caplog.text
    )
    assert_same(copied(made), watch.steps[-1])
    caplog.clear()
    fit(model(), equal(start_epoch=2))
    assert "averaged" not in caplog.text


def test_accumulated_gradients_make_one_step() -> None:
    made, watch = model(), Watch()
    names = set(averaged_tensors(made))
    fit(made, watch, exponential(0.8), accumulate_grad_batches=2)
    assert len(watch.steps) == 2 * EPOCHS
    # of a step's state, statistics go on with each batch: only what the optimizer moves is compared
    weights = names - {name for name in names if "running" in name}
    average = moving(watch.steps, weights, 0.8, True)[-1]
    assert_same({n: copied(made)[n] for n in weights}, average, rtol=1e-4, atol=1e-6)


def test_a_waiting_tail_stays_exactly_as_it_is() -> None:
    made = model(unfreeze_epoch=3)
    before, watch = made.text_tower.tail.layer.weight.detach().clone(), Watch()
    fit(made, watch, exponential(0.9))
    assert torch.equal(watch.validated[2 * 2]["text_tower.tail.layer.weight"], before)
    assert not torch.equal(made.text_tower.tail.layer.weight, before)


AVERAGES = {
    "ema": partial(exponential, 0.9),
    "ema from 2": partial(exponential, 0.9, start_epoch=2),
    "swa": partial(equal, 1),
}


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(name: str, stop: int, tmp_path: Path) -> None:
    """Weights, average, optimizer and scheduler, with warm-up by steps and a tail that waits for its epoch."""

    class Stop(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.should_stop = trainer.current_epoch == stop

    def run(folder: str, *more: pl.Callback, ckpt_path: Path | None = None) -> tuple[dict[str, Any], DualEncoder]:
        schedule = Schedule(partial(CosineAnnealingLR, T_max=None), "step", 4)
        made = model(unfreeze_epoch=2, scheduler=schedule)
        kept = tmp_path / folder
        fit(made, AVERAGES[name](), *more, Last(kept), ckpt_path=ckpt_path, gradient_clip_val=0.5)
        return torch.load(kept / LAST, weights_only=True), made

    class Last(pl.Callback):
        def __init__(self, folder: Path) -> None:
            self.folder = folder

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch < stop or not self.folder.name.startswith("part"):
                trainer.save_checkpoint(self.folder / LAST, weights_only=False)

    whole, one = run("whole")
    run("part", Stop())
    resumed, other = run("rest", ckpt_path=tmp_path / "part" / LAST)
    assert resumed["global_step"] == whole["global_step"] == BATCHES * EPOCHS
    assert_same(resumed["state_dict"], whole["state_dict"])
    assert_same(resumed[KEPT]["in_training"], whole[KEPT]["in_training"])
    assert resumed[KEPT]["count"] == whole[KEPT]["count"]
    assert resumed["lr_schedulers"] == whole["lr_schedulers"]
    assert_same(copied(one), copied(other))


def test_a_checkpoint_holds_the_average_and_beside_it_the_weights_in_training(tmp_path: Path) -> None:
    made, watch = model(), Watch()
    fit(made, watch, exponential(0.9), Resume(tmp_path, monitor="none"), limit_val_batches=0)
    content = torch.load(tmp_path / LAST, weights_only=True)
    assert_same(content["state_dict"], copied(made))
    newest = watch.steps[-1]
    assert_same(content[KEPT]["in_training"], {name: newest[name] for name in averaged_tensors(made)})
    assert content[KEPT]["count"] == BATCHES * EPOCHS


def test_a_test_of_a_checkpoint_is_of_its_average(tmp_path: Path) -> None:
    """By the trainer that has just trained, and by one that knows of no average."""
    made, averaging = model(), exponential(0.9)
    trainer = fit(made, averaging, Resume(tmp_path, monitor="none"), limit_val_batches=0)
    expected = copied(made)
    plain = trainer_with()
    for tester, tested in ((trainer, made), (plain, model())):
        watch = Watch()
        watch.on_test_batch_end = watch.on_validation_batch_end  # type: ignore[method-assign]
        tester.callbacks.append(watch)  # type: ignore[attr-defined]
        tester.test(tested, galleries(), ckpt_path=str(tmp_path / LAST), verbose=False, weights_only=True)
        assert_same(watch.validated[0], expected)
        tester.validate(tested, galleries(), ckpt_path=str(tmp_path / LAST), verbose=False, weights_only=True)
        assert_same(watch.validated[-1], expected)


def test_a_validation_that_is_interrupted_leaves_a_right_checkpoint(tmp_path: Path) -> None:
    made, watch = model(), Watch()
    averaging, resume = exponential(0.9), Resume(tmp_path, monitor="none")
    with pytest.raises(SystemExit):
        fit(made, watch, averaging, resume, StopInValidation())
    content = torch.load(tmp_path / LAST, weights_only=True)
    newest, names = watch.steps[-1], set(averaged_tensors(made))
    assert_same(content[KEPT]["in_training"], {name: newest[name] for name in names})
    assert_average(content["state_dict"], moving(watch.steps, names, 0.9, True)[-1], newest)


def test_without_averaging_a_run_goes_on_with_the_weights_in_training(tmp_path: Path) -> None:
    fit(model(), exponential(0.9), Resume(tmp_path, monitor="none"), max_epochs=2, limit_val_batches=0)
    content, watch, other = torch.load(tmp_path / LAST, weights_only=True), Watch(), model()
    fit(other, watch, Resume(tmp_path / "b", "none"), ckpt_path=tmp_path / LAST, limit_val_batches=0)
    in_training = content[KEPT]["in_training"]
    assert_same({name: watch.begun[0][name] for name in in_training}, in_training)
    assert KEPT not in torch.load(tmp_path / "b" / LAST, weights_only=True)


def test_averaging_may_begin_in_a_resumed_run(tmp_path: Path) -> None:
    fit(model(), Resume(tmp_path, monitor="none"), max_epochs=2, limit_val_batches=0)
    made, watch = model(), Watch()
    names = set(averaged_tensors(made))
    fit(made, watch, exponential(0.8), ckpt_path=tmp_path / LAST, limit_val_batches=0)
    fresh = [state for state, epoch in zip(watch.steps, watch.epochs, strict=True) if epoch >= 2]
    assert_average(copied(made), moving(fresh, names, 0.8, True)[-1], fresh[-1])


def test_half_precision_weights_are_averaged_in_float32(tmp_path: Path) -> None:
    """In bfloat16 a thousandth of a difference is nothing."""
    rule = AveragedWeights(lambda count: 0.001, "step")
    made = model()
    fit(made, rule, Resume(tmp_path, "none"), precision="bf16-true", limit_val_batches=0)
    state = torch.load(tmp_path / LAST, weights_only=True)["state_dict"]["text_tower.tail.layer.weight"]
    assert state.dtype == torch.float32
    assert not torch.equal(state, state.bfloat16().float())
    assert made.text_tower.tail.layer.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: exponential(1.0), r"decay must lie in \[0, 1\), found 1\.0"),
        (lambda: exponential(-0.1), r"decay must lie in \[0, 1\), found -0\.1"),
        (lambda: exponential(0.9, start_epoch=-1), r"start_epoch must be an epoch .* found -1"),
        (lambda: equal(1.5), r"start_epoch must be an epoch .* found 1\.5"),
        (lambda: equal(float("nan")), r"start_epoch must be an epoch .* found nan"),
    ],
)
def test_values_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_share_of_an_endless_training_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"start_epoch=0\.75 is a share of trainer\.max_epochs"):
        fit(model(), equal(), max_epochs=-1, max_steps=5)
