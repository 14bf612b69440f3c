"""Features on disk: one HDF5 file per (data set, encoder), named by what made it, complete or not there."""

import hashlib
import json
import logging
import math
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from xmodal import __version__
from xmodal.errors import ConfigError, FeatureError
from xmodal.features.hdf5_writing import READ_ERRORS, create_texts, pieces, read_attributes, write_attributes
from xmodal.types import RaggedFeatures

ENCODING = 1  # to be raised when an encoder comes to give other vectors for the same parameters and weights
DTYPES = ("float16", "float32")
_CACHE_BYTES = 2**21  # of checked pieces of a file that HDF5 keeps for the next read, per dataset
_PAGES_FROM = 2**20  # bytes of an array that gets pages of its own

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureOrigin:
    """What made a file of features; any difference gives another key, so that no file is ever a stale hit.

    Args:
        encoder: what ``Encoder.fingerprint()`` returned.
        data_fingerprint: digest of the ids and the content of the encoded items.
        dtype: ``float16`` or ``float32``, how the values are stored.
        modality: ``image`` or ``text``; no part of the key, which the encoder's class makes differ.
        precision: of the encoder's arithmetic where that is half (``bfloat16``, ``float16``), else "".
    """

    encoder: dict[str, Any]
    data_fingerprint: str
    dtype: str = "float16"
    modality: str = ""
    precision: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"features.dtype must be one of {', '.join(DTYPES)}, found {self.dtype!r}.")

    @property
    def encoder_json(self) -> str:
        """The fingerprint of the encoder in one canonical line."""
        return json.dumps(self.encoder, sort_keys=True, default=str)

    @property
    def key(self) -> str:
        """First 16 hex digits of the SHA-256 over encoder, data, dtype and a half precision."""
        half = [self.precision] if self.precision else []
        text = json.dumps([ENCODING, self.encoder_json, self.data_fingerprint, self.dtype, *half])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def attributes(self) -> dict[str, str]:
        """The attributes that a file of this origin carries."""
        digest = self.encoder.get("weights_digest", self.encoder.get("weights", ""))
        return {
            "encoder": self.encoder_json,
            "weights_digest": str(digest),
            "data_fingerprint": self.data_fingerprint,
            "dtype": self.dtype,
            "modality": self.modality,
            "precision": self.precision,
            "key": self.key,
            "xmodal_version": __version__,
        }


