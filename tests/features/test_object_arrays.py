import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.errors import FeatureError
from xmodal.features.object_arrays import read_npy

SOURCE = Path("feats.npy")


def _npy(content: Any, shape: tuple[int, ...], protocol: int = 4, module: str = "numpy._core") -> io.BytesIO:
    """An object ``.npy`` file as NumPy writes it, with the module names of an old or new NumPy."""
    stream = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    pickled = pickle.dumps(content, protocol=protocol)
    if module != "numpy._core":
        assert b"cnumpy._core." in pickled
        pickled = pickled.replace(b"cnumpy._core.", f"c{module}.".encode())
    stream.write(pickled)
    stream.seek(0)
    return stream


def _objects(entries: list[Any]) -> np.ndarray:
    array = np.empty(len(entries), dtype=object)
    array[:] = entries
    return array


def _sets(dtype: str = "f4") -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [(100 * random.standard_normal((n, 3))).astype(dtype) for n in (2, 0, 4)]


@pytest.mark.parametrize(
    ("protocol", "module"),
    [
        (2, "numpy.core"),
        (3, "numpy.core"),
        (2, "numpy._core"),
        (3, "numpy._core"),
        (4, "numpy._core"),
        (5, "numpy._core"),
    ],
)
@pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", "f8", "i4", "u1", "?"])
def test_arrays_written_by_any_numpy(protocol: int, module: str, dtype: str) -> None:
    sets = _sets(dtype)
    found = read_npy(_npy(_objects(sets), (3,), protocol, module), SOURCE)
    assert isinstance(found, list)
    for array, expected in zip(found, sets, strict=True):
        assert array.dtype == expected.dtype
        assert np.array_equal(array, expected)


def test_what_numpy_itself_saves(tmp_path: Path) -> None:
    array = np.empty((2, 2), dtype=object)
    array[0, 0], array[0, 1], array[1, 0], array[1, 1] = *_sets(), [[1, 2.5, np.float32(3)]]
    np.save(tmp_path / "f.npy", array)
    with (tmp_path / "f.npy").open("rb") as stream:
        found = read_npy(stream, SOURCE)
    assert [len(row) for row in found] == [2, 2]
    assert np.array_equal(found[0][1], array[0, 1])
    assert found[1][1] == [[1, 2.5, 3.0]]


def test_fortran_order_is_kept() -> None:
    one = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    assert np.array_equal(read_npy(_npy(_objects([one, one]), (2,)), SOURCE)[1], one)
    table = np.empty((2, 3), dtype=object, order="F")
    table[:] = [[1, 2, 3], [4, 5, 6]]
    assert read_npy(_npy(table, (2, 3)), SOURCE) == [[1, 2, 3], [4, 5, 6]]


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.floats(allow_nan=False) | st.integers(-(2**70), 2**70) | st.booleans(),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=12,
    ).filter(lambda value: isinstance(value, list))
)
def test_any_nested_lists_of_numbers_come_back(content: list[Any]) -> None:
    assert read_npy(_npy(content, (len(content),)), SOURCE) == content


def test_plain_arrays_need_no_pickle() -> None:
    stream = io.BytesIO()
    np.save(stream, np.arange(6).reshape(2, 3))
    stream.seek(0)
    assert np.array_equal(read_npy(stream, SOURCE), np.arange(6).reshape(2, 3))


class Touch:
    """Makes a file when it is unpickled by anything that allows it."""

    def __init__(self, path: Path, function: Any) -> None:
        self.path, self.function = path, function

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, (str(self.path), os.O_CREAT) if self.function is os.open else (str(self.path),)


@pytest.mark.parametrize(
    ("function", "name"), [(os.open, "posix.open"), (os.mkdir, "posix.mkdir"), (eval, "builtins.eval")]
)
@pytest.mark.parametrize("depth", [0, 2])
def test_code_in_a_file_is_refused_by_name_and_not_run(tmp_path: Path, function: Any, name: str, depth: int) -> None:
    victim = tmp_path / "made by the file"
    content: Any = Touch(victim, function)
    for _ in range(depth):
        content = [np.zeros((1, 3)), content]
    stream = _npy(_objects([content, 1.0]), (2,))
    with pytest.raises(FeatureError, match=rf"feats.npy asks for `{name}`, which is refused"):
        read_npy(stream, SOURCE)
    assert not victim.exists()
    if function is not eval:  # the same file does its work elsewhere: the test can fail
        stream.seek(0)
        np.load(stream, allow_pickle=True)
        assert victim.exists()


@pytest.mark.parametrize(
    "callable_name", ["numpy.load", "numpy._core.multiarray.fromfile", "numpy.ndarray.tofile", "builtins.getattr"]
)
def test_no_other_function_of_numpy_or_python(callable_name: str) -> None:
    module, _, name = callable_name.rpartition(".")
    module, name = ("numpy", "ndarray.tofile") if name == "tofile" else (module, name)
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    text = [b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name)]
    stream.write(b"\x80\x04" + text[0] + text[1] + b"\x93" + b")R.")  # STACK_GLOBAL, empty tuple, REDUCE, STOP
    stream.seek(0)
    with pytest.raises(FeatureError, match="which is refused"):
        read_npy(stream, SOURCE)


@pytest.mark.parametrize("entry", ["text", {"a": 1}, None, 1 + 2j])
def test_entries_that_are_no_numbers(entry: Any) -> None:
    with pytest.raises(FeatureError, match=r"holds an entry of type (str|dict|NoneType)|asks for `builtins.complex`"):
        read_npy(_npy(_objects([entry, 1.0]), (2,)), SOURCE)


@pytest.mark.parametrize("dtype", ["U3", "c8", "M8[s]"])
def test_arrays_that_are_no_numbers(dtype: str) -> None:
    with pytest.raises(FeatureError, match=r"are no features|can't be read"):
        read_npy(_npy(_objects([np.zeros(2, dtype=dtype), 1.0]), (2,)), SOURCE)
    plain = io.BytesIO()
    np.save(plain, np.zeros(2, dtype=dtype))
    plain.seek(0)
    with pytest.raises(FeatureError, match="expected numbers"):
        read_npy(plain, SOURCE)


class Forged:
    """An array whose state says that it is larger than its bytes, or that its bytes are pointers."""

    def __init__(self, dtype: str, shape: tuple[int, ...], raw: bytes) -> None:
        self.state = (1, shape, np.dtype(dtype), False, raw)

    def __reduce__(self) -> tuple[Any, ...]:
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), self.state


@pytest.mark.parametrize("forged", [Forged("f4", (1000,), b"1234"), Forged("O", (1,), b"\x41" * 8)])
def test_forged_sizes_and_pointers(forged: Forged) -> None:
    with pytest.raises(FeatureError, match="can't be read as an object array"):
        read_npy(_npy([forged], (1,)), SOURCE)


def test_a_cut_or_foreign_file() -> None:
    whole = _npy(_objects(_sets()), (3,)).getvalue()
    for size in (0, 4, 60, len(whole) - 5):
        with pytest.raises(FeatureError, match="can't be read"):
            read_npy(io.BytesIO(whole[:size]), SOURCE)
    with pytest.raises(FeatureError, match="can't be read as a NumPy array"):
        read_npy(io.BytesIO(b"PK\x03\x04 something else entirely, and long enough"), SOURCE)
