"""Ids and labels of items as arrays, integers or strings; known without importing torch."""

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np

from xmodal.errors import DataError


def as_keys(ids: object, name: str, count: int) -> np.ndarray:
    """Ids as an array of int64 or of strings, one per embedding; raises DataError."""
    if isinstance(ids, list | tuple):
        _require_one_type(ids, name)
    found = np.asarray(ids)
    if found.dtype.kind == "O" and all(isinstance(one, str) for one in found.flat):
        found = found.astype(str)
    if found.dtype.kind == "u" and (found <= np.iinfo(np.int64).max).all():
        found = found.astype(np.int64)  # joined with int64, uint64 would turn into float64
    if found.dtype.kind not in "iU":
        raise DataError(f"{name} must be integers (within int64) or strings, found {found.dtype}")
    if found.shape != (count,):
        raise DataError(f"{name} must have one entry per embedding, shape ({count},), found {found.shape}")
    return found


def require_one_kind(of_images: np.ndarray, of_texts: np.ndarray, *names: str) -> None:
    """Raises DataError where one side has integers and the other strings."""
    if of_images.dtype.kind != of_texts.dtype.kind:
        kinds = " and ".join("integers" if keys.dtype.kind == "i" else "strings" for keys in (of_images, of_texts))
        raise DataError(f"{' and '.join(names)} must be of one kind, found {kinds}")


def is_whole(number: object) -> TypeGuard[int]:
    """Whether it is an integer of Python or NumPy; True and False are none."""
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def _require_one_type(ids: Sequence[object], name: str) -> None:
    """NumPy would make strings of all where some are strings, and integers of booleans."""
    texts = sum(isinstance(one, str) for one in ids)
    numbers = sum(is_whole(one) for one in ids)
    if len(ids) not in (texts, numbers):
        kinds = ", ".join(sorted({type(one).__name__ for one in ids}))
        raise DataError(f"{name} must be integers or strings, all of one kind; found {kinds}")
