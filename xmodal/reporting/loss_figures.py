"""Training and validation loss by epoch, a panel for each setting."""

import statistics
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from xmodal.reporting.groups import Group
from xmodal.reporting.names import slug
from xmodal.reporting.pictures import Picture, Plate
from xmodal.reporting.ranking import from_best, in_words
from xmodal.reporting.replicates import Replicates
from xmodal.reporting.runs import Run
from xmodal.reporting.style import INK, MUTED, SERIES, apart

_MOST = 30
_AT_ONCE = 6
_TRAIN, _VALIDATION = "train/loss", "val/loss"
_COLOURS = {_TRAIN: SERIES[0], _VALIDATION: SERIES[1]}
_NAMES = {_TRAIN: "train", _VALIDATION: "validation"}
_VISIBLE = 0.5  # percent
_SIZE = (2.15, 1.65)


def loss_plates(group: Group) -> Iterator[Plate]:
    """The rows whose history has a loss, the best first."""
    rows = [row for row in from_best(group) if any(_points(run, name) for run in row.runs for name in _NAMES)]
    if not rows:
        return
    shown = rows[:_MOST]
    pictures = [_picture(group, row, number, _limits(shown, row)) for number, row in enumerate(shown, start=1)]
    yield Plate(
        "losses",
        group.title,
        "Loss curves",
        _caption(group, rows),
        tuple(pictures[:_AT_ONCE]),
        tuple(pictures[_AT_ONCE:]),
    )


def overfitting(run: Run) -> float | None:
    """By how many percent the validation loss of the last epoch lies above its lowest; None without one."""
    points = _points(run, _VALIDATION)
    if not points:
        return None
    lowest = min(loss for _, loss in points)
    return 100.0 * (points[-1][1] - lowest) / abs(lowest) if lowest else None


def _caption(group: Group, rows: Sequence[Replicates]) -> str:
    several = f", from the best by rsum{f' (the first {_MOST} of {len(rows)})' if len(rows) > _MOST else ''}"
    seeds = "A line per seed. " if any(len(row.runs) > 1 for row in rows) else ""
    scale = "Panels of one loss have one scale. " if len(rows) > 1 else ""
    return (
        f"Mean loss by epoch{several if len(rows) > 1 else ''}. Upright line: the epoch whose weights were evaluated. "
        "Shaded: validation loss above its lowest value, the mark of overfitting; the number is by how much it ended "
        "above. "
        f"{seeds}{scale}"
    ).rstrip()


def _picture(group: Group, row: Replicates, number: int, limits: tuple[float, float]) -> Picture:
    words = in_words(row, group.keys)

    def draw(axes: Axes) -> None:
        for run in row.runs:
            _curves(axes, run, len(row.runs))
        axes.set_ylim(*limits)
        _label_ends(axes, row.runs[0])
        _label_excess(axes, row)
        axes.set_title("\n".join(_lines(words)), fontsize=6.5)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.grid(axis="y")

    return Picture(f"{slug(group.title)}_losses_{number:02}", f"Loss by epoch, {words}", draw, _SIZE)


def _lines(words: str, width: int = 28) -> list[str]:
    """Broken between settings."""
    lines = [""]
    for part in words.split(", "):
        joined = f"{lines[-1]}, {part}" if lines[-1] else part
        lines[-1:] = [joined] if len(joined) <= width or not lines[-1] else [f"{lines[-1]},", part]
    return lines


def _points(run: Run, name: str) -> list[tuple[float, float]]:
    """Epochs, counted from 1 as people do, with their loss; not all epochs are validated."""
    rows = [(row.get("epoch", float(i)), row[name]) for i, row in enumerate(run.history) if name in row]
    return [(epoch + 1, loss) for epoch, loss in rows if loss == loss and abs(loss) != float("inf")]


def _limits(rows: Sequence[Replicates], of: Replicates) -> tuple[float, float]:
    """From the lowest to the highest value among all rows with the same loss."""
    kind = of.runs[0].config.get("loss")
    alike = [run for row in rows if row.runs[0].config.get("loss") == kind for run in row.runs]
    values = [loss for run in alike for name in _NAMES for _, loss in _points(run, name)]
    room = 0.06 * (max(values) - min(values)) or 0.1
    return min(values) - room, max(values) + room


def _curves(axes: Axes, run: Run, of: int) -> None:
    for name, colour in _COLOURS.items():
        points = _points(run, name)
        axes.plot(*_columns(points), color=colour, alpha=1.0 if of == 1 else 0.6, lw=1.2 if of == 1 else 0.8,
                  marker="o" if len(points) == 1 else None, markersize=3)  # fmt: skip
    best = run.metrics.get("best_epoch")
    if best is not None:
        axes.axvline(best + 1, color=MUTED, lw=0.8, dashes=(3, 2))
    if validated := _points(run, _VALIDATION):
        _shade_overfitting(axes, validated, 0.18 / of)


def _shade_overfitting(axes: Axes, points: Sequence[tuple[float, float]], alpha: float) -> None:
    lowest = min(range(len(points)), key=lambda i: points[i][1])
    epochs, losses = _columns(points[lowest:])
    colour = _COLOURS[_VALIDATION]
    axes.fill_between(epochs, [points[lowest][1]] * len(epochs), losses, color=colour, alpha=alpha, lw=0)
    axes.plot(*points[lowest], "o", color=colour, markersize=3.5, markeredgewidth=0)


def _label_excess(axes: Axes, row: Replicates) -> None:
    """By how much the validation loss ended above its lowest value, on average over seeds."""
    found = [excess for run in row.runs if (excess := overfitting(run)) is not None]
    if found and (mean := statistics.fmean(found)) >= _VISIBLE:
        last = max(_points(run, _VALIDATION)[-1] for run in row.runs if _points(run, _VALIDATION))
        axes.annotate(f"+{mean:.0f} %", last, xytext=(-1, 3), textcoords="offset points", ha="right", va="bottom",
                      color=INK, fontsize=6.5)  # fmt: skip


def _label_ends(axes: Axes, run: Run) -> None:
    low, high = axes.get_ylim()
    ends = {name: (points[-1][1] - low) / (high - low) for name in _NAMES if (points := _points(run, name))}
    for name, height in zip(ends, apart(list(ends.values()), 0.13, 0.0, 1.0), strict=True):
        axes.text(1.02, height, _NAMES[name], color=_COLOURS[name], va="center", fontsize=6.5, transform=axes.transAxes)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
