"""The folder of a saved index: changed all at once or not at all, and verified when it is opened.

A change writes its files under other names (``images.faiss.next``), then replaces ``index.json``, which holds their
digests, and gives them their names last. Killed before ``index.json``, the index is what it was; killed after it, the
next one to open the index gives the files their names. Whoever does that holds the lock of the folder: without it, a
reader might take hold of what the next change is writing.
"""

import errno
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from xmodal.atomic import complete_file
from xmodal.errors import DataError
from xmodal.features.lock import if_free, only_one
from xmodal.search.manifest import NAME, UNFINISHED, Manifest, read_manifest

LEFTOVERS = (f"*{UNFINISHED}", f"*{UNFINISHED}.part*", f".{NAME}.*.part")  # of a process that was killed
_TRIES, _PAUSE = 50, 0.1  # seconds between looks at an index that is being changed: its files are renamed in a moment
_AGAIN = "Build the index again (xmodal index RUN --output … --overwrite), or copy it again from where it is whole."


class Change:
    """Files of an index that are being written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: list[str] = []

    def path(self, name: str) -> Path:
        """Where to write what will be the file ``name``."""
        if name not in self._names:
            self._names.append(name)
        return self._folder / f"{name}{UNFINISHED}"

    def drop(self, name: str) -> None:
        """A file that was needed on the way alone."""
        self._names.remove(name)
        (self._folder / f"{name}{UNFINISHED}").unlink(missing_ok=True)

    def commit(self, manifest: Manifest, kept: Mapping[str, Mapping[str, object]] | None = None) -> Manifest:
        """Make the new files the index, all at once.

        Args:
            kept: digests of files of the index that stay as they are.
        """
        digests = {name: _stated(self._folder / f"{name}{UNFINISHED}") for name in self._names}
        manifest = replace(manifest, files={**(kept or {}), **digests})
        before = _names_in(self._folder)
        with complete_file(self._folder / NAME) as partial:
            partial.write_text(manifest.as_json(), encoding="utf-8")
        for name in self._names:
            os.replace(self._folder / f"{name}{UNFINISHED}", self._folder / name)
        for name in before - manifest.files.keys():
            (self._folder / name).unlink(missing_ok=True)
        self._names.clear()
        return manifest

    def discard(self) -> None:
        """Remove what has been written and not committed."""
        for name in self._names:
            (self._folder / f"{name}{UNFINISHED}").unlink(missing_ok=True)


@contextmanager
def change_of(folder: Path, is_of_new: bool = True) -> Iterator[Change]:
    """Write to an index, alone; what is not committed when the block ends is removed.

    Args:
        is_of_new: whether it is a new index, which could be somewhere else as well.

    Raises:
        DataError: the folder can't be written to, or the disk is full.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with only_one(folder / NAME, "changing"):
            _tidy(folder)
            change = Change(folder)
            try:
                yield change
            finally:
                change.discard()
    except OSError as error:
        raise DataError(
            f"The index can't be written to {folder} ({error}). {_advice(folder, error, is_of_new)}"
        ) from error
    finally:
        if is_new and not (folder / NAME).exists():
            with suppress(OSError):  # others wrote there too, or it could not be made
                (folder / f"{NAME}.lock").unlink(missing_ok=True)
                folder.rmdir()


def _advice(folder: Path, error: OSError, is_of_new: bool) -> str:
    if is_of_new:
        return "Make room, or choose another: --output."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"Make it writable (chmod -R u+w {folder}), or copy the folder and change the copy."
    return "Make room, or copy the folder to where there is room and change the copy."


def verified(folder: Path) -> Manifest:
    """The manifest of an index whose files are those that were written, to the last byte.

    Raises:
        DataError: no index; files that are absent, or are others than the manifest says.
    """
    for _ in range(_TRIES):
        manifest = read_manifest(folder)
        if not (faults := _faults(folder, manifest)):
            return manifest
        with _if_at_rest(folder) as is_at_rest:  # else another process is changing it just now: look again
            if is_at_rest:
                manifest = read_manifest(folder)
                _finish(folder, manifest)
                if not (faults := _faults(folder, manifest)):
                    return manifest
                break
        time.sleep(_PAUSE)
    raise DataError(f"The index {folder} is damaged: {'; '.join(faults)}. {_AGAIN}")


@contextmanager
def _if_at_rest(folder: Path) -> Iterator[bool]:
    """Hold the right to change an index (True), or learn that another process does, and will finish by itself."""
    if not os.access(folder, os.W_OK):
        yield True  # whoever changes it can't be seen from here, and nothing can be put right
        return
    with if_free(folder / NAME) as is_free:
        yield is_free


def _names_in(folder: Path) -> set[str]:
    """The files of the index in a folder; none where it can't be read, and is about to be replaced."""
    try:
        return set(read_manifest(folder).files)
    except DataError:
        return set()


def _tidy(folder: Path) -> None:
    """Finish, or clear away, what a process left that was killed while it changed the index."""
    if (folder / NAME).exists():
        with suppress(DataError):  # a damaged one is about to be replaced, or refused by whoever needs it
            _finish(folder, read_manifest(folder))
    for pattern in LEFTOVERS:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _finish(folder: Path, manifest: Manifest) -> None:
    """Give files their names where a change was cut off after it had been committed; for one alone who may change it.

    Raises:
        DataError: the folder can't be written to.
    """
    for name, stated in manifest.files.items():
        unfinished = folder / f"{name}{UNFINISHED}"
        if unfinished.exists() and _same(folder / name, stated) is False and _same(unfinished, stated):
            try:
                os.replace(unfinished, folder / name)
            except OSError as error:
                raise DataError(
                    f"The last change of the index {folder} was cut off at its very end, and can't be finished, as "
                    f"{folder} can't be written to ({error.strerror}). Open it once where it can be."
                ) from error


def _faults(folder: Path, manifest: Manifest) -> list[str]:
    faults = []
    for name, stated in manifest.files.items():
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is absent")
        elif path.stat().st_size != stated["bytes"]:
            faults.append(f"{name} has {path.stat().st_size:,} bytes, and {stated['bytes']:,} when it was written")
        elif not _same(path, stated):
            faults.append(f"{name} has another content than when it was written")
    return faults


def _same(path: Path, stated: Mapping[str, object]) -> bool:
    try:
        return path.stat().st_size == stated["bytes"] and file_sha256(path) == stated["sha256"]
    except FileNotFoundError:
        return False


def _stated(path: Path) -> dict[str, object]:
    return {"sha256": file_sha256(path), "bytes": path.stat().st_size}


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
