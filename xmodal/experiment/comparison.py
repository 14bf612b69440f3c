"""Two runs on the same queries: how far their figures lie apart, and whether that may be chance."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from xmodal.atomic import complete_file
from xmodal.errors import DataError
from xmodal.retrieval.record import EvaluationRecord, read_record
from xmodal.retrieval.uncertainty import PairedDifference, paired_test

_PREFIX = "evaluation_"
_PREFERRED = "test"


def compare(
    first: Path, second: Path, name: str | None = None, resamples: int = 10_000, seed: int = 0
) -> dict[str, PairedDifference]:
    """Paired test between the evaluations of two runs, by the names of the figures: ``test/i2t_R1`` ….

    Args:
        first: a run's folder, or a file ``evaluation_*.npz``.
        second: the run to hold against it.
        name: the evaluation to compare, such as ``test_folds5``; None: ``test`` where both have it, else the only one
            that both have.
        resamples: of the interval, and of the p-value.
        seed: of both.

    Raises:
        DataError: no such run, no evaluation (of this name) in it, or evaluations of different queries.
        ConfigError: fewer than one resample.
    """
    one, other = _records(first, second, name)
    if one.data_name != other.data_name:
        raise DataError(
            f"{first} was evaluated on the data set {one.data_name}, {second} on {other.data_name}: "
            "a paired test needs both on the same queries"
        )
    try:
        found = paired_test(one.queries, other.queries, resamples, seed)
    except DataError as fault:
        raise DataError(f"{first} and {second}: {fault}") from fault
    return {f"{one.name}/{metric}": difference for metric, difference in found.items()}


def print_comparison(first: Path, second: Path, differences: Mapping[str, PairedDifference]) -> None:
    """Print what ``compare`` found, rsum first, and how many queries it rests on."""
    name = next(iter(differences)).rpartition("/")[0]
    one, other = _records(first, second, name)
    images, captions = (int(one.queries[way].matched.sum()) for way in ("i2t", "t2i"))
    console = Console(soft_wrap=True)
    console.print(_table(differences))
    lines = [
        f"A: {first} ({one.similarity})",
        f"B: {second} ({other.similarity})",
        f"{images} query images and {captions} query captions of {one.data_name}, {name}; medR and meanR: less is "
        "better.",
        "[low, high]: 95 % interval of the difference, query images resampled with all their captions. p: two-sided "
        "randomisation test, each metric by itself, without correction for multiple comparisons.",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False)


def write_comparison(path: Path, differences: Mapping[str, PairedDifference]) -> None:
    """Write ``{"test/i2t_R1": {"first": …, "second": …, "difference": …, "low": …, "high": …, "p_value": …}, …}``.

    Visible only when complete.

    Raises:
        DataError: the folder is absent or full, or can't be written to.
    """
    text = json.dumps({name: asdict(difference) for name, difference in differences.items()}, indent=2)
    try:
        with complete_file(path) as partial:
            partial.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} can't be written ({error.strerror}). Name another file with --json.") from error


def _table(differences: Mapping[str, PairedDifference]) -> Table:
    table = Table(title=next(iter(differences)).rpartition("/")[0])
    for heading in ("figure", "A", "B", "B − A", "[low, high]", "p"):
        table.add_column(escape(heading), justify="left" if heading == "figure" else "right", no_wrap=True)
    for name in sorted(differences, key=lambda name: not name.endswith("/rsum")):
        of = differences[name]
        interval = escape(f"[{of.low:+.2f}, {of.high:+.2f}]")
        table.add_row(
            name.rpartition("/")[2],
            f"{of.first:.2f}",
            f"{of.second:.2f}",
            f"{of.difference:+.2f}",
            interval,
            _p(of.p_value),
        )
    return table


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 5e-5 else f"{value:.1e}"


def _records(first: Path, second: Path, name: str | None) -> tuple[EvaluationRecord, EvaluationRecord]:
    of_first, of_second = _evaluations(first), _evaluations(second)
    chosen = _choose(first, second, list(of_first), list(of_second), name)
    one, other = read_record(of_first[chosen]), read_record(of_second[chosen])
    return replace(one, name=chosen), replace(other, name=chosen)


def _evaluations(run: Path) -> dict[str, Path]:
    """The files of a run's evaluations, by their names."""
    if run.is_file():
        return {read_record(run).name: run}
    if not run.is_dir():
        raise DataError(f"{run}: there is no such run. Name the folder of a run, or a file {_PREFIX}*.npz.")
    files = {file.stem.removeprefix(_PREFIX): file for file in sorted(run.glob(f"{_PREFIX}*.npz"))}
    if not files:
        raise DataError(f"{run} holds no evaluation ({_PREFIX}*.npz). First run: xmodal evaluate {run}")
    return files


def _choose(first: Path, second: Path, of_first: list[str], of_second: list[str], name: str | None) -> str:
    common = [found for found in of_first if found in of_second]
    has = f"{first} has {', '.join(of_first)}; {second} has {', '.join(of_second)}"
    if name is not None:
        if name not in common:
            raise DataError(f"there is no evaluation {name!r} of both runs: {has}. `xmodal evaluate RUN` adds one.")
        return name
    if not common:
        raise DataError(f"the two runs have no evaluation of the same name: {has}. `xmodal evaluate RUN` adds one.")
    if _PREFERRED in common:
        return _PREFERRED
    if len(common) > 1:
        raise DataError(
            f"the two runs have several evaluations in common; name one of them with --split: {', '.join(common)}"
        )
    return common[0]
