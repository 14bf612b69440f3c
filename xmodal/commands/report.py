"""`xmodal report`: tables, figures and a page about many runs."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xmodal.commands.options import unknown
from xmodal.errors import ConfigError, DataError

_REPORTS = Path("outputs") / "reports"


def add(commands: Any) -> None:
    command = commands.add_parser(
        "report",
        help="make tables, figures and a page of many runs",
        description="Make a report of runs: report.html (opens from disk), tables (Markdown, CSV, LaTeX) and figures.",
    )
    command.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="a run folder, or a folder of runs, such as a multirun's"
    )
    command.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the report (default: outputs/reports/<name of PATH>)"
    )
    command.add_argument(
        "--split", metavar="NAME", help="evaluation to report: val, test_folds5 … (default: test, else val)"
    )
    command.set_defaults(run=run, parser=command, interrupted="An earlier report stays as it was.")


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    """Find the runs, say which of them have no figures, and write the report."""
    from xmodal.reporting.output import complete_report, output_faults
    from xmodal.reporting.runs import find_runs

    output = parsed.output or _default_output(parsed.paths)
    faults = [*unknown(rest, parsed.parser), *_split_faults(parsed.split), *output_faults(output)]
    if faults:
        raise ConfigError(faults)
    runs = find_runs(parsed.paths, parsed.split)
    without = [f"{run.name}: {run.status}: {run.error}" for run in runs if not run.is_finished]
    if len(without) == len(runs):
        listed = "\n".join(f"  {line}" for line in without)
        raise DataError(
            f"None of {len(runs)} runs has figures to report:\n{listed}\n"
            "A run has them once it has ended; one that was stopped is gone on with by its command and resume=true."
        )

    from xmodal.reporting.report import write_report

    with complete_report(output) as folder:
        page = write_report(runs, folder).relative_to(folder)
    print(f"{len(runs)} runs, {len(runs) - len(without)} with figures.")
    damaged = [f"{run.name}: {fault}" for run in runs for fault in run.faults]
    for line in [*(f"Without figures: {line}" for line in without), *(f"At fault: {line}" for line in damaged)]:
        print(line, file=sys.stderr)
    print(f"Report: {output / page}")
    return 0


def _default_output(paths: Sequence[Path]) -> Path:
    first = paths[0].resolve().name or "runs"
    return _REPORTS / (first if len(paths) == 1 else f"{first}-and-{len(paths) - 1}-more")


def _split_faults(split: str | None) -> list[str]:
    if split is None or re.fullmatch(r"\w[\w.-]*", split):
        return []
    return [f"--split {split!r} names no evaluation: expected something like val, test or test_folds5."]
