"""A table as CSV: plain names, full precision, for programs."""

import csv
from collections.abc import Callable, Sequence
from io import StringIO

from xmodal.reporting.table import Cell, Column, Table

_PARTS: dict[str, Callable[[Cell], float | None]] = {
    "low": lambda cell: cell.low,
    "high": lambda cell: cell.high,
    "sd": lambda cell: cell.sd,
}


def as_csv(table: Table) -> str:
    """One line per row. ``R1`` is followed by ``R1_low``, ``R1_high``, ``R1_sd`` and ``R1_mark`` (``best`` or ``tied``
    or nothing), each where any row has it."""
    columns = [
        _expanded(column, cells) for column, cells in zip(table.columns, zip(*table.rows, strict=True), strict=True)
    ]
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([name for part in columns for name in part])
    writer.writerows(zip(*(values for part in columns for values in part.values()), strict=True))
    return text.getvalue()


def _expanded(column: Column, cells: Sequence[Cell]) -> dict[str, list[object]]:
    found: dict[str, list[object]] = {column.name: ["" if cell.value is None else cell.value for cell in cells]}
    for name, part in _PARTS.items():
        values = [part(cell) for cell in cells]
        if any(value is not None for value in values):
            found[f"{column.name}_{name}"] = ["" if value is None else value for value in values]
    if any(cell.is_best or cell.is_tied for cell in cells):
        found[f"{column.name}_mark"] = ["best" if cell.is_best else "tied" if cell.is_tied else "" for cell in cells]
    return found
