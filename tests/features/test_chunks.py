from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xmodal.errors import FeatureError
from xmodal.features import chunks
from xmodal.features.chunks import ChunkedFile, DamagedChunkError
from xmodal.features.extract import extract
from xmodal.features.hdf5_writing import PIECE_BYTES
from xmodal.features.store import FeatureOrigin, FeatureStore
from xmodal.types import RaggedFeatures

ORIGIN = FeatureOrigin({"encoder": "Toy", "weights": "abc"}, "data1", "float32")


def _sets(lengths: list[int], width: int = 3) -> list[np.ndarray]:
    random = np.random.default_rng(len(lengths))
    return [random.standard_normal((n, width)).astype(np.float32) for n in lengths]


def _fill(target: ChunkedFile, sets: list[np.ndarray]) -> None:
    for number, (start, end) in enumerate(target.spans):
        target.write(number, RaggedFeatures.from_sets(sets[start:end]))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=st.lists(st.integers(0, 9), min_size=1, max_size=25),
    lengths=st.lists(st.integers(0, 4), min_size=10, max_size=10),
    block=st.integers(1, 100),
)
def test_equal_items_get_the_set_of_the_first_of_them(
    keys: list[int], lengths: list[int], block: int, tmp_path: Path
) -> None:
    distinct = list(dict.fromkeys(keys))
    sets = _sets([lengths[key] for key in distinct])
    target = ChunkedFile(tmp_path / "f.h5", ORIGIN, list(range(len(keys))), 2, 4, keys)
    _fill(target, sets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_BLOCK_BYTES", block)  # bytes: some blocks hold one item, some several
        target.merge(3)
    found = FeatureStore(tmp_path).read(target.path)
    for row, key in enumerate(keys):
        assert np.array_equal(found[row], sets[distinct.index(key)])
    assert not target.parts.exists()


def test_chunks_of_another_plan_or_precision_do_not_count(tmp_path: Path) -> None:
    path, ids = tmp_path / "f.h5", [0, 1, 2, 3]
    _fill(ChunkedFile(path, ORIGIN, ids, 2, 2, "abca"), _sets([1, 1, 1]))
    assert ChunkedFile(path, ORIGIN, ids, 2, 2, "abca").missing() == []
    for other in (
        ChunkedFile(path, ORIGIN, ids, 2, 2, "abcb"),
        ChunkedFile(path, ORIGIN, ids, 1, 2, "abca"),
        ChunkedFile(path, ORIGIN, ids, 2, 2, "abca", "bfloat16"),
    ):
        assert other.missing() == list(range(len(other.spans)))


def _flip_a_bit(path: Path, dataset: str) -> None:
    """In the second number: of offsets, one that is neither the first nor the last."""
    with h5py.File(path, "r") as file:
        place = file[dataset].id.get_chunk_info(0).byte_offset + file[dataset].dtype.itemsize
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("dataset", ["values", "offsets"])
def test_a_single_wrong_bit_is_found_in_the_file_and_in_a_chunk(dataset: str, tmp_path: Path) -> None:
    target = ChunkedFile(tmp_path / "f.h5", ORIGIN, list(range(6)), 2, 2)
    _fill(target, _sets([2] * 6))
    assert target.missing() == []
    _flip_a_bit(target.parts / "chunk-000001.h5", dataset)
    assert target.missing() == ([1] if dataset == "offsets" else [])  # values are read when chunks are joined
    with pytest.raises(
        DamagedChunkError, match=r"chunk-000001.h5 was finished, but can't be read any more .*Delete it"
    ):
        target.merge(3)
    assert not target.path.exists()
    _fill(target, _sets([2] * 6))
    target.merge(3)
    _flip_a_bit(target.path, dataset)
    with pytest.raises(FeatureError, match=r"f.h5 can't be read .*Delete it and run again"):
        FeatureStore(tmp_path).read(target.path)


@pytest.mark.parametrize("dataset", ["values", "offsets"])
def test_a_chunk_that_the_disk_damaged_is_made_anew(
    dataset: str, letter_encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["a dog", "cat", "two", "zebra", "x y", "end"]

    def run(encoder, root: Path) -> Path:
        names = {"data_name": "toy", "encoder_name": "letters", "data_fingerprint": "d"}
        return extract(encoder, texts, list(range(6)), store=FeatureStore(root), chunk_size=2, **names)

    whole = run(letter_encoder(2), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(letter_encoder(2, stop_after=4), tmp_path / "damaged")
    [chunk] = (tmp_path / "damaged").rglob("chunk-000000.h5")
    _flip_a_bit(chunk, dataset)
    encoder = letter_encoder(2)
    path = run(encoder, tmp_path / "damaged")
    assert encoder.encoded == 4  # the chunk that was missing, and the one that was damaged
    said = {"values": "chunk-000000.h5 was finished, but can't be read any more", "offsets": "1 chunks in "}
    assert said[dataset] in caplog.text
    found, expected = FeatureStore(path).read(path), FeatureStore(whole).read(whole)
    assert np.array_equal(found.values, expected.values)
    assert np.array_equal(found.offsets, expected.offsets)


@pytest.mark.parametrize("offsets", [[0, 3, 2], [1, 2, 4], [0, 2, 3], [0, 4]])
def test_offsets_that_do_not_rise_to_the_end_are_no_chunk(offsets: list[int], tmp_path: Path) -> None:
    target = ChunkedFile(tmp_path / "f.h5", ORIGIN, [0, 1], 2, 2)
    _fill(target, _sets([2, 2]))
    assert target.has(0)
    with h5py.File(target.parts / "chunk-000000.h5", "a") as file:
        del file["offsets"]
        file.create_dataset("offsets", data=offsets, chunks=True, fletcher32=True)
    assert not target.has(0)
    if len(offsets) == 3:
        with pytest.raises(DamagedChunkError, match="don't rise from 0 to the 4 vectors"):
            target.merge(3)


def test_a_chunk_of_an_older_version_without_checksums_does_not_count(tmp_path: Path) -> None:
    target = ChunkedFile(tmp_path / "f.h5", ORIGIN, [0, 1], 2, 2)
    _fill(target, _sets([2, 2]))
    with h5py.File(target.parts / "chunk-000000.h5", "a") as file:
        del file["offsets"]
        file["offsets"] = [0, 2, 4]
    assert target.missing() == [0]
    assert target.useless() == 1


def test_any_flipped_byte_of_a_chunk_is_noticed_or_harmless(tmp_path: Path) -> None:
    target = ChunkedFile(tmp_path / "f.h5", ORIGIN, list(range(4)), 2, 4)
    sets = _sets([2, 1, 0, 3])
    _fill(target, sets)
    [chunk] = target.parts.glob("*.h5")
    good = chunk.read_bytes()
    noticed = 0
    for place in range(0, len(good), 7):
        content = bytearray(good)
        content[place] ^= 0x41
        chunk.write_bytes(content)
        try:
            intact = target.has(0) and target._sets(np.arange(4))
        except DamagedChunkError:
            intact = False
        noticed += not intact
        if intact:
            assert np.array_equal(intact.values, np.concatenate(sets)), place
            assert intact.lengths.tolist() == [2, 1, 0, 3], place
    assert noticed > 50


def test_values_lie_in_pieces_of_about_a_mebibyte_with_checksums(tmp_path: Path) -> None:
    target = ChunkedFile(tmp_path / "f.h5", ORIGIN, [0, 1], 1, 1)
    _fill(target, _sets([3000, 3001], width=100))
    with h5py.File(target.parts / "chunk-000000.h5", "r") as file:
        assert file["values"].fletcher32
    target.merge(100)
    with h5py.File(target.path, "r") as file:
        values = file["values"]
        assert values.fletcher32
        assert values.chunks == (2621, 100)
        assert PIECE_BYTES - 400 < 2621 * 100 * 4 <= PIECE_BYTES
