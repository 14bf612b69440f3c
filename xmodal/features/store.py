"""Features on disk: one HDF5 file per (data set, encoder), named by what made it, complete or not there."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from xmodal import __version__
from xmodal.errors import ConfigError, FeatureError
from xmodal.types import RaggedFeatures

ENCODING = 1  # to be raised when an encoder comes to give other vectors for the same parameters and weights
DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class FeatureOrigin:
    """What made a file of features; any difference gives another key, so that no file is ever a stale hit.

    Args:
        encoder: what ``Encoder.fingerprint()`` returned.
        data_fingerprint: digest of the ids and the content of the encoded items.
        dtype: ``float16`` or ``float32``, how the values are stored.
        modality: ``image`` or ``text``; no part of the key, which the encoder's class makes differ.
    """

    encoder: dict[str, Any]
    data_fingerprint: str
    dtype: str = "float16"
    modality: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"features.dtype must be one of {', '.join(DTYPES)}, found {self.dtype!r}.")

    @property
    def encoder_json(self) -> str:
        """The fingerprint of the encoder in one canonical line."""
        return json.dumps(self.encoder, sort_keys=True, default=str)

    @property
    def key(self) -> str:
        """First 16 hex digits of the SHA-256 over encoder, data and dtype."""
        text = json.dumps([ENCODING, self.encoder_json, self.data_fingerprint, self.dtype])
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
    """N ragged sets in HDF5: ``values`` (T, D), ``offsets`` (N + 1), ``ids`` (N).

    The file is opened when first read and once per process: an open HDF5 handle does not survive a fork.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._handle: h5py.File | None = None
        self._process = -1

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        """Set ``row`` (n, D), read from disk."""
        return self._file()["values"][self.offsets[row] : self.offsets[row + 1]]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_handle": None, "_process": -1}

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where each set starts and the last ends: (N + 1,) int64."""
        return self._file()["offsets"][:]

    @cached_property
    def ids(self) -> list[int] | list[str]:
        """The id of each set."""
        ids = self._file()["ids"]
        return ids.asstr()[:].tolist() if h5py.check_string_dtype(ids.dtype) else ids[:].tolist()

    @property
    def feature_dim(self) -> int:
        return self._file()["values"].shape[1]

    @property
    def attributes(self) -> dict[str, Any]:
        """What made the file: encoder (JSON), weights and data digests, dtype, key, xmodal_version, complete."""
        return dict(self._file().attrs)

    @property
    def origin(self) -> FeatureOrigin:
        """What made the file, as recorded in it."""
        found = self.attributes
        made_by, modality = json.loads(found["encoder"]), found.get("modality", "")
        return FeatureOrigin(made_by, found["data_fingerprint"], found["dtype"], modality)

    def select(self, rows: np.ndarray) -> RaggedFeatures:
        """The sets of ``rows``, in that order, read from disk one by one."""
        if len(rows) == 0:
            return RaggedFeatures(self._file()["values"][:0], np.zeros(1, dtype=np.int64))
        return RaggedFeatures.from_sets([self[int(row)] for row in rows], self.attributes["dtype"])

    def read(self) -> RaggedFeatures:
        """All sets, in memory."""
        return RaggedFeatures(self._file()["values"][:], self.offsets)

    def close(self) -> None:
        """Close the handle of this process; the next read opens another."""
        if self._handle is not None and self._process == os.getpid():
            self._handle.close()
        self._handle = None

    def verify(self) -> None:
        """Raise FeatureError unless the file is complete and agrees with itself and with the key it carries."""
        fault = self._fault()
        if fault:
            self.close()
            raise FeatureError(
                f"{self.path} is no complete file of features: {fault}. Delete it and run again: it will be made anew."
            )

    def _fault(self) -> str | None:
        file = self._file()
        absent = [name for name in ("values", "offsets", "ids") if name not in file]
        absent += [name for name in ("encoder", "data_fingerprint", "dtype", "key") if name not in file.attrs]
        if absent:
            return f"it lacks {', '.join(absent)}"
        if not file.attrs.get("complete", False):
            return "it isn't marked complete"
        if self.origin.key != file.attrs["key"]:
            return f"its key is {file.attrs['key']}, but what it says made it has the key {self.origin.key}"
        return _shape_fault(file["values"], self.offsets, file["ids"])

    def _file(self) -> h5py.File:
        if self._handle is None or self._process != os.getpid():
            if not self.path.is_file():
                raise FeatureError(
                    f"There is no feature file {self.path}. Make it with `xmodal extract` or `train.py`."
                )
            try:
                self._handle = h5py.File(self.path, "r")
            except OSError as error:
                raise FeatureError(
                    f"{self.path} can't be opened as HDF5 ({error}). Delete it and run again."
                ) from error
            self._process = os.getpid()
        return self._handle


def _shape_fault(values: h5py.Dataset, offsets: np.ndarray, ids: h5py.Dataset) -> str | None:
    if values.ndim != 2 or offsets.ndim != 1 or values.dtype.name not in DTYPES:
        return f"expected values (T, D) and offsets (N + 1), found {values.dtype} {values.shape} and {offsets.shape}"
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(values) or (np.diff(offsets) < 0).any():
        return f"its offsets don't rise from 0 to the {len(values)} vectors it holds"
    if len(ids) != len(offsets) - 1:
        return f"it has {len(ids)} ids for {len(offsets) - 1} sets"
    return None


def finish_file(file: h5py.File, origin: FeatureOrigin, ids: Sequence[int | str], offsets: np.ndarray) -> None:
    """Add all that a file needs beside its ``values``; the mark of completeness comes last."""
    file.create_dataset("offsets", data=offsets.astype(np.int64))
    file.create_dataset("ids", data=stored_ids(ids), dtype=None if _all_integers(ids) else h5py.string_dtype())
    file.attrs.update(origin.attributes())
    file.attrs["complete"] = True


def stored_ids(ids: Sequence[int | str]) -> list[int] | list[str]:
    """Ids as a file gives them back: integers where all are integers, else strings."""
    return [int(i) for i in ids] if _all_integers(ids) else [str(i) for i in ids]


def _all_integers(ids: Sequence[int | str]) -> bool:
    return all(isinstance(i, int | np.integer) for i in ids)
