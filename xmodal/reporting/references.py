"""Measured figures beside those that an experiment's ``reference:`` block expects."""

from collections.abc import Iterator
from typing import Any

from xmodal.reporting.figure_tables import keys_cells, keys_columns
from xmodal.reporting.groups import Group
from xmodal.reporting.marking import INTERVALS_NOTE, SEEDS_NOTE, cell
from xmodal.reporting.names import slug
from xmodal.reporting.replicates import Replicates
from xmodal.reporting.table import Cell, Column, Table, number, word

_FIGURES = "reference.expected.figures."
_COLUMNS = (
    Column("Figure", "figure", False),
    Column("Measured here", "measured"),
    Column("Reference", "reference"),
    Column("Difference", "difference"),
    Column("Origin", "origin", False),
)


def reference_tables(group: Group) -> Iterator[Table]:
    """A table, where a run states figures to expect that it has measured too."""
    rows: list[tuple[Cell, ...]] = []
    sources: dict[str, None] = {}
    for row in group.rows:
        found = list(_beside(row))
        rows += [(*keys_cells(row, group.keys), *cells) for cells in found]
        sources |= {_source(row.runs[0].config): None} if found else {}
    if rows:
        notes = [*sources, INTERVALS_NOTE, *([SEEDS_NOTE] if any(row[-4].sd is not None for row in rows) else [])]
        columns = (*keys_columns(group.keys), *_COLUMNS)
        title, name = "Beside reference figures", f"{slug(group.title)}_reference"
        yield Table(name, "reference", group.title, title, columns, tuple(rows), tuple(notes))


def _beside(row: Replicates) -> Iterator[tuple[Cell, ...]]:
    config = row.runs[0].config
    origin = str(config.get("reference.expected.origin") or "origin not stated")
    for key, expected in config.items():
        if not key.startswith(_FIGURES) or isinstance(expected, bool) or not isinstance(expected, int | float):
            continue
        name = key.removeprefix(_FIGURES)
        split, _, figure = name.partition("/")
        found = row.figure(figure) if split == row.runs[0].split else row.loss(name)
        if found is not None:
            difference = Cell(f"{found.value - expected:+.1f}".replace("-", "−"), found.value - expected)
            yield word(name), cell(found), number(float(expected)), difference, word(origin)


def _source(config: dict[str, Any]) -> str:
    parts = {
        name: " ".join(str(config.get(f"reference.{name}") or "").split()) for name in ("source", "expected.setting")
    }
    said = [parts["source"], f"({parts['expected.setting']})" if parts["expected.setting"] else ""]
    return f"Reference: {' '.join(part for part in said if part) or 'source not stated'}."
