import logging
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from xmodal.encoders.bert import BertEncoder
from xmodal.encoders.fasttext import FastTextEncoder
from xmodal.errors import ConfigError, DataError, FeatureError
from xmodal.features.chunks import ChunkedFile
from xmodal.features.extract import encode_all, extract
from xmodal.features.precision import used_precision
from xmodal.features.store import FeatureFile, FeatureOrigin, FeatureStore

TEXTS = ["a dog", "", "two red cats!", "b", "a very long caption about nothing", "42", "dog", "zebra", "x y z", "end"]


def _extract(encoder, inputs, root: Path, **options) -> Path:
    given = {"ids": list(range(len(inputs))), "data_fingerprint": "d", "chunk_size": 4} | options
    return extract(encoder, inputs, store=FeatureStore(root), data_name="toy", encoder_name="letters", **given)


def _datasets(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path, "r") as file:
        return {name: file[name][:] for name in file}


def _assert_same_datasets(one: Path, other: Path) -> None:
    left, right = _datasets(one), _datasets(other)
    assert left.keys() == right.keys() == {"values", "offsets", "ids"}
    for name, array in left.items():
        assert array.dtype == right[name].dtype
        assert np.array_equal(array, right[name])


@pytest.fixture
def sized_encoder(letter_encoder):
    """Letters with every optional capability that extraction asks for; ``batches`` are the texts as they came."""

    class SizedEncoder(letter_encoder):
        def __init__(self, batch_size: int = 4, **options) -> None:
            super().__init__(batch_size, **options)
            self.batches: list[list[str]] = []

        def sizes(self, items: Sequence[str]) -> list[int]:
            return [len(item) for item in items]

        def most_vectors(self, items: Sequence[str]) -> int:
            return sum(len(item) for item in items)

        def preprocess(self, item: str) -> str:
            return item

        def collate(self, batch: list[str]) -> tuple[list[str], list[list[int]]]:
            return batch, [letter_encoder.preprocess(self, item) for item in batch]

        def encode(self, batch: tuple[list[str], list[list[int]]] | list[str]) -> list[torch.Tensor]:
            texts, letters = batch if isinstance(batch, tuple) else self.collate(batch)
            sets = super().encode(letters)
            self.batches.append(texts)
            return sets

    return SizedEncoder


def _one_by_one(encoder, texts: list[str]) -> list[np.ndarray]:
    return [encoder.encode([encoder.preprocess(text)])[0].numpy() for text in texts]


MANY = st.lists(st.text("ab z", max_size=6), min_size=1, max_size=25)  # with many duplicates


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=MANY, batch=st.integers(1, 5), chunk=st.integers(1, 12), workers=st.integers(1, 3))
def test_every_item_gets_its_own_set_whatever_is_sorted_and_merged(
    sized_encoder, texts: list[str], batch: int, chunk: int, workers: int
) -> None:
    expected = _one_by_one(sized_encoder(), texts)
    encoder, in_memory = sized_encoder(batch), sized_encoder(batch)
    with tempfile.TemporaryDirectory() as folder:
        path = _extract(encoder, texts, Path(folder), dtype="float32", chunk_size=chunk, num_workers=workers)
        found = FeatureStore(Path(folder)).read(path)
    together = encode_all(in_memory, texts)
    for row, features in enumerate(expected):
        assert np.array_equal(found[row], features)
        assert np.array_equal(together[row], features)
    assert encoder.encoded == in_memory.encoded == len(set(texts))


def test_batches_are_of_like_size_the_longest_first_and_stay_inside_their_chunk(sized_encoder, tmp_path: Path) -> None:
    texts = ["a", "bbb", "a", "cc", "dddd", "bbb", "e", "ff", "ggg", "h"]
    encoder = sized_encoder(2)
    _extract(encoder, texts, tmp_path, chunk_size=5)  # rounded down to two batches of two
    assert encoder.batches == [["dddd", "bbb"], ["cc", "a"], ["ggg", "ff"], ["e", "h"]]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=MANY, batch=st.integers(1, 4), chunk=st.integers(1, 8), stops=st.lists(st.integers(0, 12), max_size=2))
