"""The folder of an export: made beside its place, and put there when it is complete and checked."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xmodal import __version__
from xmodal.errors import DataError

CONFIG = "config.json"
FORMAT = 1
_MADE_BY = "xmodal export"
_CHECKPOINTS = "checkpoints"  # the folder of a run that holds them


def destination_faults(flag: str, output: Path) -> list[str]:
    """Why no export can be put there; a sentence each, found before anything is computed."""
    existing = _existing(output)
    if not existing.is_dir():
        return [f"{flag} {output}: {existing} is a file; name a folder."]
    if Path.cwd().is_relative_to(output.resolve()):
        return [
            f"{flag} {output} is the folder that you are in, or above it, and would be replaced as a whole: name a new "
            f"folder in it, such as {flag} exported."
        ]
    if existing == output.resolve():
        return _fault_of_existing(flag, output) or _unwritable(flag, output, existing.parent)
    return _unwritable(flag, output, existing)


def run_of(checkpoint: Path) -> str:
    """The run that a checkpoint is of, as exports remember it: the last two names of its folder, for where it lies is
    nobody else's business; those of the file itself where it is in no run."""
    file = checkpoint.resolve()
    return "/".join((file.parent.parent if file.parent.name == _CHECKPOINTS else file).parts[-2:])


def losses(flag: str, output: Path, kind: str, run: str) -> list[str]:
    """What would be lost there, a sentence each: an export of another kind, or of another run than this one."""
    earlier = read_config(output)
    if earlier is None or (earlier.get("kind"), earlier.get("run")) == (kind, run):
        return []
    what = f"an export of the kind {earlier.get('kind')}, of {earlier.get('run', 'a run that it does not name')}"
    return [f"{flag} {output} holds {what}, which would be replaced: name another folder, or add --overwrite."]


@contextmanager
def complete_export(output: Path) -> Iterator[Path]:
    """A folder to write an export into, which takes the place of ``output`` when the block ends well, and is removed
    when it does not. An earlier export that was there stays until then.

    Raises:
        DataError: the folder can't be written to, or the disk is full.
    """
    place = output.resolve()
    try:
        parent = _existing(place.parent)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}.", suffix=".part", dir=parent) as scratch:
            folder = Path(scratch) / "new"
            folder.mkdir()
            yield folder
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.exists():
                os.replace(place, Path(scratch) / "old")
            os.replace(folder, place)
    except OSError as error:
        raise DataError(f"the export can't be written to {output} ({error}). Name another folder.") from error


def write_config(folder: Path, kind: str, content: dict[str, Any]) -> None:
    """Put a ``config.json`` beside what is in the folder, which names all files there; the last thing to be written."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    head = {"made_by": _MADE_BY, "format": FORMAT, "kind": kind, "version": __version__}
    text = json.dumps({**head, **content, "files": files}, indent=2)
    (folder / CONFIG).write_text(f"{text}\n", encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any] | None:
    """What an export wrote of itself; None where there is none, or one that something else wrote."""
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        is_ours = found["made_by"] == _MADE_BY and isinstance(found["files"], list)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if is_ours else None


def _existing(path: Path) -> Path:
    place = path.resolve()
    return next(folder for folder in (place, *place.parents) if folder.exists())


def _fault_of_existing(flag: str, output: Path) -> list[str]:
    """A folder that exists must be empty, or hold an export and nothing else: all of it is replaced."""
    present = {path.relative_to(output).as_posix() for path in output.rglob("*") if not path.is_dir()}
    listed = {CONFIG, *(read_config(output) or {"files": []})["files"]}
    if read_config(output) is None and any(output.iterdir()):
        return [f"{flag} {output} holds something else than an export of xmodal; name a new folder, or empty it."]
    if strange := sorted(present - listed):
        return [f"{flag} {output} holds {strange[0]} beside an earlier export; name a new folder, or move it away."]
    return []


def _unwritable(flag: str, output: Path, folder: Path) -> list[str]:
    if os.access(folder, os.W_OK | os.X_OK):
        return []
    return [f"{flag} {output}: {folder} can't be written to; name another folder."]
