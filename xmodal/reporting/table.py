"""A table as data: what every format (Markdown, CSV, LaTeX, HTML) is made from."""

from dataclasses import dataclass
from typing import Literal

# figures: runs with their figures; pivot; pairs: of the values of a setting; ablation; reference; runs: those without
# figures; provenance: where runs come from, and how their settings differ
Kind = Literal["figures", "pivot", "pairs", "ablation", "reference", "runs", "provenance"]


@dataclass(frozen=True)
class Column:
    """Head of a column.

    Attributes:
        title: for readers, ``R@1 (accuracy)``.
        name: for programs, ``R1``.
        is_number: whether its cells are set as numbers are.
    """

    title: str
    name: str
    is_number: bool = True


@dataclass(frozen=True)
class Cell:
    """One entry.

    Attributes:
        text: for readers, rounded, without interval and marks: ``29.8``, ``29.4 ± 0.5``, ``–`` where there is nothing.
        value: in full precision, or a word; None where there is nothing.
        low: lower end of the 95 % interval, where there is one.
        high: upper end.
        sd: standard deviation over seeds, where there are several.
        is_best: better than every other row, significantly.
        is_tied: the best, or not significantly worse than it.
    """

    text: str
    value: float | int | str | None = None
    low: float | None = None
    high: float | None = None
    sd: float | None = None
    is_best: bool = False
    is_tied: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under their heads.

    Attributes:
        name: of its files: lower-case letters, digits, ``-`` and ``_``; unique in a report.
        kind: what it is about.
        section: the runs that may be compared with one another: ``flickr8k, test``; empty: of all runs.
        title: in words.
        columns: C heads.
        rows: each with C cells.
        notes: how to read it, a sentence each.
    """

    name: str
    kind: Kind
    section: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


NOTHING = Cell("–")


def word(text: str) -> Cell:
    """A cell of words; an empty one is shown as a dash."""
    return Cell(text, text) if text else NOTHING


def number(value: float | None, digits: int = 1) -> Cell:
    """A plain number; nothing for None and NaN."""
    return NOTHING if value is None or value != value else Cell(f"{value:.{digits}f}", value)
