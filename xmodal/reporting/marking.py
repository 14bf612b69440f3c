"""Cells of figures, and which of a column are marked as best or tied."""

from collections.abc import Sequence
from dataclasses import replace

from xmodal.reporting.replicates import RESAMPLES, Figure, Replicates
from xmodal.reporting.significance import SWAPS, contest
from xmodal.reporting.table import NOTHING, Cell

DIGITS = {"loss": 3, "medR": 1}

_MARKS_NOTE = (
    "Bold: the best, significantly better than every other {one}. †: the best, or not significantly worse than it. "
    f"Paired randomisation tests of the best against each other {{one}}: {SWAPS:,} swaps of the query images, "
    "two-sided, 5 % after Holm's correction over the {all}."
)
INTERVALS_NOTE = "[low, high]: 95 % interval, query images resampled with all their captions."
SEEDS_NOTE = (
    "±: standard deviation over n seeds. Intervals and tests take these seeds for given and join their queries "
    f"({RESAMPLES:,} resamples); a medR over seeds is the mean of theirs, and has neither."
)


def cell(figure: Figure | None, digits: int = 1) -> Cell:
    """A figure with its interval and deviation."""
    if figure is None:
        return NOTHING
    text = f"{figure.value:.{digits}f}"
    text += f" ± {figure.sd:.{max(digits, 1)}f}" if figure.sd is not None else ""
    return Cell(text, figure.value, figure.low, figure.high, figure.sd)


def column_of(rows: Sequence[Replicates], name: str) -> list[Cell]:
    """The cells of one figure (``i2t_R1``, ``rsum``), marked."""
    cells = [cell(row.figure(name), DIGITS.get(name.rpartition("_")[2], 1)) for row in rows]
    if _is_median_over_seeds(rows, name):
        return cells
    values = [found.value if isinstance(found.value, float) else None for found in cells]
    outcome = contest([row.queries for row in rows], values, name)
    if outcome.best is None:
        return cells
    best = replace(cells[outcome.best], is_best=not outcome.tied, is_tied=bool(outcome.tied))
    return [best if i == outcome.best else replace(one, is_tied=i in outcome.tied) for i, one in enumerate(cells)]


def _is_median_over_seeds(rows: Sequence[Replicates], name: str) -> bool:
    """Another figure would be tested: the median of all their queries is not the mean of their medians."""
    return name.endswith("medR") and any(len(row.runs) > 1 for row in rows)


def loss_column(rows: Sequence[Replicates], name: str) -> list[Cell]:
    """Losses of the best epoch, never marked: those of different losses don't compare."""
    return [cell(row.loss(name), DIGITS["loss"]) for row in rows]


def notes_on(cells: Sequence[Cell], one_figure: bool = False) -> list[str]:
    """What the marks, intervals and deviations among the cells mean; ``one_figure``: all cells were compared, not the
    rows of each column."""
    said = _MARKS_NOTE.format(one="cell", all="table") if one_figure else _MARKS_NOTE.format(one="row", all="column")
    notes = [said] if any(one.is_best or one.is_tied for one in cells) else []
    notes += [INTERVALS_NOTE] if any(one.low is not None for one in cells) else []
    notes += [SEEDS_NOTE] if any(one.sd is not None for one in cells) else []
    return notes
