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
from xmodal.features.hdf5_writing import FORMAT
from xmodal.features.store import FeatureFile, FeatureOrigin, FeatureStore, cut, finish_file, is_complete
from xmodal.types import FeatureSource, RaggedFeatures


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


def _stored(
    path: Path, lengths: list[int], coded: bool, checked: bool, width: int = 3, ids: list | None = None, libver=FORMAT
) -> RaggedFeatures:
    """Sets written by hand: with codes or without, with checksums or, as files used to be, without."""
    random = np.random.default_rng(len(lengths))
    total = sum(lengths)
    values = random.standard_normal((7 if coded else total, width)).astype(np.float32)
    codes = random.integers(0, 7, total).astype(np.uint8) if coded else None
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    with h5py.File(path, "w", libver=libver) as file:
        pieces = {"fletcher32": True} if checked and len(values) > 1 else {}
        file.create_dataset("values", data=values, **pieces, **({"chunks": (2, width)} if pieces else {}))
        if codes is not None:
            file.create_dataset("codes", data=codes, **pieces)
        names = list(range(len(lengths))) if ids is None else ids
        finish_file(file, FeatureOrigin({"encoder": "Toy"}, "d", "float32"), names, offsets)
    return RaggedFeatures(values, offsets, codes)


def _same(found: RaggedFeatures, expected: RaggedFeatures) -> bool:
    sets = [np.array_equal(found[row], expected[row]) for row in range(len(expected))]
    return len(found) == len(expected) and all(sets)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=9),
    coded=st.booleans(),
    checked=st.booleans(),
    budget=st.integers(1, 200),
    data=st.data(),
)
def test_a_file_is_a_source_like_memory(
    lengths: list[int], coded: bool, checked: bool, budget: int, data: st.DataObject, tmp_path: Path
) -> None:
    features = _stored(tmp_path / "f.h5", lengths, coded, checked)
    file = FeatureStore(tmp_path).open(tmp_path / "f.h5")
    assert isinstance(file, FeatureSource)
    assert (len(file), file.feature_dim, file.is_coded) == (len(lengths), 3, coded)
    assert np.array_equal(file.lengths, features.lengths)
    assert file.nbytes == features.nbytes
    assert _same(file.read(), features)
    rows = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=9)), dtype=np.int64)
    assert _same(file.select(rows), features.select(rows))
    assert _same(file.select(np.unique(rows)), features.select(np.unique(rows)))
    pieces = list(file.blocks(budget))
    assert np.concatenate([piece for piece, _ in pieces]).tolist() == list(range(len(lengths)))
    for piece, sets in pieces:
        assert _same(sets, features.select(piece))
        assert len(piece) == 1 or file.vector_bytes * sets.lengths.sum() <= budget
    file.close()


