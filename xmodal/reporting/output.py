"""The folder of a report: made within its place, and put there when it is complete."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from xmodal.atomic import complete_file
from xmodal.errors import DataError
from xmodal.reporting.run_files import is_run

MANIFEST = "report.json"
_FORMAT = 1
_PARTIAL = ".report-"  # beginning of the name of a folder that is being written


def output_faults(output: Path) -> list[str]:
    """Why no report can be put there; a sentence each, found before anything is computed."""
    place = output.resolve()
    inside = next((folder for folder in (place, *place.parents) if is_run(folder)), None)
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    if inside is not None:
        return [f"--output {output} lies in the run {inside}, which stays as it is; name a folder elsewhere."]
    if not existing.is_dir():
        return [f"--output {output}: {existing} is a file; name a folder."]
    if not os.access(existing, os.W_OK | os.X_OK):
        return [f"--output {output}: {existing} can't be written to; name another folder."]
    if existing == place and _others_in(place) and _manifest(place) is None:
        return [f"--output {output} holds something else than a report of xmodal; name a new folder, or empty it."]
    return []


@contextmanager
def complete_report(output: Path) -> Iterator[Path]:
    """A folder to write a report into; when the block ends well, its files take the places of those of the report that
    was at ``output``. Other files there stay.

    Raises:
        DataError: the folder can't be written to, or the disk is full.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=output))  # on the same file system, even where that begins
        try:
            yield partial
            _put(partial, output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            if not any(output.iterdir()):
                output.rmdir()
    except OSError as error:
        raise DataError(
            f"the report can't be written to {output} ({error}). Name another folder with --output."
        ) from error


def _others_in(folder: Path) -> bool:
    """Whether it holds anything but what a killed report left."""
    return any(not entry.name.startswith(_PARTIAL) for entry in folder.iterdir())


def _put(partial: Path, output: Path) -> None:
    new = sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file())
    old = (_manifest(output) or {}).get("files", [])
    _write_manifest(output, sorted({*old, *new}))  # should this be interrupted, all of them are known to be ours
    for name in set(old) - set(new):
        (output / name).unlink(missing_ok=True)
    for name in new:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / name, output / name)
    for folder in {(output / name).parent for name in old} - {output}:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    _write_manifest(output, new)


def _write_manifest(output: Path, files: Sequence[str]) -> None:
    with complete_file(output / MANIFEST) as partial:
        partial.write_text(json.dumps({"format": _FORMAT, "made_by": "xmodal report", "files": files}, indent=2) + "\n")


def _manifest(output: Path) -> dict[str, Any] | None:
    """What an earlier report left in the folder; None where there is none, or one that names files elsewhere."""
    try:
        found = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
        is_ours = found["made_by"] == "xmodal report" and all(_is_inside(name) for name in found["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if is_ours else None


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts
