"""What ails a training run, told from the figures of its validations."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from xmodal.errors import ConfigError

DIVERGED = "DIVERGED"
COLLAPSED = "COLLAPSED"
FLAT = "FLAT"
NOT_LEARNING = "NOT LEARNING"
OVERFITTING = "OVERFITTING"

_CONFIRMED = 2  # validations in a row: for the first steps, a random network may put everything into one corner
_TOLD_APART = 0.5  # share of chance's rank below which directions that are alike do no harm
_FEW = 10  # items of a gallery below which ranks are a matter of luck, and nothing is said
_ROOM = 8  # directions that there must be before embeddings that differ in few of them are a sign of anything
_NAMES = {"image": "images", "text": "captions"}
_SEARCHES = {
    "t2i": "a caption finds its image",
    "i2i": "an image finds one of its label",
    "t2t": "a caption finds one of its label",
}


class Reading(NamedTuple):
    """Figures of one validation.

    Attributes:
        epoch: counted from 0.
        train_loss: mean over the steps since the validation before.
        val_loss: over the pairs of validation.
        monitored: the figure that best epochs are chosen by; more is better.
        way: of the search that is judged: ``t2i``; ``i2i`` or ``t2t`` where a figure of that is monitored.
        rank: at which the best match stands on average.
        chance: that rank, were the ``gallery`` items in random order.
        similarity: mean over pairs of one side of their cosine similarity, by the sides that take part in the search.
        effective_rank: number of directions in which embeddings of a side differ.
        room: number of directions in which they could.
    """

    epoch: int
    train_loss: float
    val_loss: float
    monitored: float
    way: str
    rank: float
    chance: float
    gallery: int
    similarity: Mapping[str, float]
    effective_rank: Mapping[str, float]
    room: Mapping[str, int]


@dataclass(frozen=True)
class Limits:
    """From where on a figure is a sign of something wrong; see ``conf/callbacks/default.yaml``.

    Raises:
        ConfigError: values out of range, all of them at once.
    """

    similarity: float
    effective_rank: float
    chance: float
    patience: int
    drop: float

    def __post_init__(self) -> None:
        wanted = {
            "max_similarity": (self.similarity, 0 < self.similarity < 1, "lie between 0 and 1"),
            "min_effective_rank": (self.effective_rank, self.effective_rank >= 1, "be at least 1"),
            "near_chance": (self.chance, 0 < self.chance <= 1, "lie in (0, 1]"),
            "patience": (self.patience, self.patience >= 1, "be at least 1"),
            "drop": (self.drop, 0 <= self.drop < 1, "lie in [0, 1)"),
        }
        faults = [
            f"callbacks.health.{name} must {range_}, found {value}."
            for name, (value, is_in, range_) in wanted.items()
            if not is_in
        ]
        if faults:
            raise ConfigError(faults)


class Finding(NamedTuple):
    """One thing that is wrong: its kind, and the figures that show it, in words."""

    kind: str
    evidence: str


def diagnose(readings: Sequence[Reading], limits: Limits, monitor: str = "val/rsum") -> Finding | None:
    """The worst that the validations so far show; None for a healthy run, or too few items to judge by."""
    if not readings or readings[-1].gallery < _FEW:
        return None
    signs: dict[str, Callable[[], str | None]] = {
        COLLAPSED: lambda: collapsed(readings, limits),
        NOT_LEARNING: lambda: not_learning(readings, limits),
        FLAT: lambda: flat(readings, limits),
        OVERFITTING: lambda: overfitting(readings, limits, monitor),
    }
    for kind, sign in signs.items():
        if evidence := sign():
            return Finding(kind, evidence)
    return None


def collapsed(readings: Sequence[Reading], limits: Limits) -> str | None:
    """All items of a side are nearly one point, or on one line, and hardly find their matches."""
    last = readings[-_CONFIRMED:]
    sides = [side for side in last[-1].similarity if all(_is_one_point(reading, side, limits) for reading in last)]
    if len(last) < _CONFIRMED or not sides or not _at_chance(last, _TOLD_APART):
        return None
    figures = "; ".join(
        f"{_NAMES[side]}: mean cosine similarity {last[-1].similarity[side]:.3f}, effective rank "
        f"{last[-1].effective_rank[side]:.1f}"
        for side in sides
    )
    which = " and ".join(_NAMES[side] for side in sides)
    return f"the embeddings of all {which} are nearly one point, or on one line ({figures}), and {_at_rank(last[-1])}"


def flat(readings: Sequence[Reading], limits: Limits) -> str | None:
    """For ``patience`` validations, embeddings of a side lie nearly on a line or in a plane."""
    last = readings[-limits.patience :]
    for side in last[-1].effective_rank:
        if len(last) == limits.patience and all(_is_narrow(r, side, limits.effective_rank) for r in last):
            return (
                f"the embeddings of {_NAMES[side]} differ in hardly more than {last[-1].effective_rank[side]:.1f} "
                "directions (effective rank)"
            )
    return None


def not_learning(readings: Sequence[Reading], limits: Limits) -> str | None:
    """After ``patience`` validations matches are still found no better than by chance."""
    last = readings[-limits.patience :]
    if len(last) < limits.patience or not _at_chance(last, limits.chance):
        return None
    first, now = last[0].train_loss, last[-1].train_loss
    fell = now < 0.5 * readings[0].train_loss
    course = f"the training loss has fallen to {now:.4g}" if fell else f"training loss {first:.4g} → {now:.4g}"
    return f"after {_count(len(readings))}, {_at_rank(last[-1])} ({course})"


def overfitting(readings: Sequence[Reading], limits: Limits, monitor: str = "val/rsum") -> str | None:
    """For ``patience`` validations the monitored figure has been below its best by a share of ``drop``, while the
    training loss fell."""
    best = max(readings, key=lambda reading: reading.monitored, default=None)
    last = readings[-limits.patience :]
    if best is None or len(last) < limits.patience or best in last:
        return None
    now = last[-1]
    below = all(reading.monitored < (1 - limits.drop) * best.monitored for reading in last)
    if not below or not now.train_loss < best.train_loss:
        return None
    lowest = min(reading.val_loss for reading in readings)
    risen = f", val/loss has risen from {lowest:.4g} to {now.val_loss:.4g}" if now.val_loss > 1.05 * lowest else ""
    return (
        f"{monitor} was {best.monitored:.1f} in epoch {best.epoch} and is {now.monitored:.1f} now, while the training "
        f"loss fell from {best.train_loss:.4g} to {now.train_loss:.4g}{risen}"
    )


def diverged(loss: float, step: int) -> str:
    """The loss is no number any more, and neither are the weights."""
    return f"the loss is {loss} after step {step}, and weights of the model hold NaN or infinity"


def _is_one_point(reading: Reading, side: str, limits: Limits) -> bool:
    similarity = reading.similarity[side]
    return not math.isfinite(similarity) or similarity > limits.similarity or _is_narrow(reading, side, 2.0)


def _is_narrow(reading: Reading, side: str, directions: float) -> bool:
    return reading.room[side] >= _ROOM and reading.effective_rank[side] < directions


def _at_chance(readings: Sequence[Reading], share: float) -> bool:
    """Whether matches stand no better than at this share of the rank that random order gives them."""
    return all(not reading.rank < share * reading.chance for reading in readings)


def _at_rank(reading: Reading) -> str:
    return (
        f"{_SEARCHES[reading.way]} at rank {reading.rank:.1f} of {reading.gallery} on average, where random order "
        f"gives {reading.chance:.1f}"
    )


def _count(validations: int) -> str:
    return f"{validations} validation{'' if validations == 1 else 's'}"


def are_numbers(model: nn.Module) -> bool:
    """Whether all parameters are finite."""
    return all(bool(parameter.isfinite().all()) for parameter in model.parameters())