def test_neighbours_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stored(tmp_path / "f.h5", [1] * 100, coded=False, checked=True)
    file = FeatureStore(tmp_path).open(tmp_path / "f.h5")
    read, reads = h5py.Dataset.read_direct, []
    monkeypatch.setattr(h5py.Dataset, "read_direct", lambda *args: (reads.append(args[2]), read(*args)))
    file.select(np.r_[5:40, 60:80])
    assert reads == [slice(5, 40), slice(60, 80)]


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("ids", [list(range(9)), [f"é{k}.jpg" * (k % 3 + 1) for k in range(9)]], ids=["whole", "text"])
def test_whatever_byte_flips_no_wrong_vector_and_no_other_error_comes(
    ids: list, coded: bool, tmp_path: Path, origin: FeatureOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "f.h5"
    expected = _stored(path, [2, 0, 1, 3, 1, 2, 0, 4, 1], coded, checked=True, ids=ids)
    origin = FeatureFile(path).origin
    good, outcomes = path.read_bytes(), {True: 0, False: 0}
    stride = max(1, len(good) // 300)
    for place in range(0, len(good), stride):
        content = bytearray(good)
        content[place] ^= 0x41
        path.write_bytes(content)
        sound, said = _read_if_sound(path, origin, ids)
        assert not said or (str(path) in said and "Delete it and run again" in said), place
        outcomes[sound is not None] += 1
        assert sound is None or _same(sound, expected), place
        assert sound is None or _description(path) == _description_of(good, tmp_path), place
    assert outcomes[False] > 30


def _read_if_sound(path: Path, origin: FeatureOrigin, ids: list) -> tuple[RaggedFeatures | None, str]:
    """All sets where the file is good, and what the error said that was raised."""
    file = FeatureFile(path)
    try:
        return (file.read() if is_complete(path, origin, ids) else None), ""
    except FeatureError as error:
        return None, str(error)
    finally:
        file.close()


def _description(path: Path) -> dict:
    file = FeatureFile(path)
    try:
        return file.attributes
    finally:
        file.close()


def _description_of(content: bytes, folder: Path) -> dict:
    (folder / "good.h5").write_bytes(content)
    return _description(folder / "good.h5")


@pytest.mark.parametrize("record", ["{", "[1", "\udcff"])
def test_a_record_that_cannot_be_read_is_named(tmp_path: Path, record: str) -> None:
    path = tmp_path / "f.h5"
    _stored(path, [2, 1], coded=False, checked=True)
    with h5py.File(path, "a") as file:
        file.attrs["encoder"] = np.bytes_(record.encode(errors="surrogateescape"))
    file = FeatureFile(path)
    for look in (lambda: file.origin, file.verify):
        with pytest.raises(FeatureError, match=r"f\.h5 can't be read .*Delete it and run again"):
            look()
    file.close()


def test_a_file_of_another_form_is_an_error_whatever_is_asked(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for name in ("values", "offsets", "ids"):
            file.create_group(name)
    file = FeatureFile(tmp_path / "f.h5")
    looks = [lambda: file.offsets, lambda: file.ids, lambda: file.origin, lambda: file.feature_dim]
    for look in [*looks, lambda: file.nbytes, file.read, file.verify]:
        with pytest.raises(FeatureError, match=r"f\.h5"):
            look()
    file.close()


def test_the_type_of_values_must_be_the_one_that_is_stated(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    _stored(path, [2, 1], coded=False, checked=False)
    with h5py.File(path, "a") as file:
        del file["values"]
        file["values"] = np.zeros((3, 3), np.float16)
    with pytest.raises(FeatureError, match="it says that its values are float32, but they are float16"):
        FeatureStore(tmp_path).open(path)


def test_a_file_of_an_older_version_is_read(tmp_path: Path) -> None:
    """Its strings are of any length, and neither they nor HDF5's own records have checksums."""
    path = tmp_path / "f.h5"
    features = _stored(path, [2, 1], coded=False, checked=True, libver="earliest")
    with h5py.File(path, "a") as file:
        del file["ids"]
        file.create_dataset("ids", data=["é", "b"], dtype=h5py.string_dtype())
        for name, value in FeatureOrigin({"encoder": "Toy"}, "d", "float32").attributes().items():
            del file.attrs[name]
            file.attrs[name] = value
        del file.attrs["precision"]
    file = FeatureStore(tmp_path).open(path)
    assert _same(file.read(), features)
    assert (file.ids, file.computed_in) == (["é", "b"], "float32")
    assert file.origin == FeatureOrigin({"encoder": "Toy"}, "d", "float32")
    file.close()


def test_files_are_in_the_form_whose_records_have_checksums(tmp_path: Path, origin: FeatureOrigin) -> None:
    path = _write(tmp_path / "f.h5", _ragged([1, 2]), ["a", "b"], origin)
    assert path.read_bytes()[8] == 3  # version of the superblock
    with h5py.File(path) as file:
        assert [file[name].fletcher32 for name in ("values", "offsets", "ids")] == [True] * 3
        assert all(kind is None or kind.length for kind in map(h5py.check_string_dtype, _types(file)))


def _types(file: h5py.File) -> list[np.dtype]:
    return [file["ids"].dtype, *(file.attrs.get_id(name).dtype for name in file.attrs)]


@pytest.mark.parametrize("name", ["values", "offsets"])
def test_a_flipped_byte_is_an_error_that_names_file_and_remedy(tmp_path: Path, name: str) -> None:
    path = tmp_path / "f.h5"
    _stored(path, [2, 2, 2], coded=False, checked=True)
    with h5py.File(path) as file:
        place = file[name].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(FeatureError, match=rf"'{name}' in .*f\.h5 can't be read .*Delete it and run again"):
        FeatureStore(tmp_path).read(path)
    looked_at = name == "offsets"  # the vectors are not: that would take as long as reading them all
    assert is_complete(path, FeatureOrigin({"encoder": "Toy"}, "d", "float32"), [0, 1, 2]) != looked_at


def test_codes_must_be_unsigned_numbers_for_every_vector(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    _stored(path, [2, 1], coded=True, checked=False)
    with h5py.File(path, "a") as file:
        del file["codes"]
        file["codes"] = np.zeros(4, np.uint8)
    with pytest.raises(FeatureError, match="offsets don't rise from 0 to the 4 vectors"):
        FeatureStore(tmp_path).open(path)
    with h5py.File(path, "a") as file:
        del file["codes"]
        file["codes"] = np.zeros(3)
    with pytest.raises(FeatureError, match=r"expected codes \(T,\) of an unsigned type, found float64"):
        FeatureStore(tmp_path).open(path)


@given(sizes=st.lists(st.integers(0, 9), max_size=12), limit=st.integers(1, 20))
def test_pieces_take_all_that_fits(sizes: list[int], limit: int) -> None:
    pieces = cut(np.arange(len(sizes)), np.array(sizes, dtype=np.int64), limit)
    expected: list[list[int]] = []
    for row, size in enumerate(sizes):
        if expected and sum(sizes[i] for i in expected[-1]) + size <= limit:
            expected[-1].append(row)
        else:
            expected.append([row])
    assert [piece.tolist() for piece in pieces] == expected
