"""Folders that are written to: whether that is possible, and how much space is left."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig
from rich.filesize import decimal

from xmodal.doctor.finding import Finding

GB = 10**9
_LEAST = {"paths.output_dir": 5 * GB, "paths.features_dir": 5 * GB, "paths.cache_dir": GB}
_LEAST_TEMPORARY = GB


def folders(cfg: DictConfig) -> Iterator[Finding]:
    """Outputs, features, caches of runs, and the folder of temporary files."""
    for key, least in _LEAST.items():
        yield _folder(key, Path(cfg.paths[key.partition(".")[2]]), least, f"{key}=/path/with/space")
    temporary = Path(os.environ.get("TMPDIR") or tempfile.gettempdir())
    yield _folder("TMPDIR", temporary, _LEAST_TEMPORARY, "export TMPDIR=/path/with/space")


def unwritable(folder: Path) -> str | None:
    """Why nothing can be written there (or where the folder would be made); None where it can."""
    try:
        tempfile.TemporaryFile(dir=_existing(folder)).close()
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


def free_space(folder: Path) -> int:
    """Bytes that are free on the disk that a folder is on, or would be."""
    return shutil.disk_usage(_existing(folder)).free


def _folder(what: str, folder: Path, least: int, advice: str) -> Finding:
    if fault := unwritable(folder):
        return Finding(what, "fault", f"{folder} can't be written ({fault})", advice)
    free, state = free_space(folder), "" if folder.is_dir() else ", made when it is needed"
    found, values = f"{decimal(free)} free, {folder}{state}", {"folder": str(folder), "free": free}
    if free < least:
        return Finding(what, "warning", f"{found}: less than {decimal(least)}", f"free some space, or {advice}", values)
    return Finding(what, "ok", found, values=values)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())
