"""NumPy files of others, read without running any of the code that a pickle inside may carry.

``numpy.load(allow_pickle=True)`` calls whatever the file names. Here a pickle can name a handful of things, all
replaced by functions of this module that build plain arrays of numbers; not even NumPy's own ``__setstate__``, which
trusts the sizes and flags it is given, sees the file's content.
"""

import pickle
from collections.abc import Callable
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from xmodal.errors import FeatureError

Nested = np.ndarray | list[Any]  # an array of numbers, or lists (of lists …) of such arrays and of numbers


def read_npy(stream: BufferedIOBase, source: Path) -> Nested:
    """One array in ``.npy`` format: numbers as an array, objects as nested lists.

    Raises:
        FeatureError: the file is damaged, or holds anything but numbers, lists and arrays of numbers (named).
    """
    try:
        shape, _, dtype = _header(stream)
        if dtype.hasobject:
            return _read_objects(stream, source, len(shape))
        stream.seek(0)
        array = npy.read_array(stream, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise FeatureError(f"{source} can't be read as a NumPy array ({error}). Fetch it again.") from error
    if array.dtype.kind not in "fiub":
        raise FeatureError(f"{source} holds values of type {array.dtype}; expected numbers.")
    return array


def _header(stream: BufferedIOBase) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(stream)
    if version == (1, 0):
        return npy.read_array_header_1_0(stream)
    if version == (2, 0):
        return npy.read_array_header_2_0(stream)
    raise ValueError(f"format version {version}: structured arrays are no features")


def _read_objects(stream: BufferedIOBase, source: Path, dimensions: int) -> list[Any]:
    try:
        content = _NumbersOnly(stream, source).load()
    except (FeatureError, MemoryError):
        raise
    except Exception as error:  # a damaged or hostile pickle can fail in any way
        raise FeatureError(f"{source} can't be read as an object array ({error}). Fetch it again.") from error
    if dimensions == 0:
        content = content.item() if isinstance(content, _Array) else content
    plain = _plain(content, source)
    if not isinstance(plain, list):
        raise FeatureError(f"{source} holds a single {type(plain).__name__}; expected one entry per image or caption.")
    return plain


class _Dtype:
    """Stands in for ``numpy.dtype`` in a pickle: a number of some size and byte order, or an object."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        if not self.is_object and order in ("<", ">"):
            self.code = order + self.code

    @property
    def is_object(self) -> bool:
        return self.code in ("O", "O4", "O8", "|O")

    def numpy(self) -> np.dtype:
        dtype = np.dtype(self.code)
        if dtype.kind not in "fiub":
            raise FeatureError(f"Arrays of type {self.code!r} are no features; expected numbers.")
        return dtype


class _Array:
    """Stands in for ``numpy.ndarray`` in a pickle."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = (0,)
        self.content: np.ndarray | list[Any] = []

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, dtype, is_fortran, raw = state
        if not dtype.is_object:
            flat = np.frombuffer(raw, dtype.numpy())
            self.content = flat.reshape(self.shape[::-1]).T if is_fortran else flat.reshape(self.shape)
        elif isinstance(raw, list) and len(raw) == int(np.prod(self.shape, dtype=np.int64)):
            self.content = raw
        else:
            raise ValueError(f"an object array of shape {self.shape} without a list of its entries")

    def item(self) -> Any:
        return self.content[0] if isinstance(self.content, list) else self.content


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _dtype(code: str, *_: Any) -> _Dtype:
    return _Dtype(str(code))


def _scalar(dtype: _Dtype, raw: bytes) -> float | int:
    return np.frombuffer(raw, dtype.numpy())[0].item()


def _from_buffer(buffer: bytes | bytearray, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", bytes(buffer)))
    return array


def _no_bytes() -> bytes:
    return b""


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"text in {encoding}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable[..., Any] | None] = {
    ("numpy", "ndarray"): None,  # only ever an argument of _reconstruct, which ignores it
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _latin1,  # how older pickle protocols write bytes …
    ("__builtin__", "bytes"): _no_bytes,  # … and the bytes of an empty array
}
for _core in ("numpy.core", "numpy._core"):  # NumPy 2 renamed its modules
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _NumbersOnly(pickle.Unpickler):
    def __init__(self, stream: BufferedIOBase, source: Path) -> None:
        super().__init__(stream, encoding="latin1")
        self.source = source

    def find_class(self, module: str, name: str) -> Callable[..., Any] | None:
        if (module, name) not in _ALLOWED:
            raise FeatureError(
                f"{self.source} asks for `{module}.{name}`, which is refused: a file of features may hold NumPy "
                "arrays, lists and numbers alone, and loading anything else could run code. Ask its author for plain "
                "arrays."
            )
        return _ALLOWED[module, name]


def _plain(node: Any, source: Path) -> Any:
    """Arrays of numbers as they are; lists, tuples and object arrays as nested lists."""
    if isinstance(node, _Array):
        if isinstance(node.content, np.ndarray):
            return node.content
        return _nested([_plain(entry, source) for entry in node.content], node.shape)
    if isinstance(node, list | tuple):
        return [_plain(entry, source) for entry in node]
    if isinstance(node, int | float | np.number):
        return node
    raise FeatureError(
        f"{source} holds an entry of type {type(node).__name__}; expected arrays, lists and numbers alone."
    )


def _nested(entries: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """``entries`` of an array of ``shape``, in C order, as lists of lists."""
    if len(shape) <= 1:
        return entries
    size = len(entries) // shape[0] if shape[0] else 0
    return [_nested(entries[row * size : (row + 1) * size], shape[1:]) for row in range(shape[0])]
