"""A whole report in one folder."""

from collections.abc import Sequence
from pathlib import Path

from xmodal.reporting.markdown import as_markdown
from xmodal.reporting.runs import Run
from xmodal.reporting.table import Table
from xmodal.reporting.tables import tables_of, write_tables


def write_report(runs: Sequence[Run], output: Path) -> Path:
    """Write ``tables/`` and ``report.md``, all tables in one document; returns the page to open first.

    Args:
        runs: as ``find_runs`` gave them; at least one with figures.
        output: an empty folder.

    Raises:
        OSError: the folder can't be written to.
    """
    tables = tables_of(runs)
    write_tables(runs, output / "tables", tables)
    page = output / "report.md"
    page.write_text(_document(tables), encoding="utf-8")
    return page


def _document(tables: Sequence[Table]) -> str:
    return "\n".join(["# Report\n", *map(as_markdown, tables)])
