"""A table as Markdown: a heading, the table, and its notes."""

import re

from xmodal.reporting.table import Cell, Column, Table

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$])")


def as_markdown(table: Table) -> str:
    """GitHub's dialect; whatever stands in a name is shown as it is."""
    title = f"{table.title} ({table.section})" if table.section else table.title
    lines = [f"### {escaped(title)}", "", _line([escaped(column.title) for column in table.columns])]
    lines += ["|" + "|".join("---:" if column.is_number else "---" for column in table.columns) + "|"]
    lines += [
        _line([_cell(cell, column) for cell, column in zip(row, table.columns, strict=True)]) for row in table.rows
    ]
    lines += [line for note in table.notes for line in ("", escaped(note))]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Plain text, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _cell(cell: Cell, column: Column) -> str:
    text = escaped(cell.text)
    text = f"**{text}**" if cell.is_best else f"{text}†" if cell.is_tied else text
    return f"{text} {interval(cell)}".rstrip()


def interval(cell: Cell) -> str:
    """``[27.1, 32.7]``; empty where there is none."""
    return f"[{cell.low:.1f}, {cell.high:.1f}]" if cell.low is not None and cell.high is not None else ""


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