def test_a_continued_file_is_that_of_an_uninterrupted_run(
    sized_encoder, texts: list[str], batch: int, chunk: int, stops: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole, continued = Path(folder) / "whole", Path(folder) / "continued"
        straight = sized_encoder(batch)
        expected = _extract(straight, texts, whole, chunk_size=chunk)
        seen: Counter[tuple[str, ...]] = Counter()
        for stop in [*stops, float("inf")]:
            encoder = sized_encoder(batch, stop_after=stop)
            with suppress(KeyboardInterrupt):
                path = _extract(encoder, texts, continued, chunk_size=chunk)
            seen.update(tuple(batch) for batch in encoder.batches)
        assert set(seen) == {tuple(batch) for batch in straight.batches}  # the same items together, always
        _assert_same_datasets(expected, path)


def test_photos_are_merged_by_their_keys_alone(grid_encoder, photos: list[Path], tmp_path: Path) -> None:
    twice = [*photos[:3], photos[0], photos[2]]
    merged, apart = grid_encoder(), grid_encoder()
    path = _extract(merged, twice, tmp_path / "merged", keys=["x", "y", "z", "x", "z"])
    _assert_same_datasets(path, _extract(apart, twice, tmp_path / "apart"))
    assert (merged.encoded, apart.encoded) == (3, 5)


@pytest.mark.parametrize("pooling", ["cls", "mean", "tokens"])
def test_a_transformer_gives_what_it_gives_each_caption_alone(pooling: str, tmp_path: Path) -> None:
    captions = [f"{'a very ' * (k % 7)}small dog number {k % 23}" for k in range(60)]
    encoder = BertEncoder(pooling=pooling, hidden_size=32, num_layers=2, num_heads=2, vocab_size=200, batch_size=8)
    encoder.prepare(captions, tmp_path / "cache")
    found = FeatureStore(tmp_path).read(_extract(encoder, captions, tmp_path, dtype="float32", chunk_size=24))
    for row, expected in enumerate(_one_by_one(encoder, captions)):
        assert found[row].shape == expected.shape
        assert np.abs(found[row] - expected).max() < 1e-5


def test_half_precision_is_used_where_it_was_asked_for(tmp_path: Path) -> None:
    captions = ["a small dog", "two red cats on a wall", "three"]
    encoder = BertEncoder(hidden_size=32, num_layers=2, num_heads=2, vocab_size=200)
    encoder.prepare(captions, tmp_path / "cache")
    paths = {
        precision: _extract(encoder, captions, tmp_path, dtype="float32", precision=precision)
        for precision in ("auto", "float32", "bfloat16")
    }
    assert paths["auto"] == paths["float32"] != paths["bfloat16"]
    assert FeatureFile(paths["auto"]).attributes["computed_in"] == "float32"
    assert FeatureFile(paths["bfloat16"]).attributes["computed_in"] == "bfloat16"
    whole, half = (FeatureStore(tmp_path).read(paths[name]).values for name in ("float32", "bfloat16"))
    assert whole.dtype == half.dtype == np.float32
    assert 1e-4 < np.abs(whole - half).max() < 0.1
    in_memory = encode_all(encoder, captions, precision="bfloat16").values
    assert np.array_equal(in_memory, half)
    with pytest.raises(ConfigError, match=r"features.precision=float16 is for GPUs"):
        _extract(encoder, captions, tmp_path, precision="float16")


def test_whole_numbers_are_stored_in_float32(letter_encoder, tmp_path: Path) -> None:
    class Numbers(letter_encoder):
        needs_float32 = True

        def encode(self, batch: list[list[int]]) -> list[torch.Tensor]:
            return [torch.full((len(letters), 6), 30_001.0) for letters in batch]  # float16 has even numbers there

    path = _extract(Numbers(), TEXTS, tmp_path, dtype="float16")
    found = FeatureStore(tmp_path).read(path).values
    assert found.dtype == np.float32
    assert (found == 30_001).all()


def test_sets_equal_those_encoded_one_by_one(letter_encoder, tmp_path: Path) -> None:
    path = _extract(letter_encoder(), TEXTS, tmp_path, dtype="float32")
    found = FeatureStore(tmp_path).read(path)
    encoder = letter_encoder()
    for row, text in enumerate(TEXTS):
        expected = encoder.encode([encoder.preprocess(text)])[0].numpy()
        assert np.array_equal(found[row], expected)
    assert path.name.startswith("letters-")
    assert [file.name for file in path.parent.iterdir() if "parts" in file.name] == []


def test_word_vectors_of_a_trained_encoder(tmp_path: Path) -> None:
    encoder = FastTextEncoder(vector_size=8, epochs=1, batch_size=3)
    encoder.prepare(["a dog runs", "two red cats", "a dog and a cat"], tmp_path / "cache")
    path = _extract(encoder, TEXTS, tmp_path, dtype="float32")
    found = FeatureStore(tmp_path).read(path)
    assert found.feature_dim == 8
    for row, text in enumerate(TEXTS):
        assert np.array_equal(found[row], encoder.encode([encoder.preprocess(text)])[0].numpy())
    assert FeatureFile(path).attributes["weights_digest"] == encoder.fingerprint()["weights"]


def test_float16_is_the_default_and_rounds(letter_encoder, tmp_path: Path) -> None:
    half = FeatureStore(tmp_path).read(_extract(letter_encoder(), TEXTS, tmp_path))
    whole = encode_all(letter_encoder(), TEXTS)
    assert half.values.dtype == np.float16
    assert whole.values.dtype == np.float32
    assert np.array_equal(half.values, whole.values.astype(np.float16))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text("ab z", max_size=5), max_size=11), batch=st.integers(1, 5), workers=st.integers(0, 3))
