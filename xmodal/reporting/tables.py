"""All tables of a report, and their files."""

import csv
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path

from xmodal.atomic import complete_file
from xmodal.reporting.ablation import ablation_tables
from xmodal.reporting.figure_tables import figure_tables, pivot_tables
from xmodal.reporting.groups import groups_of
from xmodal.reporting.latex import as_latex
from xmodal.reporting.markdown import as_markdown
from xmodal.reporting.names import with_unique_names
from xmodal.reporting.pairs import pair_tables
from xmodal.reporting.plain import as_csv
from xmodal.reporting.provenance_tables import provenance_tables
from xmodal.reporting.references import reference_tables
from xmodal.reporting.runs import Run
from xmodal.reporting.swept import setting, shown, swept_keys
from xmodal.reporting.table import Cell, Column, Table

__all__ = ["Cell", "Column", "Table", "tables_of", "write_tables"]

_OF_A_PAPER = ("figures", "pivot", "pairs", "ablation", "reference")


def tables_of(runs: Sequence[Run]) -> list[Table]:
    """Every table, those of one section behind one another; the same for the same runs."""
    return with_unique_names(_all(runs))


def write_tables(runs: Sequence[Run], folder: Path, tables: Sequence[Table] | None = None) -> list[Path]:
    """Write each table as ``.md`` and ``.csv``, those of figures as ``.tex`` too, and ``all_runs.csv``: every figure of
    every run.

    Args:
        runs: as ``find_runs`` gave them.
        folder: made where it is absent.
        tables: of these runs, where they have been made before.

    Raises:
        OSError: the folder can't be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"all_runs.csv": _all_figures(runs)}
    for table in tables_of(runs) if tables is None else tables:
        texts |= {f"{table.name}.md": as_markdown(table), f"{table.name}.csv": as_csv(table)}
        if table.kind in _OF_A_PAPER:
            texts[f"{table.name}.tex"] = as_latex(table)
    for name, text in texts.items():
        with complete_file(folder / name) as partial:
            partial.write_bytes(text.encode())
    return [folder / name for name in texts]


def _all(runs: Sequence[Run]) -> Iterator[Table]:
    for group in groups_of(runs):
        yield from figure_tables(group)
        yield from pivot_tables(group)
        yield from pair_tables(group)
        yield from ablation_tables(group)
        yield from reference_tables(group)
    yield from provenance_tables(runs)


def _all_figures(runs: Sequence[Run]) -> str:
    """A row per run, finished or not: what it is, settings that differ, and all its figures in full precision."""
    keys = swept_keys([run for run in runs if run.config])
    names = sorted({name for run in runs for name in run.metrics})
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "status", "data", "split", "seed", *keys, *names])
    for run in runs:
        settings = [shown(setting(run, key)) if key in run.config else "" for key in keys]
        head = [run.name, run.status, run.data_name, run.split or "", "" if run.seed is None else run.seed]
        writer.writerow([*head, *settings, *(run.metrics.get(name, "") for name in names)])
    return text.getvalue()
