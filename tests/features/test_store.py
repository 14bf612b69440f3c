import multiprocessing
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xmodal.errors import ConfigError, FeatureError
from xmodal.features.chunks import ChunkedFile
from xmodal.features.store import FeatureFile, FeatureOrigin, FeatureStore
from xmodal.types import RaggedFeatures


def _ragged(lengths: list[int], width: int = 3) -> RaggedFeatures:
    random = np.random.default_rng(len(lengths))
    return RaggedFeatures.from_sets([random.standard_normal((n, width)) for n in lengths])


def _write(path: Path, features: RaggedFeatures, ids: list, origin: FeatureOrigin, batch_size: int = 2) -> Path:
    target = ChunkedFile(path, origin, ids, batch_size, chunk_size=2)
    for number, (start, end) in enumerate(target.spans):
        target.write(number, features.select(np.arange(start, end)))
    target.merge(features.feature_dim)
    return path


@pytest.fixture
def origin() -> FeatureOrigin:
    return FeatureOrigin({"encoder": "Toy", "weights": "abc"}, "data1", "float32")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(0, 4), min_size=1, max_size=9), data=st.data())
def test_any_ragged_sets_come_back_as_they_were(
    lengths: list[int], data: st.DataObject, tmp_path: Path, origin: FeatureOrigin
) -> None:
    features = _ragged(lengths)
    ids = list(range(10, 10 + len(lengths)))
    path = _write(tmp_path / "f.h5", features, ids, origin)
    file = FeatureStore(tmp_path).open(path)
    found = file.read()
    assert np.array_equal(found.values, features.values)
    assert np.array_equal(found.offsets, features.offsets)
    assert file.ids == ids
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=6))
    chosen = file.select(np.array(rows, dtype=np.int64))
    assert len(chosen) == len(rows)
    for i, row in enumerate(rows):
        assert np.array_equal(chosen[i], features[row])
    file.close()


def test_an_empty_data_set_keeps_its_width(tmp_path: Path, origin: FeatureOrigin) -> None:
    ChunkedFile(tmp_path / "f.h5", origin, [], 2, 2).merge(7)
    found = FeatureStore(tmp_path).read(tmp_path / "f.h5")
    assert (len(found), found.feature_dim) == (0, 7)


def test_string_ids_and_attributes(tmp_path: Path, origin: FeatureOrigin) -> None:
    path = _write(tmp_path / "f.h5", _ragged([1, 2]), ["é/1.jpg", "b"], origin)
    file = FeatureStore(tmp_path).open(path)
    assert file.ids == ["é/1.jpg", "b"]
    assert file.origin == origin
    found = file.attributes
    assert (found["weights_digest"], found["data_fingerprint"], bool(found["complete"])) == ("abc", "data1", True)
    assert found["key"] == origin.key
    assert found["xmodal_version"]


def test_any_change_gives_another_key(origin: FeatureOrigin) -> None:
    others = [
        FeatureOrigin({"encoder": "Toy", "weights": "abd"}, "data1", "float32"),
        FeatureOrigin({"encoder": "Toy", "weights": "abc"}, "data2", "float32"),
        FeatureOrigin({"encoder": "Toy", "weights": "abc"}, "data1", "float16"),
    ]
    assert len({origin.key, *(other.key for other in others)}) == 4
    same = FeatureOrigin({"weights": "abc", "encoder": "Toy"}, "data1", "float32")
    assert same.key == origin.key


def test_unknown_dtype() -> None:
    with pytest.raises(ConfigError, match=r"features.dtype must be one of float16, float32, found 'int8'"):
        FeatureOrigin({}, "d", "int8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.attrs.__setitem__("complete", False), "isn't marked complete"),
        (lambda file: file.attrs.__delitem__("complete"), "isn't marked complete"),
        (lambda file: file.__delitem__("offsets"), "lacks offsets"),
        (lambda file: file.attrs.__setitem__("data_fingerprint", "other"), "what it says made it has the key"),
        (lambda file: file["offsets"].__setitem__(1, 99), "offsets don't rise"),
        (lambda file: file["offsets"].__setitem__(-1, 2), "offsets don't rise from 0 to the 3 vectors"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, origin: FeatureOrigin, change, message: str) -> None:
    path = _write(tmp_path / "f.h5", _ragged([1, 2]), [0, 1], origin)
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(FeatureError, match=message):
        FeatureStore(tmp_path).read(path)
    assert not ChunkedFile(path, origin, [0, 1], 2, 2).is_complete()


def test_no_file_and_no_hdf5(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=r"There is no feature file .*nothing.h5"):
        FeatureStore(tmp_path).read(tmp_path / "nothing.h5")
    (tmp_path / "cut.h5").write_bytes(b"\x89HDF\r\n\x1a\n and then the disk was pulled")
    with pytest.raises(FeatureError, match=r"cut.h5 can't be opened as HDF5"):
        FeatureStore(tmp_path).read(tmp_path / "cut.h5")


def test_a_file_of_other_items_is_not_taken(tmp_path: Path, origin: FeatureOrigin) -> None:
    path = _write(tmp_path / "f.h5", _ragged([1, 2]), [0, 1], origin)
    assert ChunkedFile(path, origin, [0, 1], 2, 2).is_complete()
    assert not ChunkedFile(path, origin, [0, 2], 2, 2).is_complete()
    other = FeatureOrigin(origin.encoder, "data2", "float32")
    assert not ChunkedFile(path, other, [0, 1], 2, 2).is_complete()


def _first_set(file: FeatureFile) -> list[list[float]]:
    return file[0].tolist()


def test_an_open_file_can_be_read_in_a_forked_and_in_a_pickled_process(tmp_path: Path, origin: FeatureOrigin) -> None:
    path = _write(tmp_path / "f.h5", _ragged([2, 1]), [0, 1], origin)
    file = FeatureStore(tmp_path).open(path)
    expected = _first_set(file)
    assert pickle.loads(pickle.dumps(file))[0].tolist() == expected
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_first_set, (file,)) == expected
    assert _first_set(file) == expected


def test_paths_name_data_encoder_and_key(tmp_path: Path) -> None:
    path = FeatureStore(tmp_path).path("flickr8k", "vgg", "0123")
    assert path == tmp_path / "flickr8k" / "vgg-0123.h5"
