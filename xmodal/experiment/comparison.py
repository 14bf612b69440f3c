"""Two runs on the same queries: how far their figures lie apart, and whether that may be chance."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from glob import escape as escaped
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from xmodal.atomic import complete_file
from xmodal.errors import DataError
from xmodal.experiment.embedded import counted
from xmodal.retrieval.record import EvaluationRecord, read_record
from xmodal.retrieval.uncertainty import PairedDifference, paired_test

_PREFIX = "evaluation_"
_PREFERRED = "test"
_CHECKPOINT = ".ckpt"


@dataclass(frozen=True)
class Comparison:
    """Two evaluations, and how their figures differ.

    Attributes:
        places: as the user gave them.
        records: what was found there.
        name: of both; ``val vs val_querybank`` where two files were given whose names differ.
        differences: by the names of the figures: ``test/i2t_R1`` ….
    """

    places: tuple[Path, Path]
    records: tuple[EvaluationRecord, EvaluationRecord]
    name: str
    differences: dict[str, PairedDifference]


def compare(first: Path, second: Path, name: str | None = None, resamples: int = 10_000, seed: int = 0) -> Comparison:
    """Paired test between the evaluations of two runs.

    Args:
        first: a run's folder, its checkpoint, or a file ``evaluation_*.npz``.
        second: the run to hold against it. Two files are compared as they are, in the directions that both have.
        name: the evaluation to compare, such as ``test_folds5``; None: ``test`` where both have it, else the only one
            that both have.
        resamples: of the interval, and of the p-value.
        seed: of both.

    Raises:
        DataError: no such run, no evaluation (of this name) in it, or evaluations of different queries.
        ConfigError: fewer than 40 resamples.
    """
    one, other = _records(first, second, name)
    if one.data_name != other.data_name:
        raise DataError(
            f"{first} was evaluated on the data set {one.data_name}, {second} on {other.data_name}: "
            "a paired test needs both on the same queries"
        )
    if None not in (one.content, other.content) and one.content != other.content:
        raise DataError(
            f"{first} and {second} were evaluated on different images or captions, though both call them "
            f"{one.data_name}: a paired test needs both on the same queries"
        )
    try:
        found = paired_test(one.queries, other.queries, resamples, seed)
    except DataError as fault:
        raise DataError(f"{first} and {second}: {fault}") from fault
    title = one.name if one.name == other.name else f"{one.name} vs {other.name}"
    differences = {f"{title}/{metric}": difference for metric, difference in found.items()}
    return Comparison((first, second), (one, other), title, differences)


def print_comparison(found: Comparison) -> None:
    """Print the differences, rsum first, and how many queries they rest on."""
    one = found.records[0]
    images, captions = (int(one.queries[way].matched.sum()) for way in ("i2t", "t2i"))
    console = Console(soft_wrap=True)
    console.print(_table(found))
    sides = zip("AB", found.places, found.records, strict=True)
    lines = [
        *(f"{side}: {place}, {record.name} ({record.similarity})" for side, place, record in sides),
        f"Queries of {one.data_name}: {counted(images, captions)}; medR and meanR: less is better.",
        "[low, high]: 95 % interval of the difference, query images resampled with all their captions. p: two-sided "
        "randomisation test, each metric by itself, without correction for multiple comparisons.",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False)


def write_comparison(path: Path, found: Comparison) -> None:
    """Write ``{"test/i2t_R1": {"first": …, "second": …, "difference": …, "low": …, "high": …, "p_value": …}, …}``.

    Visible only when complete.

    Raises:
        DataError: the folder is absent or full, or can't be written to.
    """
    text = json.dumps({name: asdict(difference) for name, difference in found.differences.items()}, indent=2)
    try:
        with complete_file(path) as partial:
            partial.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} can't be written ({error.strerror}). Name another file with --json.") from error


def _table(found: Comparison) -> Table:
    differences = found.differences
    table = Table(title=escape(found.name))
    for heading in ("figure", "A", "B", "B − A", "[low, high]", "p"):
        table.add_column(escape(heading), justify="left" if heading == "figure" else "right", no_wrap=True)
    for name in sorted(differences, key=lambda name: not name.endswith("/rsum")):
        of = differences[name]
        interval = escape(f"[{of.low:+.2f}, {of.high:+.2f}]")
        table.add_row(
            escape(name.rpartition("/")[2]),
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
    if name is None and isinstance(of_first, EvaluationRecord) and isinstance(of_second, EvaluationRecord):
        return _in_common_directions(of_first, of_second)
    names = _names(of_first), _names(of_second)
    chosen = _choose(first, second, *names, name)
    return _taken(of_first, chosen), _taken(of_second, chosen)


def _in_common_directions(one: EvaluationRecord, other: EvaluationRecord) -> tuple[EvaluationRecord, EvaluationRecord]:
    """By class, corrected figures lack image → image and text → text, which the plain ones have."""
    ways = [way for way in one.queries if way in other.queries]
    left, right = (replace(record, queries={way: record.queries[way] for way in ways}) for record in (one, other))
    return left, right


def _names(found: EvaluationRecord | Mapping[str, Path]) -> list[str]:
    return [found.name] if isinstance(found, EvaluationRecord) else list(found)


def _taken(found: EvaluationRecord | Mapping[str, Path], name: str) -> EvaluationRecord:
    """The record itself where a file was named; in a folder, the file's name says what it is."""
    return found if isinstance(found, EvaluationRecord) else replace(read_record(found[name]), name=name)


def _evaluations(run: Path) -> EvaluationRecord | dict[str, Path]:
    """The evaluation in a file; or the files of a run's evaluations, by their names."""
    if run.suffix == _CHECKPOINT and run.is_file():
        folder, prefix = _beside(run)
    elif run.is_file():
        return read_record(run)
    elif run.is_dir():
        folder, prefix = run, _PREFIX
    else:
        raise DataError(f"{run}: there is no such run. Name the folder of a run, or a file {_PREFIX}*.npz.")
    files = {file.stem.removeprefix(prefix): file for file in sorted(folder.glob(f"{escaped(prefix)}*.npz"))}
    if not files:
        raise DataError(f"{run} holds no evaluation ({prefix}*.npz). First run: xmodal evaluate {run}")
    return files


def _beside(checkpoint: Path) -> tuple[Path, str]:
    """Where `xmodal evaluate` keeps the queries of a checkpoint, and what the names of the files begin with."""
    folder = checkpoint.parent.parent
    if checkpoint.name == f"best{_CHECKPOINT}" and (folder / "config.yaml").is_file():
        return folder, _PREFIX
    return checkpoint.parent, f"{checkpoint.stem}.{_PREFIX}"


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
