"""What the commands say of files of features, and what they do with them; imported when a command runs."""

import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from xmodal.errors import ConfigError
from xmodal.features.catalogue import Entry, entries, find
from xmodal.features.live import LiveImages
from xmodal.features.store import FeatureFile
from xmodal.types import FeatureSource

_WIDTH_OF_FILES = 200  # of output that goes to no terminal
_COLUMNS = ("data set", "encoder", "items", "vectors", "width", "dtype", "size", "key", "made", "state")
_NUMBERS = ("items", "vectors", "width", "size")


def described(made: FeatureSource | Path) -> str:
    """One line about the features of one side: how many, and where they are."""
    if isinstance(made, LiveImages):
        return f"{len(made):,} photos, decoded as training goes along: nothing is stored"
    features = FeatureFile(made) if isinstance(made, Path) else made
    counts = f"{len(features):,} items, {int(features.lengths.sum()):,} vectors of width {features.feature_dim}"
    if isinstance(made, Path):
        return f"{counts}, {decimal(made.stat().st_size)} in {made}"
    return f"{counts}: nothing is stored"


def print_table(root: Path) -> None:
    """Print a line for each file of features below ``root``, and their number and size."""
    found = entries(root)
    if not found:
        print(f"No features in {root}.")
        return
    table = Table(box=box.SIMPLE_HEAD)
    for name in _COLUMNS:
        table.add_column(name, justify="right" if name in _NUMBERS else "left", overflow="fold")
    for entry in found:
        table.add_row(*_cells(entry))
    Console(width=None if sys.stdout.isatty() else _WIDTH_OF_FILES).print(table)
    print(f"{len(found)} in {root}, {decimal(sum(entry.size for entry in found))}")


def verify_all(root: Path, names: Sequence[str]) -> bool:
    """Print what reading the files named (or all) found; whether they are sound.

    Raises:
        ConfigError: names that stand for nothing, or for several files.
    """
    known = find(root, names) if names else entries(root)
    if not known:
        print(f"No features in {root}.")
    damaged = [entry for entry in known if not _verified(entry)]
    if damaged:
        print(f"{len(damaged)} of {len(known)} are damaged.")
    if any(not entry.is_unfinished for entry in damaged):
        print("Damaged files are removed by `xmodal features remove --damaged`, and made anew when they are needed.")
    return not damaged


def chosen(root: Path, names: Sequence[str], states: Collection[str]) -> list[Entry]:
    """The entries of these names, or those in one of the ``states``: ``damaged``, ``unfinished``, or ``all``.

    By ``damaged`` and ``unfinished`` nothing is meant that another process is writing.

    Raises:
        ConfigError: names that stand for nothing, or for several files.
    """
    if names:
        return find(root, names)
    return [entry for entry in entries(root) if "all" in states or _is_in(entry, states)]


def remove_all(root: Path, found: Sequence[Entry], is_agreed: bool) -> bool:
    """Remove the entries, after asking unless ``is_agreed``; whether all of them are gone.

    Raises:
        ConfigError: there is nobody to ask.
        FeatureError: the folder does not allow it.
    """
    if not found:
        print(f"Nothing to remove in {root}.")
        return True
    if not is_agreed and not _answered_yes(found):
        print("Nothing was removed.")
        return False
    freed = {entry: entry.remove() for entry in found}
    for entry in (entry for entry, size in freed.items() if size is None):
        print(f"{entry.path} is being written by another process and was left alone.")
    removed = [size for size in freed.values() if size is not None]
    print(f"Removed {len(removed)} of {len(found)}: {sum(removed):,} bytes freed.")
    return len(removed) == len(found)


def _cells(entry: Entry) -> list[str]:
    form = entry.form
    items, vectors, width, dtype = ("", "", "", "") if form is None else (*(f"{n:,}" for n in form[:3]), form[3])
    made = entry.made.strftime("%Y-%m-%d %H:%M")
    size = decimal(entry.size)
    return [entry.data_name, entry.encoder, items, vectors, width, dtype, size, entry.key, made, entry.state]


def _verified(entry: Entry) -> bool:
    """Print what reading the file found; whether it is sound."""
    verdict = entry.verify()
    print(f"{entry.path}: {'DAMAGED' if verdict.faults else 'unfinished' if entry.is_unfinished else 'sound'}")
    for line in [*verdict.faults, *verdict.notes]:
        print(f"  - {line}")
    return not verdict.faults


def _is_in(entry: Entry, states: Collection[str]) -> bool:
    if entry.is_being_written:
        return False
    return "unfinished" in states if entry.is_unfinished else "damaged" in states and bool(entry.verify().faults)


def _answered_yes(found: Sequence[Entry]) -> bool:
    print("To be removed:")
    for entry in found:
        print(f"  {entry.path}, {entry.size:,} bytes")
    if not sys.stdin.isatty():
        raise ConfigError("Nobody can be asked here (no terminal), so nothing was removed. Add --yes.")
    return input(f"Remove {len(found)}? [y/N] ").strip().lower() in ("y", "yes")
