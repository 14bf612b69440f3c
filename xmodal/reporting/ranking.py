"""The rows of a group from the best to the worst, and in words."""

from collections.abc import Sequence

from xmodal.reporting.groups import Group
from xmodal.reporting.replicates import Replicates
from xmodal.reporting.runs import Run
from xmodal.reporting.swept import heading, setting, shown


def headline(group: Group) -> str:
    """The figure that decides which row is best: rsum, where there is one."""
    first = f"{group.directions[0]}_R1" if group.directions else "rsum"
    return "rsum" if any(row.figure("rsum") for row in group.rows) else first


def from_best(group: Group) -> list[Replicates]:
    """The rows by their headline figure; those without it last, those alike in the order of the tables."""
    name = headline(group)
    values = [figure.value if (figure := row.figure(name)) else float("-inf") for row in group.rows]
    return [group.rows[i] for i in sorted(range(len(values)), key=lambda i: (-values[i], i))]


def best_with(group: Group, file: str) -> Run | None:
    """The best run that holds a file: of the best row that has such a run, the first."""
    return next((run for row in from_best(group) for run in row.runs if (run.folder / file).is_file()), None)


def which_run(group: Group, run: Run) -> str:
    """Says which run it is, and why that one: ``the best run by rsum (embedding size 512)``."""
    if len(group.runs) == 1:
        return f"the run {run.name}"
    row = next(row for row in group.rows if run in row.runs)
    place = from_best(group).index(row)
    words = in_words(row, group.keys)
    stated = words if row.runs == (run,) or words == run.name else f"{words}; run {run.name}"
    if place == 0:
        return f"the best run by {headline(group)} ({stated})"
    return f"the best run by {headline(group)} of those that keep what it takes ({stated})"


def in_words(row: Replicates, keys: Sequence[str]) -> str:
    """``embedding size 512, text aggregator sum``; the names of its runs where it states none of the keys."""
    run = row.runs[0]
    stated = [f"{heading(key)} {shown(setting(run, key))}" for key in keys if key in run.config]
    return ", ".join(stated) or row.name


def values_in_words(row: Replicates, keys: Sequence[str]) -> str:
    """``512, sum``: for where the keys are named beside."""
    run = row.runs[0]
    if not any(key in run.config for key in keys):
        return row.name
    return ", ".join(shown(setting(run, key)) if key in run.config else "not stated" for key in keys)
