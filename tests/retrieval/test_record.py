"""The file of an evaluation gives back what was put into it, and nothing else is taken for one."""

import errno
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.errors import DataError
from xmodal.retrieval.evaluate import evaluate_retrieval
from xmodal.retrieval.metrics import Queries, named_figures
from xmodal.retrieval.record import EvaluationRecord, read_record, write_record
from xmodal.retrieval.uncertainty import bootstrap_intervals

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
# they name members of a zip archive, which end at a NUL
printable = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)
ids = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=6).map(np.array),
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5), min_size=1).map(
        np.array
    ),
)


@st.composite
def sides(draw: st.DrawFn) -> Queries:
    groups = draw(ids)
    count = len(groups)
    whole, real = st.integers(-5, 10**6), st.floats(0, 1e6)
    columns = draw(st.dictionaries(printable, st.lists(real, min_size=count, max_size=count), max_size=3))
    ranks, folds = (np.array(draw(st.lists(whole, min_size=count, max_size=count))) for _ in range(2))
    return Queries(ranks, {name: np.array(values) for name, values in columns.items()}, groups, folds)


def same(one: EvaluationRecord, other: EvaluationRecord) -> None:
    assert (one.name, one.data_name, one.similarity) == (other.name, other.data_name, other.similarity)
    assert one.content == other.content
    assert list(one.queries) == list(other.queries)
    for way, side in one.queries.items():
        found = other.queries[way]
        assert list(found.values) == list(side.values)
        arrays = zip(
            [side.ranks, side.groups, side.folds, *side.values.values()],
            [found.ranks, found.groups, found.folds, *found.values.values()],
            strict=True,
        )
        assert all(left.dtype == right.dtype and left.tolist() == right.tolist() for left, right in arrays)


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(names, names, names), st.dictionaries(st.sampled_from(["i2t", "t2i", "i2i", "t2t"]), sides(), min_size=1)
)
def test_what_is_read_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, words: tuple[str, str, str], queries: dict[str, Queries]
) -> None:
    path = tmp_path_factory.getbasetemp() / "evaluation_test.npz"
    record = EvaluationRecord(*words, queries, words[0] or None)
    write_record(path, record)
    same(read_record(path), record)


def evaluation(images: int = 40, image_ids: np.ndarray | None = None) -> EvaluationRecord:
    random = np.random.default_rng(0)
    keys = np.arange(images) + 10 if image_ids is None else image_ids
    image, text = random.normal(size=(images, 16)), random.normal(size=(5 * images, 16))
    queries = evaluate_retrieval(image, text, keys, np.repeat(keys, 5)).queries
    return EvaluationRecord("test", "birds", "cosine", queries)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "evaluation_test.npz"
    write_record(path, evaluation())
    return path


def test_figures_and_intervals_come_out_the_same_to_the_last_digit(written: Path) -> None:
    before, after = evaluation().queries, read_record(written).queries
    assert named_figures(after) == named_figures(before)
    assert bootstrap_intervals(after, 40) == bootstrap_intervals(before, 40)
    assert os.listdir(written.parent) == ["evaluation_test.npz"]


def test_a_thousand_images_take_little_space(tmp_path: Path) -> None:
    write_record(tmp_path / "e.npz", evaluation(1000))
    assert (tmp_path / "e.npz").stat().st_size < 300_000


def test_strings_as_python_objects_are_written_as_strings(tmp_path: Path) -> None:
    record = evaluation(3, np.array(["a.jpg", "bb.jpg", "ü.png"]))
    objects = {
        way: Queries(side.ranks, side.values, side.groups.astype(object), side.folds)
        for way, side in record.queries.items()
    }
    write_record(tmp_path / "e.npz", EvaluationRecord("test", "birds", "cosine", objects))
    same(read_record(tmp_path / "e.npz"), record)


def test_groups_that_are_no_ids_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    side = Queries(np.array([1]), {"R1": np.array([100.0])}, np.array([1.5]), np.array([0]))
    with pytest.raises(DataError, match=r"must be integers .* or strings, found float64"):
        write_record(tmp_path / "e.npz", EvaluationRecord("test", "birds", "cosine", {"i2t": side}))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_damaged(written: Path, share: float) -> None:
    whole = written.read_bytes()
    written.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(
        DataError, match=r"evaluation_test.npz can't be read as an evaluation .* damaged.*xmodal evaluate"
    ):
        read_record(written)


