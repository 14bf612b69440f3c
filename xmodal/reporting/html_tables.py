"""Tables as a page shows them: cells with their interval drawn, values to sort by, and constant columns taken out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from xmodal.reporting.markdown import interval
from xmodal.reporting.table import NOTHING, Cell, Column, Table


@dataclass(frozen=True)
class Bar:
    """An interval on the scale of its column, in percent of its width."""

    low: float
    high: float
    value: float


@dataclass(frozen=True)
class Entry:
    """A cell with what a page needs beside its text.

    Attributes:
        cell: of the table.
        text: of the cell, without its deviation.
        deviation: ``± 0.5``, or empty.
        interval: ``[27.1, 32.7]``, or empty.
        bar: the same drawn; None where there is none.
        order: by which a column is sorted; empty for nothing.
        is_again: a setting that the row above has as well.
    """

    cell: Cell
    text: str
    deviation: str
    interval: str
    bar: Bar | None
    order: str
    is_again: bool


@dataclass(frozen=True)
class Head:
    """Head of a column: its words, and the letters that its longest figure, deviation and interval take."""

    title: str
    is_number: bool
    figure: int
    deviation: int
    interval: int


@dataclass(frozen=True)
class View:
    """A table for a page.

    Attributes:
        table: as it is written to files.
        heads: of the columns.
        rows: entries in the order of the columns.
        notes: those of this table alone.
    """

    table: Table
    heads: tuple[Head, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...]


def view(table: Table, said: Sequence[str] = ()) -> View:
    """The table without the notes that are said elsewhere."""
    columns = list(zip(*table.rows, strict=True))
    scales = _scales(table, columns)
    heads = tuple(_head(table, column, cells) for column, cells in zip(table.columns, columns, strict=True))
    rows = []
    above: Sequence[Cell] = ()
    for row in table.rows:
        again = _again(table, row, above)
        rows.append(tuple(_entry(cell, scales[i], is_again=i < again) for i, cell in enumerate(row)))
        above = row
    return View(table, heads, tuple(rows), tuple(note for note in table.notes if note not in said))


def common_notes(tables: Sequence[Table]) -> list[str]:
    """Notes of more than one table, in the order in which they come up."""
    counts = Counter(note for table in tables for note in table.notes)
    return [note for note, count in counts.items() if count > 1]


def without_constants(table: Table) -> tuple[list[tuple[Column, Cell]], Table]:
    """The columns in which all rows that state something state the same, once; and the table without them, its first
    column kept."""
    columns = list(zip(*table.rows, strict=True))
    stated = [list({cell.text: cell for cell in cells if cell != NOTHING}.values()) for cells in columns]
    rest = [i for i in range(len(columns)) if i == 0 or len(stated[i]) > 1]
    said = [(table.columns[i], cells[0]) for i, cells in enumerate(stated) if i and len(cells) == 1]
    rows = tuple(tuple(row[i] for i in rest) for row in table.rows)
    return said, replace(table, columns=tuple(table.columns[i] for i in rest), rows=rows)


def _head(table: Table, column: Column, cells: Sequence[Cell]) -> Head:
    """In a pivot the values of a setting stand alone, for its title names it."""
    title = column.name.partition("=")[2] if table.kind == "pivot" and "=" in column.name else column.title
    parts = [(*_parted(cell), interval(cell)) for cell in cells]
    figure, deviation, ends = (max(map(len, words)) for words in zip(*parts, strict=True))
    return Head(title, column.is_number, figure + any(cell.is_tied for cell in cells), deviation, ends)


def _parted(cell: Cell) -> tuple[str, str]:
    """The figure, and its deviation over seeds."""
    figure, sign, deviation = cell.text.partition(" ± ") if cell.sd is not None else (cell.text, "", "")
    return figure, f"± {deviation}" if sign else ""


def _again(table: Table, row: Sequence[Cell], above: Sequence[Cell]) -> int:
    """How many of the settings that head a row are those of the row above, up to the first that differs."""
    count = 0
    for column, cell, over in zip(table.columns, row, above, strict=False):
        if table.kind != "figures" or column.is_number or cell.text != over.text:
            break
        count += 1
    return count


def _scales(table: Table, columns: Sequence[Sequence[Cell]]) -> list[tuple[float, float] | None]:
    """The lowest and the highest end of each column; of all together in a pivot, which holds one figure.

    None for a single row, and beside reference figures, where recalls and their sum have no scale in common.
    """
    if table.kind == "reference" or len(table.rows) < 2:
        return [None] * len(columns)
    if table.kind == "pivot":
        return [_scale([cell for cells in columns for cell in cells])] * len(columns)
    return [_scale(cells) for cells in columns]


def _scale(cells: Sequence[Cell]) -> tuple[float, float]:
    ends = [end for cell in cells for end in (cell.low, cell.high) if end is not None]
    return (min(ends), max(ends)) if ends else (0.0, 0.0)


def _entry(cell: Cell, scale: tuple[float, float] | None, is_again: bool) -> Entry:
    order = "" if cell.value is None else f"{cell.value!r}" if isinstance(cell.value, float) else str(cell.value)
    return Entry(cell, *_parted(cell), interval(cell), _bar(cell, *scale) if scale else None, order, is_again)


def _bar(cell: Cell, low: float, high: float) -> Bar | None:
    if cell.low is None or cell.high is None or not isinstance(cell.value, int | float) or high <= low:
        return None
    ends = (100 * (end - low) / (high - low) for end in (cell.low, cell.high, cell.value))
    return Bar(*(round(end, 1) for end in ends))
