"""A whole report in one folder."""

from collections.abc import Sequence
from pathlib import Path

from xmodal.reporting.figures import plates_of
from xmodal.reporting.groups import groups_of
from xmodal.reporting.markdown import as_markdown
from xmodal.reporting.page import page_of
from xmodal.reporting.pictures import drawn, write_pictures
from xmodal.reporting.runs import Run
from xmodal.reporting.table import Table
from xmodal.reporting.tables import tables_of, write_tables


def write_report(runs: Sequence[Run], output: Path) -> Path:
    """Write ``report.html``, ``figures/``, ``tables/`` and ``report.md``, all tables in one document; returns the page.

    Args:
        runs: as ``find_runs`` gave them; at least one with figures.
        output: an empty folder.

    Raises:
        OSError: the folder can't be written to.
    """
    tables, groups = tables_of(runs), groups_of(runs)
    write_tables(runs, output / "tables", tables)
    (output / "report.md").write_text(_document(tables), encoding="utf-8")
    plates, faults = plates_of(groups)
    pictures = [drawn(picture) for plate in plates for picture in (*plate.pictures, *plate.more)]
    write_pictures(pictures, output / "figures")
    page = output / "report.html"
    by_name = {one.picture.name: one for one in pictures}
    page.write_text(page_of(runs, groups, tables, plates, by_name, faults), encoding="utf-8")
    return page


def _document(tables: Sequence[Table]) -> str:
    return "\n".join(["# Report\n", *map(as_markdown, tables)])