def test_batches_and_threads_change_nothing(letter_encoder, texts: list[str], batch: int, workers: int) -> None:
    one = encode_all(letter_encoder(1), texts)
    other = encode_all(letter_encoder(batch), texts, num_workers=workers)
    assert np.array_equal(one.values, other.values)
    assert np.array_equal(one.offsets, other.offsets)
    assert other.feature_dim == 6


def test_photos_as_paths_strings_and_pictures_are_one(grid_encoder, photos: list[Path], tmp_path: Path) -> None:
    by_path = encode_all(grid_encoder(), photos)
    by_name = encode_all(grid_encoder(), [str(path) for path in photos], num_workers=2)
    by_picture = encode_all(grid_encoder(), [Image.open(path) for path in photos])
    stored = FeatureStore(tmp_path).read(_extract(grid_encoder(), photos, tmp_path, dtype="float32", num_workers=2))
    assert by_path.lengths.tolist() == [2] * len(photos)
    for other in (by_name, by_picture, stored):
        assert np.array_equal(by_path.values, other.values)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "LA", "1"])
def test_pictures_of_any_mode_are_made_rgb(grid_encoder, mode: str) -> None:
    picture = Image.new("RGB", (8, 6), (255, 255, 255)).convert(mode)
    found = encode_all(grid_encoder(), [picture])
    white = encode_all(grid_encoder(), [Image.new("RGB", (8, 6), (255, 255, 255))])
    assert np.allclose(found.values, white.values, atol=1e-5)


def test_pictures_are_turned_as_their_camera_says(grid_encoder, photos: list[Path], tmp_path: Path) -> None:
    turned = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    Image.open(photos[0]).save(turned, exif=exif)
    by_path, by_picture = encode_all(grid_encoder(), [turned]), encode_all(grid_encoder(), [Image.open(turned)])
    assert np.array_equal(by_path.values, by_picture.values)
    assert not np.allclose(by_path.values, encode_all(grid_encoder(), photos[:1]).values)


def test_a_truncated_photo_is_named(grid_encoder, photos: list[Path], tmp_path: Path) -> None:
    photos[5].write_bytes(photos[5].read_bytes()[:60])
    with pytest.raises(DataError, match=r"5\.png"):
        _extract(grid_encoder(), photos, tmp_path)


def test_a_second_call_encodes_nothing(letter_encoder, tmp_path: Path) -> None:
    first = _extract(letter_encoder(), TEXTS, tmp_path)
    before = first.stat().st_mtime_ns
    encoder = letter_encoder()
    assert _extract(encoder, TEXTS, tmp_path) == first
    assert encoder.encoded == 0
    assert first.stat().st_mtime_ns == before


