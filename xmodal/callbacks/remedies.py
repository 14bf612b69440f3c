"""What to try against what ails a run, in terms of its configuration, and of nothing that is so already."""

from dataclasses import dataclass

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping

from xmodal.callbacks.diagnosis import COLLAPSED, DIVERGED, FLAT, NOT_LEARNING, OVERFITTING
from xmodal.losses.triplet import TripletLoss
from xmodal.models.dual_encoder import DualEncoder

_MOST = 4  # suggestions in a line
_MOST_DROPOUT = 0.5
_HIGHEST_RATE = 0.05  # of conf/optimizer
_WARMUP = 200  # steps, as in conf/loss/max_of_hinges.yaml
_WARMUP_EPOCHS = 2
_LARGE_MARGIN = 0.5  # of cosine distances: unrelated items are 1 apart


@dataclass(frozen=True)
class Treated:
    """A run in training, as far as suggestions depend on it."""

    trainer: pl.Trainer
    model: DualEncoder

    @property
    def triplet(self) -> TripletLoss | None:
        """The loss, where it is a triplet loss."""
        return self.model.loss if isinstance(self.model.loss, TripletLoss) else None

    @property
    def rate(self) -> float:
        """``optimizer.lr``, before any scheduler."""
        group = self.trainer.optimizers[0].param_groups[0]
        return float(group.get("initial_lr", group["lr"]))

    @property
    def steps_per_epoch(self) -> int:
        return max(1, int(self.trainer.num_training_batches))


def remedies(kind: str, run: Treated) -> list[str]:
    """At most four suggestions for one kind of finding, the most promising first."""
    suggested = {
        DIVERGED: lambda: [*_calmer_steps(run), *_smaller_margin(run)],
        COLLAPSED: lambda: [*_normalised(run), *_easier_negatives(run), *_calmer_steps(run), *_smaller_margin(run)],
        FLAT: lambda: [*_normalised(run), *_easier_negatives(run), *_calmer_steps(run), _more_negatives(run)],
        NOT_LEARNING: lambda: [
            *_easier_negatives(run),
            *_normalised(run),
            *_calmer_steps(run),
            "a look at the data: do photos and captions belong together?",
        ],
        OVERFITTING: lambda: _regularised(run),
    }[kind]()
    return suggested[:_MOST]


def _normalised(run: Treated) -> list[str]:
    towers = {"image": run.model.image_tower, "text": run.model.text_tower}
    bare = [side for side, tower in towers.items() if not tower.normalize]
    return [" ".join(f"model.{side}_tower.normalize=true" for side in bare)] if bare else []


def _easier_negatives(run: Treated) -> list[str]:
    """The hardest negatives of a model that knows nothing yet draw it into one point."""
    loss = run.triplet
    if loss is None or loss.negatives != "hardest":
        return []
    steps = max(_WARMUP, _WARMUP_EPOCHS * run.steps_per_epoch, 2 * loss.warmup_steps)
    return [f"loss.warmup_steps={steps} (now {loss.warmup_steps})", "loss.negatives=semihard loss.warmup_steps=0"]


def _calmer_steps(run: Treated) -> list[str]:
    found = [f"optimizer.lr={min(run.rate / 10, _HIGHEST_RATE):.2g} (now {run.rate:.2g})"]
    if not run.model.warmup_steps:
        found.append("scheduler=warmup_cosine")
    if not run.trainer.gradient_clip_val:
        found.append("trainer.gradient_clip_val=2.0")
    return found


def _smaller_margin(run: Treated) -> list[str]:
    loss = run.triplet
    if loss is None or loss.margin <= _LARGE_MARGIN:
        return []
    return [f"loss.margin=0.2 (now {loss.margin:g})"]


def _more_negatives(run: Treated) -> str:
    return "loss=infonce" if run.triplet is not None else "a larger data.batch_size"


def _regularised(run: Treated) -> list[str]:
    found = []
    if not any(isinstance(callback, EarlyStopping) for callback in run.trainer.callbacks):  # type: ignore[attr-defined]
        found.append("callbacks=early_stopping")
    for side, tower in (("image", run.model.image_tower), ("text", run.model.text_tower)):
        now = tower.feature_dropout.p
        if now < _MOST_DROPOUT:
            found.append(f"model.{side}_tower.feature_dropout={min(_MOST_DROPOUT, now + 0.2):g} (now {now:g})")
    return [*found, f"optimizer.lr={run.rate / 3:.2g} (now {run.rate:.2g})"]
