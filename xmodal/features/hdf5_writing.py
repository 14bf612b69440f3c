"""HDF5 files that are seen whole or not at all, with a checksum for all that is in them."""

import errno
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

PIECE_BYTES = 2**20  # of values under one checksum: what reading a single set costs, and what one bad byte spoils
# The oldest form of HDF5 whose own records have checksums too, read by every version since 1.10; without them, a bit
# that flips in a dataset's description gives other numbers, and no error.
FORMAT = ("v110", "v110")
# What h5py raises where a file is damaged, and what follows where a record comes back as something else.
READ_ERRORS = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError)
_PIECE_ROWS = 2**16  # of ids and offsets under one checksum
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def create_values(file: h5py.File, length: int, width: int, dtype: str, name: str = "values") -> h5py.Dataset:
    """A dataset (``length``, ``width``) in pieces of whole rows, each with a Fletcher-32 checksum.

    HDF5 compares the checksum whenever it reads a piece, and raises OSError where it differs.
    """
    rows = min(length, max(1, PIECE_BYTES // max(1, width * np.dtype(dtype).itemsize)))
    if rows == 0 or width == 0:  # HDF5 has no pieces of nothing
        return file.create_dataset(name, (length, width), dtype)
    return file.create_dataset(name, (length, width), dtype, chunks=(rows, width), fletcher32=True)


def pieces(length: int) -> dict[str, Any]:
    """How HDF5 stores this many numbers with a checksum for every piece; it has no pieces of nothing."""
    return {"chunks": (min(length, _PIECE_ROWS),), "fletcher32": True} if length else {}


def create_texts(file: h5py.File, name: str, texts: Sequence[str]) -> h5py.Dataset:
    """Strings of one length, padded: HDF5 keeps those of any length where it has no checksums."""
    encoded = [text.encode() for text in texts]
    kind = h5py.string_dtype("utf-8", max(1, max(map(len, encoded), default=1)))
    return file.create_dataset(name, data=np.array(encoded, dtype=kind), **pieces(len(encoded)))


def write_attributes(file: h5py.File, attributes: Mapping[str, str | int | bool]) -> None:
    """Attributes of the file, its strings under a checksum like those of `create_texts`."""
    for name, value in attributes.items():
        if isinstance(value, str):
            kind = h5py.string_dtype("utf-8", max(1, len(value.encode())))
            file.attrs.create(name, np.array(value.encode(), dtype=kind))
        else:
            file.attrs[name] = value


def read_attributes(file: h5py.File) -> dict[str, Any]:
    """All attributes of the file, strings of any form as ``str``."""
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in file.attrs.items()}


def write_whole(path: Path, scratch: Path, fill: Callable[[h5py.File], None]) -> None:
    """Write through ``fill`` under another name in the folder ``scratch``, force it to disk, rename it to ``path``.

    Both are on one disk. An HDF5 file that was open when its process was killed may never open again, hence the
    other name. Pieces are not cached: a write to a full disk fails at once, not when Python forgets the dataset.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    temporary = scratch / f"{path.stem}.{os.getpid()}.tmp"
    try:
        with h5py.File(temporary, "w", libver=FORMAT, rdcc_nbytes=0) as file:
            fill(file)
        force_to_disk(temporary)
        temporary.replace(path)
        force_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(scratch: Path) -> None:
    """Remove what `write_whole` left in ``scratch`` when its process was killed; the caller holds the lock."""
    for left in scratch.glob("*.tmp"):
        left.unlink(missing_ok=True)


def force_to_disk(path: Path) -> None:
    """Return when a file, or the list of files of a folder, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def says_full(error: BaseException | None) -> bool:
    """Whether this error, or one that led to it, is a full disk; HDF5 gives the number in its text alone at times."""
    while error is not None:
        stated = re.search(r"errno = (\d+)", str(error))
        if getattr(error, "errno", None) in _FULL or (stated and int(stated.group(1)) in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False