def test_a_changed_encoder_or_data_set_is_never_a_stale_hit(letter_encoder, tmp_path: Path) -> None:
    first = _extract(letter_encoder(), TEXTS, tmp_path)
    others = [
        _extract(letter_encoder(broken={"a": 2.0}), TEXTS, tmp_path),
        _extract(letter_encoder(), TEXTS, tmp_path, data_fingerprint="e"),
        _extract(letter_encoder(), TEXTS, tmp_path, dtype="float32"),
    ]
    assert len({first, *others}) == 4
    assert not np.array_equal(_datasets(first)["values"], _datasets(others[0])["values"])


def test_a_damaged_file_is_made_anew(letter_encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _extract(letter_encoder(), TEXTS, tmp_path)
    expected = _datasets(path)
    path.write_bytes(path.read_bytes()[:700])
    assert _extract(letter_encoder(), TEXTS, tmp_path) == path
    assert np.array_equal(_datasets(path)["values"], expected["values"])
    assert "can't be opened as HDF5" in caplog.text


@pytest.mark.parametrize("limit", [1, 4, 7, 9])
def test_after_ctrl_c_finished_chunks_are_not_encoded_again(letter_encoder, tmp_path: Path, limit: int) -> None:
    whole = _extract(letter_encoder(2), TEXTS, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _extract(letter_encoder(2, stop_after=limit), TEXTS, tmp_path / "stopped")
    encoder = letter_encoder(2)
    resumed = _extract(encoder, TEXTS, tmp_path / "stopped")
    assert encoder.encoded == len(TEXTS) - limit // 4 * 4
    _assert_same_datasets(whole, resumed)


def test_chunks_of_another_batch_size_or_damaged_ones_are_made_again(
    letter_encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = _extract(letter_encoder(2), TEXTS, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _extract(letter_encoder(4, stop_after=8), TEXTS, tmp_path)
    chunk = next(tmp_path.rglob("chunk-000001.h5"))
    chunk.write_bytes(chunk.read_bytes()[:300])
    four, two = letter_encoder(4, stop_after=4), letter_encoder(2)
    with pytest.raises(KeyboardInterrupt):
        _extract(four, TEXTS, tmp_path)
    assert four.encoded == 4  # the damaged chunk alone
    _assert_same_datasets(whole, _extract(two, TEXTS, tmp_path))
    assert two.encoded == len(TEXTS)
    assert "2 chunks in " in caplog.text  # to the second call one was damaged, to the third both are of another size
    assert caplog.text.count("another batch size, chunk size, precision or version: they are not used") == 2


@pytest.mark.parametrize(("batch", "chunk"), [(4, 8), (2, 4), (1, 4), (4, 12)])
def test_a_continued_run_with_other_sizes_takes_no_stale_chunk(
    sized_encoder, tmp_path: Path, batch: int, chunk: int, caplog: pytest.LogCaptureFixture
) -> None:
    whole = _extract(sized_encoder(batch), TEXTS, tmp_path / "whole", chunk_size=chunk)
    with pytest.raises(KeyboardInterrupt):
        _extract(sized_encoder(4, stop_after=8), TEXTS, tmp_path / "stopped")  # two chunks of four
    encoder = sized_encoder(batch)
    _assert_same_datasets(whole, _extract(encoder, TEXTS, tmp_path / "stopped", chunk_size=chunk))
    assert encoder.encoded == len(TEXTS)
    assert "2 chunks in " in caplog.text


def test_what_a_killed_merge_left_is_removed_before_space_is_looked_at(
    letter_encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        _extract(letter_encoder(stop_after=4), TEXTS, tmp_path)
    [chunk] = tmp_path.rglob("chunk-*.h5")
    left = chunk.with_name("letters-0123.99999.tmp")
    left.write_bytes(b"half of the final file")
    usage, seen = shutil.disk_usage, []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: (seen.append(left.exists()), usage(path))[1])
    encoder = letter_encoder()
    _extract(encoder, TEXTS, tmp_path)
    assert seen
    assert not any(seen)
    assert encoder.encoded == len(TEXTS) - 4  # the finished chunk was kept


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """``on_a_gpu(True)``: auto gives bfloat16 for values stored in float16, as on a GPU that has it."""

    def switch(on: bool) -> None:
        def used(precision: str, device: torch.device, stored: str) -> str:
            return "bfloat16" if on and precision == "auto" and stored == "float16" else real(precision, device, stored)

        monkeypatch.setattr("xmodal.features.extract.used_precision", used)

    real = used_precision
    return switch


def _computed_in(path: Path) -> str:
    file = FeatureFile(path)
    found = file.computed_in
    file.close()
    return found


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_a_precision_that_was_asked_for_is_never_another(letter_encoder, tmp_path: Path, asked: str, on_a_gpu) -> None:
    other = {"float32": "bfloat16", "bfloat16": "float32"}[asked]
    on_a_gpu(other == "bfloat16")
    automatic = _extract(letter_encoder(), TEXTS, tmp_path, precision="auto")
    before = automatic.read_bytes()
    encoder = letter_encoder()
    wanted = _extract(encoder, TEXTS, tmp_path, precision=asked)
    assert encoder.encoded == len(TEXTS)
    assert (_computed_in(automatic), _computed_in(wanted)) == (other, asked)
    assert automatic.read_bytes() == before
    for precision, path in ((asked, wanted), (other, automatic)):
        again = letter_encoder()
        assert _extract(again, TEXTS, tmp_path, precision=precision) == path
        assert again.encoded == 0


@pytest.mark.parametrize("gpu_first", [True, False])
def test_auto_takes_what_it_made_on_another_device_and_says_so(
    letter_encoder, tmp_path: Path, gpu_first: bool, on_a_gpu, caplog: pytest.LogCaptureFixture
) -> None:
    on_a_gpu(gpu_first)
    first = _extract(letter_encoder(), TEXTS, tmp_path)
    on_a_gpu(not gpu_first)
    encoder = letter_encoder()
    with caplog.at_level(logging.INFO):
        assert _extract(encoder, TEXTS, tmp_path) == first
    assert encoder.encoded == 0
    made, now = ("bfloat16", "float32") if gpu_first else ("float32", "bfloat16")
    assert f"was computed in {made}; computed now it would be in {now}. features.precision={now}" in caplog.text
    assert _extract(letter_encoder(), TEXTS, tmp_path, dtype="float32") != first


def test_a_file_under_the_key_of_another_precision_is_made_again(
    letter_encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _extract(letter_encoder(), TEXTS, tmp_path)
    with h5py.File(path, "a") as file:
        file.attrs["computed_in"] = "bfloat16"
    encoder = letter_encoder()
    assert _extract(encoder, TEXTS, tmp_path, precision="float32") == path
    assert (encoder.encoded, _computed_in(path)) == (len(TEXTS), "float32")
    assert "was computed in bfloat16, not in float32; making it again" in caplog.text


def test_a_kill_between_the_last_rename_and_the_clearing_leaves_no_rubbish(letter_encoder, tmp_path: Path) -> None:
    path = _extract(letter_encoder(), TEXTS, tmp_path)
    parts = ChunkedFile(path, FeatureOrigin(letter_encoder().fingerprint(), "d"), list(range(10)), 4, 4).parts
    parts.mkdir()
    (parts / "chunk-000000.h5").write_bytes(b"left over")
    _extract(letter_encoder(), TEXTS, tmp_path)
    assert not parts.exists()


def test_too_little_space_is_seen_before_the_final_file_is_written(
    letter_encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=17))
    with pytest.raises(FeatureError, match=r"17 bytes free on that disk, and the file needs \d+ bytes.*3 of 3 chunks"):
        _extract(letter_encoder(), TEXTS, tmp_path)


@pytest.mark.parametrize(("value", "shown"), [(70_000.0, "70000"), (-65_600.0, "65600")])
def test_what_float16_cannot_hold_is_refused(letter_encoder, tmp_path: Path, value: float, shown: str) -> None:
    texts = ["a", "b", "q", "c", "q"]
    with pytest.raises(FeatureError, match=rf"{shown} for item 12; float16 ends at 65504. Set features.dtype=float32"):
        _extract(letter_encoder(broken={"q": value}), texts, tmp_path, ids=[10, 11, 12, 13, 14])
    path = _extract(letter_encoder(broken={"q": value}), texts, tmp_path, dtype="float32")
    assert FeatureStore(tmp_path).read(path)[2][0, 3] == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_numbers_are_named(letter_encoder, tmp_path: Path, value: float) -> None:
    texts = ["a", "b", "q", "aq", "c"]
    with pytest.raises(FeatureError, match=r"NaN or infinite features for 2 of the 4 items.*'i2', 'i3'"):
        _extract(letter_encoder(broken={"q": value}), texts, tmp_path, ids=["i0", "i1", "i2", "i3", "i4"])
    with pytest.raises(FeatureError, match="NaN or infinite"):
        encode_all(letter_encoder(broken={"q": value}), texts)
    assert not list(tmp_path.rglob("*.h5"))  # nor a chunk that lacks a batch


def test_an_encoder_that_breaks_its_word(letter_encoder) -> None:
    class OtherWidth(letter_encoder):
        def encode(self, batch: list[list[int]]) -> list[torch.Tensor]:
            return [torch.zeros(1, 5) for _ in batch]

    class TooFew(letter_encoder):
        def encode(self, batch: list[list[int]]) -> list[torch.Tensor]:
            return super().encode(batch)[1:]

    with pytest.raises(FeatureError, match=r"OtherWidth gave features of shape \(1, 5\) for item 0; expected \(n, 6\)"):
        encode_all(OtherWidth(), ["a", "b"])
    with pytest.raises(FeatureError, match="TooFew gave 1 sets for a batch of 2 items"):
        encode_all(TooFew(), ["a", "b"])


def test_wrong_arguments(letter_encoder, tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="2 inputs were given with 3 ids"):
        _extract(letter_encoder(), ["a", "b"], tmp_path, ids=[1, 2, 3])
    with pytest.raises(ConfigError, match=r"features.text_chunk_size must be at least 1, found 0"):
        _extract(letter_encoder(), ["a"], tmp_path, chunk_size=0)
    with pytest.raises(FeatureError, match="2 inputs were given with 1 keys"):
        encode_all(letter_encoder(), ["a", "b"], keys=["a"])
    with pytest.raises(ConfigError, match=r"precision must be one of auto, float32, bfloat16, float16, found 'half'"):
        _extract(letter_encoder(), ["a"], tmp_path, precision="half")
    with pytest.raises(FeatureError, match=r"encodes sentences \(str\), found PosixPath"):
        encode_all(letter_encoder(), [Path("a.jpg")])


def test_decoding_runs_beside_the_network(letter_encoder) -> None:
    """The next batch is being prepared, in another thread, while one is encoded with all cores that torch has."""
    seen: dict[str, set[int]] = {"preprocess": set(), "encode": set()}
    cores: dict[str, set[int]] = {"preprocess": set(), "encode": set()}
    before = torch.get_num_threads()
    torch.set_num_threads(3)

    class Watched(letter_encoder):
        def preprocess(self, item: str) -> list[int]:
            seen["preprocess"].add(threading.get_ident())
            cores["preprocess"].add(torch.get_num_threads())
            return super().preprocess(item)

        def encode(self, batch: list[list[int]]) -> list[torch.Tensor]:
            seen["encode"].add(threading.get_ident())
            cores["encode"].add(torch.get_num_threads())
            return super().encode(batch)

    encode_all(Watched(), TEXTS)
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    torch.set_num_threads(before)
    assert cores == {"preprocess": {1}, "encode": {3}}
    assert later == [3]
    assert seen["encode"] == {threading.get_ident()}
    assert seen["preprocess"].isdisjoint(seen["encode"])


def test_size_and_progress_are_told(sized_encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        _extract(sized_encoder(), ["abc", "d", "abc"], tmp_path)
    assert (
        "3 captions, 2 of them distinct, at most 84 bytes on disk, computed in float32 (0 of 3 already" in caplog.text
    )
    assert "features: 3 of 3," in caplog.text


def test_encoding_into_memory_tells_as_much_where_it_is_described(
    sized_encoder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        encode_all(sized_encoder(), ["query"])
    assert not caplog.text
    with caplog.at_level(logging.INFO):
        encode_all(sized_encoder(), ["abc", "d", "abc"], description="text features of toy")
    assert "Encoding text features of toy into memory, storing nothing: 3 captions, 2 of them distinct" in caplog.text
    assert "at most 168 bytes in memory, computed in float32" in caplog.text
    assert "text features of toy: 3 of 3," in caplog.text


def test_progress_is_logged_where_there_is_no_terminal(
    letter_encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        _extract(letter_encoder(), TEXTS, tmp_path, description="captions with letters")
    assert "Extracting captions with letters into" in caplog.text
    assert "captions with letters: 10 of 10," in caplog.text