class FeatureStore:
    """A folder of feature files: ``<root>/<data set>/<encoder>-<key>.h5``."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def path(self, data_name: str, encoder_name: str, key: str) -> Path:
        """Where the features with this key are, or will be."""
        return self.root / data_name / f"{encoder_name}-{key}.h5"

    def open(self, path: Path) -> "FeatureFile":
        """A complete file, read lazily; raises FeatureError where it is absent, unfinished or damaged."""
        file = FeatureFile(path)
        file.verify()
        return file

    def read(self, path: Path) -> RaggedFeatures:
        """All sets of a complete file, in memory, in the dtype that they are stored in."""
        return self.open(path).read()


class FeatureFile:
    """N ragged sets in HDF5: ``values`` (T, D), ``offsets`` (N + 1), ``ids`` (N); a `FeatureSource` on disk.

    Where the file has ``codes`` (T,), ``values`` is a table (V, D) and vector t is its row ``codes[t]``.

    The file is opened when first read and once per process: an open HDF5 handle does not survive a fork. Every method
    that reads raises FeatureError where the file is absent or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._handle: h5py.File | None = None
        self._process = -1

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        """Set ``row`` (n, D), read from disk."""
        return self.select(np.array([row]))[0]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_handle": None, "_process": -1}

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where each set starts and the last ends: (N + 1,) int64."""
        with self._read("offsets") as offsets:
            return offsets[:]

    @cached_property
    def ids(self) -> list[int] | list[str]:
        """The id of each set."""
        with self._read("ids") as ids:
            return ids.asstr()[:].tolist() if h5py.check_string_dtype(ids.dtype) else ids[:].tolist()

    @cached_property
    def table(self) -> np.ndarray | None:
        """The distinct vectors (V, D) that codes stand for; None where every vector is stored by itself."""
        if not self.is_coded:
            return None
        with self._read("values") as values:
            return values[:]

    @property
    def is_coded(self) -> bool:
        """Whether the file holds a table of distinct vectors, and codes."""
        with self._reading("the list of its arrays") as file:
            return "codes" in file

    @cached_property
    def feature_dim(self) -> int:
        """Width D."""
        with self._read("values") as values:
            return values.shape[1]

    @property
    def lengths(self) -> np.ndarray:
        """Number of vectors of each set: (N,) int64."""
        return np.diff(self.offsets)

    @cached_property
    def vector_bytes(self) -> int:
        """Bytes that one vector of a set takes as it is stored: those of its code where there are codes."""
        with self._read("codes" if self.is_coded else "values") as stored:
            return stored.dtype.itemsize * (1 if self.is_coded else stored.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes in memory once `read`."""
        with self._read("values") as values:
            table = values.size * values.dtype.itemsize if self.is_coded else 0
        return int(self.offsets[-1]) * self.vector_bytes + table + self.offsets.nbytes

    @property
    def attributes(self) -> dict[str, Any]:
        """What made the file: encoder (JSON), weights and data digests, dtype, key, xmodal_version, complete."""
        with self._reading("its description") as file:
            return read_attributes(file)

    @property
    def computed_in(self) -> str:
        """In which floating-point format the encoder computed; older files don't say, and are of float32."""
        return str(self.attributes.get("computed_in", "float32"))

    @property
    def origin(self) -> FeatureOrigin:
        """What made the file, as recorded in it."""
        with self._reading("what made it"):
            found = self.attributes
            made_by, others = json.loads(found["encoder"]), [found.get(name, "") for name in ("modality", "precision")]
            return FeatureOrigin(made_by, found["data_fingerprint"], found["dtype"], *others)

    def select(self, rows: np.ndarray) -> RaggedFeatures:
        """The sets of ``rows``, in that order, read from disk: neighbours among rising rows in one go.

        Rows in another order, or repeated, are read in rising order first, which takes twice the memory.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if (np.diff(rows) > 0).all():
            return self._rising(rows)
        rising, places = np.unique(rows, return_inverse=True)
        return self._rising(rising).select(places)

    def blocks(self, budget_bytes: int) -> Iterator[tuple[np.ndarray, RaggedFeatures]]:
        """All sets in order, a piece at a time: their rows, and the sets.

        A piece takes at most ``budget_bytes`` (a table of distinct vectors not counted), or is a single larger set.
        """
        for rows in cut(np.arange(len(self)), self.lengths * self.vector_bytes, budget_bytes):
            yield rows, self.select(rows)

    def read(self) -> RaggedFeatures:
        """All sets, in memory."""
        return self._rising(np.arange(len(self)))

    def close(self) -> None:
        """Close the handle of this process; the next read opens another."""
        if self._handle is not None and self._process == os.getpid():
            self._handle.close()
        self._handle = None

    def verify(self) -> None:
        """Raise FeatureError unless the file is complete and agrees with itself and with the key it carries.

        Vectors are not read: `xmodal features verify` looks at them too.
        """
        try:
            with self._reading("its form"):
                fault = self._fault()
        except FeatureError:
            self.close()
            raise
        if fault:
            self.close()
            raise FeatureError(
                f"{self.path} is no complete file of features: {fault}. Delete it and run again: it will be made anew."
            )

    def _rising(self, rows: np.ndarray) -> RaggedFeatures:
        """The sets of strictly rising rows."""
        offsets = np.concatenate([[0], np.cumsum(self.offsets[rows + 1] - self.offsets[rows])]).astype(np.int64)
        with self._read("codes" if self.is_coded else "values") as stored:
            found = _array((int(offsets[-1]), *stored.shape[1:]), stored.dtype)
            for first, last in _runs(rows):
                source = slice(int(self.offsets[rows[first]]), int(self.offsets[rows[last] + 1]))
                if source.stop > source.start:
                    stored.read_direct(found, source, slice(int(offsets[first]), int(offsets[last + 1])))
        return RaggedFeatures(found, offsets) if self.table is None else RaggedFeatures(self.table, offsets, found)

    def _fault(self) -> str | None:
        file = self._file()
        absent = [name for name in ("values", "offsets", "ids") if name not in file]
        absent += [name for name in ("encoder", "data_fingerprint", "dtype", "key") if name not in file.attrs]
        if absent:
            return f"it lacks {', '.join(absent)}"
        if not file.attrs.get("complete", False):
            return "it isn't marked complete"
        found = self.attributes
        if self.origin.key != found["key"]:
            return f"its key is {found['key']}, but what it says made it has the key {self.origin.key}"
        if file["values"].dtype != np.dtype(found["dtype"]):
            return f"it says that its values are {found['dtype']}, but they are {file['values'].dtype}"
        return _shape_fault(file, self.offsets)

    @contextmanager
    def _read(self, name: str) -> Iterator[h5py.Dataset]:
        """A dataset to read from."""
        with self._reading(repr(name)) as file:
            yield file[name]

    @contextmanager
    def _reading(self, what: str) -> Iterator[h5py.File]:
        """The open file; what comes of reading a damaged one becomes a FeatureError."""
        try:
            yield self._file()
        except READ_ERRORS as error:
            raise FeatureError(
                f"{what} in {self.path} can't be read ({error}). The file is damaged: `xmodal features verify` tells "
                "where. Delete it and run again: it will be made anew."
            ) from error

    def _file(self) -> h5py.File:
        if self._handle is None or self._process != os.getpid():
            if not self.path.is_file():
                raise FeatureError(
                    f"There is no feature file {self.path}. Make it with `xmodal extract` or `train.py`."
                )
            try:
                self._handle = h5py.File(self.path, "r", rdcc_nbytes=_CACHE_BYTES)
            except READ_ERRORS as error:
                raise FeatureError(
                    f"{self.path} can't be opened as HDF5 ({error}). Delete it and run again."
                ) from error
            self._process = os.getpid()
        return self._handle


def cut(rows: np.ndarray, sizes: np.ndarray, limit: int) -> list[np.ndarray]:
    """``rows`` in pieces whose sizes (one per row) add up to at most ``limit``, or are of one larger row.

    Greedy: a piece takes all that fits.
    """
    ends = np.cumsum(sizes)
    pieces, start = [], 0
    while start < len(rows):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + limit, side="right")))
        pieces.append(rows[start:stop])
        start = stop
    return pieces


def _array(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array; a large one in pages that go back to the system at once when it is dropped.

    What the C library's allocator gets back it keeps, up to twice 32 MiB: too much where memory is budgeted.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < _PAGES_FROM or not hasattr(mmap, "MAP_PRIVATE"):
        return np.empty(shape, dtype)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, dtype).reshape(shape)


def _runs(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Places of the first and the last of neighbours that lie side by side among rising rows."""
    if len(rows):
        breaks = np.flatnonzero(np.diff(rows) != 1)
        firsts, lasts = np.concatenate([[0], breaks + 1]), np.concatenate([breaks, [len(rows) - 1]])
        yield from zip(firsts.tolist(), lasts.tolist(), strict=True)


