import json
import logging
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from scipy import io, sparse

from xmodal.data.items import Caption, ImageItem, Items
from xmodal.errors import ConfigError, FeatureError
from xmodal.features.extract import extract
from xmodal.features.precomputed import PrecomputedFeatures
from xmodal.features.store import FeatureStore

CONF = Path(__file__).parents[2] / "conf"


def _matrix(rows: int, width: int = 3) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, width)).astype(np.float32)


def _write_mat5(path: Path, **arrays: Any) -> Path:
    io.savemat(path, arrays)
    return path


def _write_mat73(path: Path, **arrays: np.ndarray) -> Path:
    """What MATLAB's ``save -v7.3`` writes: HDF5 behind a header of 512 bytes, matrices column by column."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array.T)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    return path


def _write_h5(path: Path, **arrays: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
    return path


def _write_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def _write_npy(path: Path, **arrays: np.ndarray) -> Path:
    [array] = arrays.values()
    np.save(path, array)
    return path


# suffix, writer, whether items are columns
FORMATS = {
    "mat5": (".mat", _write_mat5, True),
    "mat73": (".mat", _write_mat73, True),
    "npy": (".npy", _write_npy, False),
    "npz": (".npz", _write_npz, False),
    "h5": (".h5", _write_h5, False),
}


@pytest.fixture(params=FORMATS)
def file_format(request: pytest.FixtureRequest) -> tuple[str, Any, bool]:
    return FORMATS[request.param]


def _load(path: Path, items: Items, full: Items | None = None, **options: Any):
    return PrecomputedFeatures(path, **options).load(items, full or items)


@pytest.mark.parametrize("transposed", [False, True])
def test_image_i_is_column_or_row_i(
    file_format, make_items, tmp_path: Path, transposed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    suffix, write, columns = file_format
    matrix = _matrix(5)
    path = write(tmp_path / f"f{suffix}", feats=matrix.T if columns != transposed else matrix)
    with caplog.at_level(logging.INFO):
        found = _load(path, make_items([1] * 5))
    assert found.lengths.tolist() == [1] * 5
    assert np.array_equal(found.values, matrix)
    assert ("is transposed" in caplog.text) == transposed


def test_a_square_matrix_is_taken_as_documented(file_format, make_items, tmp_path: Path) -> None:
    suffix, write, columns = file_format
    matrix = _matrix(3)
    path = write(tmp_path / f"f{suffix}", feats=matrix)
    found = _load(path, make_items([1, 1, 1]))
    assert np.array_equal(found.values, matrix.T if columns else matrix)


def test_a_wrong_number_of_items_is_an_error(file_format, make_items, tmp_path: Path) -> None:
    suffix, write, columns = file_format
    path = write(tmp_path / f"f{suffix}", feats=_matrix(5).T if columns else _matrix(5))
    shape = r"\(3, 5\)" if columns else r"\(5, 3\)"
    for count in (4, 6):
        with pytest.raises(FeatureError, match=rf"has the shape {shape}, but the data set asks for {count} image"):
            _load(path, make_items([1] * count))


def test_images_go_by_id_where_ids_are_numbers(make_items, tmp_path: Path) -> None:
    matrix = _matrix(4)
    path = _write_npy(tmp_path / "f.npy", feats=matrix)
    assert np.array_equal(_load(path, make_items([1] * 4, ids=[2, 0, 3, 1])).values, matrix[[2, 0, 3, 1]])
    assert np.array_equal(_load(path, make_items([1] * 4, ids=["c", "a", "d", "b"])).values, matrix)


def test_a_file_may_cover_ids_that_the_data_set_lacks(make_items, tmp_path: Path) -> None:
    matrix = _matrix(6)
    items = make_items([1, 1, 1], ids=[5, 0, 2])
    assert np.array_equal(_load(_write_npy(tmp_path / "f.npy", feats=matrix), items).values, matrix[[5, 0, 2]])
    by_position = _load(_write_npy(tmp_path / "g.npy", feats=matrix[:3]), items)
    assert np.array_equal(by_position.values, matrix[:3])
    with pytest.raises(FeatureError, match=r"asks for 3 or 6 image entries"):
        _load(_write_npy(tmp_path / "h.npy", feats=_matrix(5, width=4)), items)


@pytest.mark.parametrize("ids", [[3, 1, 0, 2], ["c", "a", "d", "b"]])
def test_a_part_of_the_data_set_keeps_its_columns(make_items, tmp_path: Path, ids: list[Any]) -> None:
    full = make_items([2, 1, 3, 1], ids=ids, splits=["train", "train", "val", "val"])
    part = full.limited(1)
    image_path = _write_npy(tmp_path / "f.npy", feats=_matrix(4))
    text_path = _write_npy(tmp_path / "t.npy", feats=_matrix(7))
    all_images, all_texts = _load(image_path, full), _load(text_path, full, modality="text")
    images, texts = _load(image_path, part, full), _load(text_path, part, full, modality="text")
    assert np.array_equal(images.values, all_images.values[[0, 2]])
    assert np.array_equal(texts.values, all_texts.values[[0, 1, 3, 4, 5]])


def test_rows_of_several_arrays_are_joined(make_items, tmp_path: Path) -> None:
    matrix = _matrix(5).astype(np.float64)
    path = _write_mat5(tmp_path / "raw.mat", I_tr=matrix[:3], I_te=matrix[3:])
    found = _load(path, make_items([1] * 5), key=["I_tr", "I_te"])
    assert np.allclose(found.values, matrix)
    assert found.values.dtype == np.float32
    sideways = _write_mat5(tmp_path / "t.mat", a=matrix[:2].T, b=matrix[2:].T)
    assert np.allclose(_load(sideways, make_items([1] * 5), key=["a", "b"]).values, matrix)
    bad = _write_mat5(tmp_path / "bad.mat", a=matrix[:2], b=matrix[2:, :2])
    with pytest.raises(FeatureError, match=r"a, b in .*bad.mat can't be joined: .* \[\(2, 3\), \(3, 2\)\]"):
        _load(bad, make_items([1] * 5), key=["a", "b"])


def test_regions_and_sparse_and_half_precision(make_items, tmp_path: Path) -> None:
    regions = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float16)
    found = _load(_write_npz(tmp_path / "f.npz", feats=regions), make_items([1] * 4))
    assert found.lengths.tolist() == [2] * 4
    assert found.values.dtype == np.float16
    assert np.array_equal(found[2], regions[2])
    bag = np.eye(3, 4)
    path = _write_mat5(tmp_path / "s.mat", feats=sparse.csc_matrix(bag))
    assert np.array_equal(_load(path, make_items([1] * 4)).values, bag.T)


def test_image_regions_as_objects(make_items, tmp_path: Path) -> None:
    entries = np.empty(3, dtype=object)
    entries[:] = [_matrix(2), _matrix(4), np.zeros((0, 3), np.float32)]
    found = _load(_write_npy(tmp_path / "f.npy", feats=entries), make_items([1, 1, 1]))
    assert found.lengths.tolist() == [2, 4, 0]
    assert np.array_equal(found[1], entries[1])
    cells = _load(_write_mat5(tmp_path / "f.mat", feats=entries), make_items([1, 1, 1]))
    assert np.array_equal(cells.values, found.values)


COUNTS = [2, 5, 1, 3]


def _captions() -> list[list[np.ndarray]]:
    """Captions of each image, as sets of 0 to 4 words."""
    random = np.random.default_rng(3)
    texts = [[random.standard_normal((random.integers(0, 5), 3)).astype(np.float32) for _ in range(n)] for n in COUNTS]
    texts[1][2] = np.zeros((0, 3), np.float32)
    texts[2][0] = random.standard_normal((2, 3)).astype(np.float32)
    return texts


def _objects(entries: list[Any]) -> np.ndarray:
    array = np.empty(len(entries), dtype=object)
    for row, entry in enumerate(entries):
        array[row] = entry
    return array


SHAPES_OF_TEXT = {
    "lists": lambda texts: _objects(texts),
    "object arrays": lambda texts: _objects([_objects(captions) for captions in texts]),
    "lists of vectors": lambda texts: _objects([[list(caption) for caption in captions] for captions in texts]),
    "lists of numbers": lambda texts: _objects([[caption.tolist() for caption in captions] for captions in texts]),
    "one entry per caption": lambda texts: _objects([caption for captions in texts for caption in captions]),
}


@pytest.mark.parametrize("shape", SHAPES_OF_TEXT)
def test_text_i_j_is_caption_j_of_image_i(make_items, tmp_path: Path, shape: str) -> None:
    texts = _captions()
    path = _write_npy(tmp_path / "fasttext_feats.npy", feats=SHAPES_OF_TEXT[shape](texts))
    items = make_items(COUNTS)
    found = _load(path, items, modality="text")
    expected = [caption for captions in texts for caption in captions]
    assert len(found) == sum(COUNTS)
    for row, caption in enumerate(expected):
        assert np.array_equal(found[row], caption)


def test_captions_of_images_in_another_order(tmp_path: Path) -> None:
    """Captions of different images may be mixed in the data set; each finds its own set, checked by a naive loop."""
    texts = _captions()
    ids = [2, 0, 3, 1]
    images = tuple(ImageItem(i, "train") for i in ids)
    left = {row: COUNTS[i] for row, i in enumerate(ids)}
    captions = []
    while any(left.values()):
        for row in left:
            if left[row]:
                left[row] -= 1
                captions.append(Caption(len(captions), row, "words"))
    items = Items("mixed", images, tuple(captions))
    path = _write_npy(tmp_path / "f.npy", feats=_objects(texts))
    found = _load(path, items, modality="text")
    seen = dict.fromkeys(ids, 0)
    for row, caption in enumerate(captions):
        image_id = ids[caption.image]
        assert np.array_equal(found[row], texts[image_id][seen[image_id]])
        seen[image_id] += 1
    matrix = _matrix(len(captions))
    by_row = _load(_write_npy(tmp_path / "g.npy", feats=matrix), items, modality="text")
    assert np.array_equal(by_row.values, matrix)


@pytest.mark.parametrize("words", [1, 4])
def test_tables_of_captions_with_one_number_of_words(make_items, tmp_path: Path, words: int) -> None:
    random = np.random.default_rng(0)
    table = random.standard_normal((3, 5, words, 2)).astype(np.float32)
    items = make_items([5, 5, 5])
    as_objects = np.empty(table.shape, dtype=object)
    as_objects[:] = table
    for name, array in {"plain": table, "objects": as_objects, "per caption": table.reshape(15, words, 2)}.items():
        found = _load(_write_npy(tmp_path / f"{name}.npy", feats=array), items, modality="text")
        assert found.lengths.tolist() == [words] * 15
        assert np.array_equal(found[7], table[1, 2])
    pooled = _load(_write_npy(tmp_path / "pooled.npy", feats=table[:, :, 0]), items, modality="text")
    assert np.array_equal(pooled[7], table[1, 2, :1])


def test_captions_that_the_data_set_does_not_have(make_items, tmp_path: Path) -> None:
    path = _write_npy(tmp_path / "f.npy", feats=_objects(_captions()))
    with pytest.raises(FeatureError, match=r"has 5 captions for image 1, but toy has 4 \(2 images differ\)"):
        _load(path, make_items([2, 4, 1, 4]), modality="text")
    with pytest.raises(FeatureError, match=r"4 entries, but the data set asks for 5 or 12 text entries"):
        _load(path, make_items([*COUNTS, 1]), modality="text")


def test_one_vector_per_image_is_no_text_feature(make_items, tmp_path: Path) -> None:
    path = _write_npy(tmp_path / "f.npy", feats=_matrix(4))
    with pytest.raises(FeatureError, match=r"\(4, 3\), but the data set asks for 11 text entries"):
        _load(path, make_items(COUNTS), modality="text")


def test_vectors_of_different_widths(make_items, tmp_path: Path) -> None:
    texts = _captions()
    texts[3][1] = np.zeros((2, 4), np.float32)
    with pytest.raises(FeatureError, match=r"different widths: 3 in set \d, 4 in set 9"):
        _load(_write_npy(tmp_path / "f.npy", feats=_objects(texts)), make_items(COUNTS), modality="text")
    texts[3][1] = [[1.0, 2.0, 3.0], [1.0]]
    with pytest.raises(FeatureError, match=r"\[3\]\[1\] is no set of vectors of one width"):
        _load(_write_npy(tmp_path / "g.npy", feats=_objects(texts)), make_items(COUNTS), modality="text")
    texts[3][1] = np.zeros((1, 2, 3), np.float32)
    with pytest.raises(FeatureError, match=r"\[3\]\[1\] has the shape \(1, 2, 3\)"):
        _load(_write_npy(tmp_path / "h.npy", feats=_objects(texts)), make_items(COUNTS), modality="text")


def test_a_file_without_any_vector(make_items, tmp_path: Path) -> None:
    path = _write_npy(tmp_path / "f.npy", feats=_objects([np.zeros((0, 3))] * 2))
    with pytest.raises(FeatureError, match="no vector at all: its 2 sets are empty"):
        _load(path, make_items([1, 1]))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_numbers_are_named(make_items, tmp_path: Path, value: float) -> None:
    matrix = _matrix(5).astype(np.float64)
    matrix[1, 2] = matrix[3, 0] = value  # 1e300 is no float32
    path = _write_mat5(tmp_path / "f.mat", feats=matrix.T)
    with pytest.raises(FeatureError, match=r"NaN or infinite values for 2 of 5 images; the first ids are 'b', 'd'"):
        _load(path, make_items([1] * 5, ids=list("abcde")))


def test_text_values_that_are_not_numbers_are_named(make_items, tmp_path: Path) -> None:
    texts = _captions()
    texts[2][0][1, 1] = np.nan
    path = _write_npy(tmp_path / "f.npy", feats=_objects(texts))
    with pytest.raises(FeatureError, match=r"for 1 of 11 captions; the first ids are 1007"):
        _load(path, make_items(COUNTS), modality="text")


@pytest.mark.parametrize("ids", [[4, 9, 0], ["a.jpg", "b.jpg", "c.jpg"]])
def test_files_of_the_own_store_go_by_their_ids(grid_encoder, make_items, tmp_path: Path, ids: list[Any]) -> None:
    store = FeatureStore(tmp_path)
    names = {"store": store, "data_name": "toy", "encoder_name": "letters", "data_fingerprint": "d", "dtype": "float32"}
    photos = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    path = extract(grid_encoder(), photos, ids, **names)
    reverse = make_items([1, 1, 1], ids=ids[::-1])
    found = _load(path, reverse)
    stored = store.read(path)
    for row in range(3):
        assert np.array_equal(found[row], stored[2 - row])
    with pytest.raises(FeatureError, match=r"3 image sets, but none for 1 of the 2 of toy, for example 'other'"):
        _load(path, make_items([1, 1], ids=[ids[0], "other"]))


def test_files_of_the_own_store_must_be_of_the_same_side_and_captions(letter_encoder, make_items, tmp_path) -> None:
    """Ids count from 0 in most data sets, on both sides: equal ids prove nothing."""
    items = make_items([1, 1, 1])
    texts, ids = [caption.text for caption in items.captions], [caption.caption_id for caption in items.captions]
    names = {"store": FeatureStore(tmp_path), "data_name": "toy", "encoder_name": "letters"}
    own = extract(letter_encoder(), texts, ids, data_fingerprint=items.caption_fingerprint(), **names)
    assert len(_load(own, items, modality="text")) == 3
    with pytest.raises(FeatureError, match="holds text features, expected image features"):
        _load(own, items)
    other = extract(letter_encoder(), texts, ids, data_fingerprint="of other captions", **names)
    with pytest.raises(FeatureError, match="other captions than those of toy"):
        _load(other, items, modality="text")


def test_what_check_finds_before_anything_is_read(tmp_path: Path) -> None:
    _write_mat5(tmp_path / "image_feats.mat", feats=_matrix(3), feats_2=_matrix(2))
    (tmp_path / "list.txt").write_text("1 2 3")
    (tmp_path / "cut.mat").write_bytes(b"MATLAB 5.0")
    (tmp_path / "cut.npz").write_bytes(b"PK")
    (tmp_path / "cut.h5").write_bytes(b"\x89HDF")

    def check(name: str | None, **options: Any) -> list[str]:
        return PrecomputedFeatures(None if name is None else tmp_path / name, **options).check()

    assert check("image_feats.mat") == []
    assert check("image_feats.mat", key=["feats", "feats_2"]) == []
    [fault] = check(None, modality="text")
    assert "text_encoder.path=" in fault
    [fault] = check("image_feat.mat")
    assert "doesn't exist. Did you mean image_feats.mat?" in fault
    [fault] = check("nowhere/image_feats.mat")
    assert "doesn't exist." in fault
    [fault] = check("list.txt")
    assert "expected one of .mat, .npy, .npz, .h5" in fault
    first, second = check("image_feats.mat", key=["feat", "nothing at all"])
    assert "holds feats, feats_2. Did you mean feats?" in first
    assert "nothing at all" in second
    for name in ("cut.mat", "cut.npz", "cut.h5"):
        [fault] = check(name)
        assert name in fault
        assert "can't be read" in fault


def test_load_raises_what_check_says(make_items, tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=r"image_encoder.path=.*absent.mat doesn't exist"):
        _load(tmp_path / "absent.mat", make_items([1]))


def test_parameters_out_of_range() -> None:
    with pytest.raises(ConfigError, match="must be one of image, text; found 'audio'"):
        PrecomputedFeatures("f.mat", modality="audio")
    with pytest.raises(ConfigError, match=r"image_encoder.key must name at least one array"):
        PrecomputedFeatures("f.mat", key=[])


def test_new_items_cannot_be_encoded() -> None:
    error = PrecomputedFeatures("/data/feats.mat", modality="text").encode_error()
    assert "text_encoder.made_by=<encoder>" in str(error)
    assert "/data/feats.mat holds features only" in str(error)


@pytest.mark.parametrize("modality", ["image", "text"])
def test_the_yaml_builds_it_with_one_or_several_keys(modality: str) -> None:
    config = OmegaConf.load(CONF / f"{modality}_encoder" / "precomputed.yaml")
    config.key = ["I_tr", "I_te"]
    config.path = "raw_features.mat"
    built = instantiate(config)
    assert (built.modality, built.keys, built.path) == (modality, ["I_tr", "I_te"], Path("raw_features.mat"))


def _flickr8k(real_data: Path) -> Items:
    entries = json.loads((real_data / "flickr8k" / "dataset.json").read_text())["images"]
    images = tuple(ImageItem(entry["imgid"], entry["split"]) for entry in entries)
    captions = tuple(
        Caption(sentence["sentid"], row, sentence["raw"])
        for row, entry in enumerate(entries)
        for sentence in entry["sentences"]
    )
    return Items("flickr8k", images, captions)


def test_the_real_features_of_flickr8k(real_data: Path) -> None:
    path = real_data / "flickr8k" / "image_feats.mat"
    items = _flickr8k(real_data)
    found = _load(path, items)
    assert found.values.shape == (7000, 1280)
    raw = io.loadmat(path)["feats"]
    for row in (0, 123, 6999):
        assert np.array_equal(found[row][0], raw[:, items.images[row].image_id])
    part = items.limited(10)
    few = _load(path, part, items)
    assert np.array_equal(few.values, found.values[[*range(10), *range(6000, 6010)]])
    with pytest.raises(FeatureError, match=r"has the shape \(1280, 7000\), but the data set asks for 20 or 6010 image"):
        _load(path, part)


def test_the_real_wikipedia_features(real_data: Path, make_items) -> None:
    path = real_data / "wikipedia" / "raw_features.mat"
    items = make_items([1] * 2866)
    images = _load(path, items, key=["I_tr", "I_te"])
    texts = _load(path, items, key=["T_tr", "T_te"], modality="text")
    raw = io.loadmat(path)
    assert (images.values.shape, texts.values.shape) == ((2866, 128), (2866, 10))
    assert np.allclose(images[2173][0], raw["I_te"][0])
    assert np.allclose(texts[2172][0], raw["T_tr"][-1])


@pytest.mark.slow
def test_a_file_as_large_as_flickr30k_is_read_in_seconds(make_items, tmp_path: Path) -> None:
    count, width = 31_014, 8
    random = np.random.default_rng(0)
    words = random.integers(5, 20, count * 5)
    vectors = random.standard_normal((words.sum(), width)).astype(np.float32)
    sets = np.split(vectors, np.cumsum(words)[:-1])
    table = np.empty((count, 5), dtype=object)
    table.ravel()[:] = _objects(sets)
    path = _write_npy(tmp_path / "fasttext_feats.npy", feats=table)
    items = make_items([5] * count)
    start = time.perf_counter()
    found = _load(path, items, modality="text")
    assert time.perf_counter() - start < 120  # some seconds, unless the machine is busy
    assert np.array_equal(found.values, vectors)
    assert np.array_equal(found.lengths, words)