def test_a_changed_byte_is_an_error_or_changes_nothing(written: Path) -> None:
    whole, expected = written.read_bytes(), read_record(written)
    refused = 0
    for place in range(0, len(whole), 97):
        written.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            same(read_record(written), expected)
        except DataError:
            refused += 1
    assert refused > len(range(0, len(whole), 97)) / 2


def test_an_absent_file(tmp_path: Path) -> None:
    for path in (tmp_path / "evaluation_test.npz", tmp_path):
        with pytest.raises(DataError, match=r"there is no such file\. `xmodal evaluate RUN`"):
            read_record(path)


def test_an_npz_of_something_else(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", image=np.eye(2), text=np.eye(2))
    with pytest.raises(DataError, match=r"no evaluation of xmodal: it holds image, text\. .*evaluation_\*\.npz"):
        read_record(tmp_path / "e.npz")
    np.savez(tmp_path / "e.npz", header=np.array(json.dumps({"format": "another"})))
    with pytest.raises(DataError, match="no evaluation of xmodal: it holds header"):
        read_record(tmp_path / "e.npz")
    np.savez(tmp_path / "e.npz")
    with pytest.raises(DataError, match="it holds nothing"):
        read_record(tmp_path / "e.npz")


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "e.npz"
    with path.open("wb") as file:
        np.save(file, np.eye(2))
    with pytest.raises(DataError, match="holds a single array, not an evaluation"):
        read_record(path)
    path.write_text('{"test/rsum": 1.0}')
    with pytest.raises(DataError, match="can't be read as an evaluation"):
        read_record(path)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def test_pickled_objects_are_not_executed(tmp_path: Path, written: Path) -> None:
    sprung = tmp_path / "sprung"
    path = tmp_path / "trap.npz"
    with np.load(written) as arrays:
        np.savez(path, **{**arrays, "i2t.groups": np.array([Trap(sprung)] * 40)})
    with pytest.raises(DataError, match=r"can't be read as an evaluation .*allow_pickle=False"):
        read_record(path)
    path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(DataError, match="can't be read as an evaluation"):
        read_record(path)
    assert not sprung.exists()


def with_arrays(written: Path, **changed: np.ndarray) -> Path:
    with np.load(written) as arrays:
        found = {**arrays, **changed}
    np.savez(written, **{name: array for name, array in found.items() if array is not None})
    return written


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"i2t.ranks": None}, "i2t.ranks"),
        ({"t2i.values.R1": np.zeros(3)}, "the arrays of t2i differ in length"),
        ({"i2t.ranks": np.zeros(40)}, r"i2t.ranks is float64 \(40,\)"),
        ({"t2i.folds": np.zeros((2, 100), dtype=int)}, r"t2i.folds is int64 \(2, 100\)"),
    ],
)
def test_arrays_that_do_not_belong_together(written: Path, changed: dict, message: str) -> None:
    with pytest.raises(DataError, match=f"{message}.*damaged"):
        read_record(with_arrays(written, **changed))


def test_a_later_format_is_named(written: Path) -> None:
    with np.load(written) as arrays:
        header = json.loads(str(arrays["header"]))
    with_arrays(written, header=np.array(json.dumps(header | {"version": 2})))
    with pytest.raises(DataError, match="is an evaluation in format 2, and this version of xmodal reads format 1"):
        read_record(written)


def test_a_header_without_version_or_directions(written: Path) -> None:
    with np.load(written) as arrays:
        header = json.loads(str(arrays["header"]))
    without = {name: value for name, value in header.items() if name != "version"}
    with_arrays(written, header=np.array(json.dumps(without)))
    with pytest.raises(DataError, match="is no evaluation of xmodal: it holds header, i2t"):
        read_record(written)
    for empty in ({}, [], None):
        with_arrays(written, header=np.array(json.dumps(header | {"directions": empty})))
        with pytest.raises(DataError, match=r"it has no directions.*damaged"):
            read_record(written)


def test_a_write_that_fails_leaves_the_file_that_was_there(written: Path) -> None:
    """A limit on the size of files stands for a full disk: both fail within write()."""
    resource, signal = pytest.importorskip("resource"), pytest.importorskip("signal")
    before = written.read_bytes()
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(OSError, match=r".") as failed:
            write_record(written, evaluation(300))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert failed.value.errno == errno.EFBIG
    assert written.read_bytes() == before
    assert os.listdir(written.parent) == [written.name]
