"""What a folder of features holds: its files and what is left of unfinished ones, looked at and removed."""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np

from xmodal.config.suggestions import did_you_mean
from xmodal.data.faults import SHOWN, name_some
from xmodal.errors import ConfigError, FeatureError
from xmodal.features.hdf5_writing import READ_ERRORS
from xmodal.features.lock import if_free, is_held
from xmodal.features.store import FeatureFile, rises_to

_BLOCK_BYTES = 2**24  # read at a time
_SUFFIXES = (".h5", ".h5.parts", ".h5.lock")
_NO_CHECKSUMS = (
    "no checksums, since an older version made it: a changed byte shows only where it makes a number that is not finite"
)
_KEY = re.compile(r"-([0-9a-f]{16})\.h5$")


@dataclass(frozen=True)
class Verdict:
    """What reading all of a file found: its faults, and what could not be checked."""

    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One file of features, finished or not: ``<data set>/<encoder>-<key>.h5`` with its chunks and its lock."""

    path: Path

    @property
    def data_name(self) -> str:
        return self.path.parent.name

    @property
    def key(self) -> str:
        """The 16 hex digits in the file's name; empty where it has none."""
        found = _KEY.search(self.path.name)
        return found.group(1) if found else ""

    @property
    def encoder(self) -> str:
        """Side and encoder, as in ``text-bert``."""
        return _KEY.sub("", self.path.name)

    @property
    def parts(self) -> Path:
        """The folder of finished chunks."""
        return self.path.with_name(f"{self.path.name}.parts")

    @property
    def lock(self) -> Path:
        return self.path.with_name(f"{self.path.name}.lock")

    @cached_property
    def is_being_written(self) -> bool:
        """Whether another process holds the file's lock."""
        return is_held(self.path)

    @property
    def is_unfinished(self) -> bool:
        """Whether an extraction was begun here and has not come to its end."""
        return not self.path.exists()

    @cached_property
    def fault(self) -> str:
        """Why the file is no complete one, as far as its form tells (no vector is read); empty where it is."""
        if self.is_unfinished:
            return ""
        file = FeatureFile(self.path)
        try:
            file.verify()
            return ""
        except FeatureError as error:
            return str(error)
        finally:
            file.close()

    @property
    def state(self) -> str:
        if self.is_being_written:
            return "being written by another process"
        if self.is_unfinished:
            return "unfinished, {} of {} chunks".format(*self.chunks)
        return "damaged" if self.fault else "complete"

    @property
    def chunks(self) -> tuple[int, int | str]:
        """How many chunks are finished, and how many it will take (``?`` where no chunk says)."""
        files = sorted(self.parts.glob("chunk-*.h5"))
        return len(files), next((total for file in files if (total := _chunks_in_all(file))), "?")

    @property
    def form(self) -> tuple[int, int, int, str] | None:
        """Items, vectors, width and dtype of a complete file."""
        if self.is_unfinished or self.fault:
            return None
        file = FeatureFile(self.path)
        try:
            return len(file), int(file.offsets[-1]), file.feature_dim, str(file.attributes["dtype"])
        finally:
            file.close()

    @property
    def files(self) -> list[Path]:
        """All that lies on the disk for it."""
        chunks = [file for file in self.parts.rglob("*") if file.is_file()] if self.parts.is_dir() else []
        return [*chunks, *(file for file in (self.path, self.lock) if file.is_file())]

    @property
    def size(self) -> int:
        """Bytes of all that lies on the disk for it."""
        return sum(status.st_size for status in _stats(self.files))

    @property
    def made(self) -> datetime:
        """When it was last written to."""
        return datetime.fromtimestamp(max((status.st_mtime for status in _stats(self.files)), default=0.0))

    def verify(self) -> Verdict:
        """Read all of it: form, key, checksums, ids, codes, and whether every value is finite.

        Of an unfinished file the finished chunks are read.
        """
        if self.is_being_written:
            return Verdict((), ("being written by another process: not looked at",))
        if self.is_unfinished:
            chunks = sorted(self.parts.glob("chunk-*.h5"))
            faults = [f"{chunk}: {fault}; delete this one chunk" for chunk in chunks for fault in _faults(chunk)]
            return Verdict(tuple(faults), ("unfinished: the same extraction goes on from its chunks",))
        if self.fault:
            return Verdict((self.fault,))
        return Verdict(tuple(_faults(self.path)), () if _has_checksums(self.path) else (_NO_CHECKSUMS,))

    def remove(self) -> int | None:
        """Remove file, chunks and lock; the bytes that were freed, or None where another process holds the lock.

        Raises:
            FeatureError: the folder does not allow it.
        """
        try:
            with if_free(self.path) as free:
                return self._removed() if free else None
        except OSError as error:
            raise FeatureError(f"{self.path} can't be removed ({error.strerror}).") from error

    def _removed(self) -> int:
        size = self.size
        self.path.unlink(missing_ok=True)
        if self.parts.exists():
            shutil.rmtree(self.parts)
        self.lock.unlink(missing_ok=True)
        if not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()
        return size