def _shape_fault(file: h5py.File, offsets: np.ndarray) -> str | None:
    values, ids = file["values"], file["ids"]
    vectors = file.get("codes", values)
    if values.ndim != 2 or offsets.ndim != 1 or values.dtype.name not in DTYPES:
        return f"expected values (T, D) and offsets (N + 1), found {values.dtype} {values.shape} and {offsets.shape}"
    if "codes" in file and (vectors.ndim != 1 or vectors.dtype.kind != "u"):
        return f"expected codes (T,) of an unsigned type, found {vectors.dtype} {vectors.shape}"
    if not rises_to(offsets, len(vectors)):
        return f"its offsets don't rise from 0 to the {len(vectors)} vectors it holds"
    if len(ids) != len(offsets) - 1:
        return f"it has {len(ids)} ids for {len(offsets) - 1} sets"
    return None


def rises_to(offsets: np.ndarray, count: int) -> bool:
    """Whether these are offsets of sets of ``count`` vectors in all: from 0, never falling, to ``count``."""
    rises = len(offsets) > 0 and offsets[0] == 0 and offsets[-1] == count and (np.diff(offsets) >= 0).all()
    return bool(rises)


def finish_file(file: h5py.File, origin: FeatureOrigin, ids: Sequence[int | str], offsets: np.ndarray) -> None:
    """Add all that a file needs beside its ``values``; the mark of completeness comes last."""
    file.create_dataset("offsets", data=offsets.astype(np.int64), **pieces(len(offsets)))
    if _all_integers(ids):
        file.create_dataset("ids", data=stored_ids(ids), **pieces(len(ids)))
    else:
        create_texts(file, "ids", [str(one) for one in ids])
    write_attributes(file, origin.attributes())
    file.attrs["complete"] = True


def is_complete(path: Path, origin: FeatureOrigin, ids: Sequence[int | str], computed_in: str = "") -> bool:
    """Whether a good file of this origin and these items is there; a bad one is reported and will be replaced.

    Where ``computed_in`` is given, a file that was computed in another format is no good one.
    """
    if not path.exists():
        return False
    file = FeatureFile(path)
    try:
        file.verify()
        same = file.attributes["key"] == origin.key and file.ids == stored_ids(ids)
        if same and computed_in not in ("", file.computed_in):
            log.warning("%s was computed in %s, not in %s; making it again.", path, file.computed_in, computed_in)
            return False
    except FeatureError as error:
        log.warning("%s Making it again now.", error)
        return False
    finally:
        file.close()
    if not same:
        log.warning("%s holds the features of other items; making it again.", path)
    return same


def stored_ids(ids: Sequence[int | str]) -> list[int] | list[str]:
    """Ids as a file gives them back: integers where all are integers, else strings."""
    return [int(i) for i in ids] if _all_integers(ids) else [str(i) for i in ids]


def _all_integers(ids: Sequence[int | str]) -> bool:
    return all(isinstance(i, int | np.integer) for i in ids)
