"""Arrays in the files of others: ``.mat`` (MATLAB 5 and 7.3), ``.npy``, ``.npz`` and ``.h5``, by name."""

import zipfile
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
from scipy import io, sparse
from scipy.io.matlab import MatReadError

from xmodal.errors import FeatureError
from xmodal.features.object_arrays import Nested, read_npy

SUFFIXES = (".mat", ".npy", ".npz", ".h5", ".hdf5")
_DAMAGED = (OSError, ValueError, TypeError, KeyError, NotImplementedError, MatReadError, zipfile.BadZipFile)


def names_in(path: Path) -> list[str] | None:
    """Names of the arrays in a file, from its headers alone; ``None`` for ``.npy``, which holds one without a name.

    Raises:
        FeatureError: the file is damaged or of another kind than its name says.
    """
    try:
        if path.suffix == ".npy":
            return None
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                return [name.removesuffix(".npy") for name in archive.namelist()]
        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                return [name for name in file if isinstance(file[name], h5py.Dataset)]
        if path.suffix == ".mat":
            return [name for name, _, _ in io.whosmat(path)]
    except _DAMAGED as error:
        raise FeatureError(f"{path} can't be read ({error}). Fetch it again.") from error
    raise FeatureError(f"{path} can't be read: it is no {path.suffix} file. Fetch it again.")


def is_store_file(path: Path) -> bool:
    """Whether this is a file of xmodal's own feature store, which carries the ids of its items."""
    if path.suffix not in (".h5", ".hdf5") or not h5py.is_hdf5(path):
        return False
    with h5py.File(path, "r") as file:
        return {"values", "offsets", "ids"} <= set(file)


def read_array(path: Path, name: str) -> Nested:
    """The array called ``name`` (which a ``.npy`` file needs not): numbers as an array, objects as nested lists.

    A MATLAB matrix comes in MATLAB's orientation, whichever version wrote it.

    Raises:
        FeatureError: the file is damaged, lacks ``name``, or holds anything but numbers.
    """
    if path.suffix == ".npy":
        with path.open("rb") as stream:
            return read_npy(stream, path)
    names = names_in(path) or []
    if name not in names:
        raise FeatureError(f"{path} holds no {name!r}; it holds {', '.join(names) or 'nothing'}.")
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            member = f"{name}.npy" if f"{name}.npy" in archive.namelist() else name
            with archive.open(member) as stream:
                return read_npy(cast(BufferedIOBase, stream), path)
    return _read_hdf5(path, name) if h5py.is_hdf5(path) else _read_matlab5(path, name)


def _read_hdf5(path: Path, name: str) -> np.ndarray:
    with h5py.File(path, "r") as file:
        dataset = file[name]
        if dataset.dtype.kind not in "fiub":
            raise FeatureError(f"{name!r} in {path} has the type {dataset.dtype}; expected numbers.")
        array = dataset[()]
    return array.T if path.suffix == ".mat" else array  # MATLAB 7.3 stores column by column what HDF5 reads row by row


def _read_matlab5(path: Path, name: str) -> Nested:
    try:
        found = io.loadmat(path, variable_names=[name])[name]
    except _DAMAGED as error:
        raise FeatureError(f"{name!r} in {path} can't be read ({error}). Fetch it again.") from error
    array = cast(Any, found).toarray() if sparse.issparse(found) else found
    if array.dtype == object:  # a cell array
        return array.ravel().tolist() if 1 in array.shape else array.tolist()  # MATLAB has no lists, but 1 × N
    if array.dtype.kind not in "fiub":
        raise FeatureError(f"{name!r} in {path} has the type {array.dtype}; expected numbers.")
    return array