def entries(root: Path) -> list[Entry]:
    """All files of features below ``root``, by data set and name; those that are finished, begun or being written."""
    found = {
        path.with_name(path.name.removesuffix(suffix.removeprefix(".h5")))
        for suffix in _SUFFIXES
        for path in root.glob(f"*/*{suffix}")
    }
    return [Entry(path) for path in sorted(found)]


def find(root: Path, names: Sequence[str]) -> list[Entry]:
    """The entries that ``names`` stand for: keys (or how one begins, six digits at least), file names, or paths.

    Raises:
        ConfigError: names that stand for nothing, or for several files.
    """
    known = entries(root)
    faults, chosen = [], []
    for name in names:
        matches = [entry for entry in known if _stands_for(name, entry)]
        if len(matches) == 1:
            chosen.append(matches[0])
        else:
            faults.append(_unclear(name, matches, known, root))
    if faults:
        raise ConfigError(faults)
    return list(dict.fromkeys(chosen))


def _stands_for(name: str, entry: Entry) -> bool:
    if name in (entry.key, entry.path.name, entry.path.stem):
        return bool(name)
    if Path(name).absolute() == entry.path.absolute() or Path(name) == Path(entry.data_name, entry.path.name):
        return True
    return len(name) >= 6 and "-" not in name and entry.key.startswith(name)


def _unclear(name: str, matches: Sequence[Entry], known: Sequence[Entry], root: Path) -> str:
    if matches:
        return f"{name} stands for {len(matches)} files; name one: {', '.join(str(entry.path) for entry in matches)}."
    if not known:
        return f"{name}: there are no features in {root} (paths.features_dir=… names another folder)."
    choices = [word for entry in known for word in (entry.key, entry.path.name)]
    hint = did_you_mean(name, choices, cutoff=0.5)
    return f"{name}: no features of that key, file name or path in {root}.{hint} `xmodal features list` shows them all."


def _chunks_in_all(file: Path) -> int:
    try:
        with h5py.File(file, "r") as chunk:
            return int(chunk.attrs.get("of", 0))
    except READ_ERRORS:
        return 0


def _stats(files: Sequence[Path]) -> Iterator[os.stat_result]:
    for file in files:
        with suppress(FileNotFoundError):  # a chunk that another process has just merged
            yield file.stat()


def _has_checksums(path: Path) -> bool:
    with h5py.File(path, "r") as file:
        return bool(file["values"].fletcher32) or not file["values"].size


def _faults(path: Path) -> list[str]:
    """Faults of every dataset of an HDF5 file, read a block at a time."""
    try:
        with h5py.File(path, "r") as file:
            present = [name for name in ("values", "codes", "offsets", "ids") if name in file]
            found = {name: list(_dataset_faults(name, file[name], len(file["values"]))) for name in present}
            if "ids" in found and not found["ids"]:
                found["ids"] += _repeated(file["ids"])
            if "offsets" in found and not found["offsets"]:
                found["offsets"] += _falling(file["offsets"][:], len(file.get("codes", file["values"])))
            return [fault for faults in found.values() for fault in faults]
    except READ_ERRORS as error:
        return [f"can't be read ({error})"]


def _dataset_faults(name: str, dataset: h5py.Dataset, table: int) -> Iterator[str]:
    unreadable, wrong = [], 0
    for start, stop in _blocks(dataset):
        try:
            block = dataset[start:stop]
        except READ_ERRORS:  # of HDF5 where a checksum differs, of the disk where it fails
            unreadable.append(f"{start:,} to {stop - 1:,}")
            continue
        if name == "values":
            wrong += int((~np.isfinite(block)).any(axis=tuple(range(1, block.ndim))).sum())
        elif name == "codes":
            wrong += int((block >= table).sum())
    if unreadable:
        more = f", … ({len(unreadable) - SHOWN} more)" if len(unreadable) > SHOWN else ""
        yield f"{name}: unreadable, or not what their checksums say: rows {', '.join(unreadable[:SHOWN])}{more}"
    if wrong:
        yield {
            "values": f"values: NaN or infinity in {wrong:,} of {len(dataset):,} vectors",
            "codes": f"codes: {wrong:,} of {len(dataset):,} lie beyond the {table:,} rows of the table",
        }[name]


def _repeated(ids: h5py.Dataset) -> Iterator[str]:
    stored = ids.asstr()[:] if h5py.check_string_dtype(ids.dtype) else ids[:]
    found, counts = np.unique(stored, return_counts=True)
    if len(repeated := found[counts > 1]):
        yield f"ids: more than once {name_some([str(one) for one in repeated])}"


def _falling(offsets: np.ndarray, vectors: int) -> Iterator[str]:
    if not rises_to(offsets, vectors):
        yield f"offsets: they don't rise from 0 to the {vectors:,} vectors"


def _blocks(dataset: h5py.Dataset) -> Iterator[tuple[int, int]]:
    """First row and end of blocks of about 16 MB, in whole pieces of what a checksum covers."""
    if not dataset.ndim or not len(dataset):
        return
    width = max(1, dataset.dtype.itemsize * int(np.prod(dataset.shape[1:])))
    piece = dataset.chunks[0] if dataset.chunks else 1
    step = max(1, _BLOCK_BYTES // width // piece) * piece
    for start in range(0, len(dataset), step):
        yield start, min(start + step, len(dataset))
