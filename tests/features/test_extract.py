import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from xmodal.encoders.fasttext import FastTextEncoder
from xmodal.errors import ConfigError, DataError, FeatureError
from xmodal.features.chunks import ChunkedFile
from xmodal.features.extract import encode_all, extract
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


def test_chunks_of_another_batch_size_or_damaged_ones_are_made_again(letter_encoder, tmp_path: Path) -> None:
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


def test_a_kill_between_the_last_rename_and_the_clearing_leaves_no_rubbish(letter_encoder, tmp_path: Path) -> None:
    path = _extract(letter_encoder(), TEXTS, tmp_path)
    parts = ChunkedFile(path, FeatureOrigin(letter_encoder().fingerprint(), "d"), list(range(10)), 4, 4).parts
    parts.mkdir()
    (parts / "chunk-000000.h5").write_bytes(b"left over")
    _extract(letter_encoder(), TEXTS, tmp_path)
    assert not parts.exists()


SCRIPT = """
import hashlib, os, sys, time
from pathlib import Path
import torch
from xmodal.encoders.fasttext import FastTextEncoder
from xmodal.errors import FeatureError
from xmodal.features.extract import extract
from xmodal.features.store import FeatureStore

class SlowEncoder:
    modality, batch_size, feature_dim = "text", 3, 500
    def __init__(self):
        self.weight = torch.randn(26, 500, generator=torch.Generator().manual_seed(0))
    def fingerprint(self):
        return {"encoder": "SlowEncoder"}
    def check(self): return []
    def prepare(self, captions, cache_dir): pass
    def to(self, device): pass
    def state(self): return {}
    def restore(self, state): pass
    def preprocess(self, item):
        return [ord(c) % 26 for c in item]
    def encode(self, batch):
        time.sleep(float(os.environ["PAUSE"]))
        return [self.weight[torch.tensor(letters)] for letters in batch]

if __name__ == "__main__":
    if "LIMIT" in os.environ:
        import resource
        limit = int(os.environ["LIMIT"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    texts = [f"caption number {i} of many" for i in range(100)]
    try:
        extract(SlowEncoder(), texts, list(range(100)), store=FeatureStore(Path(sys.argv[1])), data_name="toy",
                encoder_name="slow", data_fingerprint="d", chunk_size=10)
    except FeatureError as error:
        sys.exit(f"FeatureError: {error}")
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "slow_extraction.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture(scope="module")
def slow_extraction(start: Callable[..., Any], script: Path) -> Callable[..., Any]:
    """Start the script; ``pause`` is how long a batch takes, in seconds."""
    folder = script.parent
    return lambda root, pause, **changes: start([str(script), str(root)], folder, PAUSE=str(pause), **changes)


@pytest.fixture(scope="module")
def undisturbed(slow_extraction: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a run that nothing stopped."""
    root = tmp_path_factory.mktemp("undisturbed")
    assert slow_extraction(root, 0).finish().returncode == 0
    [path] = root.glob("toy/*.h5")
    return path


def _wait_for(condition: Callable[[], bool], process: Any, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.finish()
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


@pytest.mark.slow
def test_a_killed_extraction_continues_and_ends_like_one_that_was_not(
    slow_extraction: Callable[..., Any], undisturbed: Path, tmp_path: Path
) -> None:
    process = slow_extraction(tmp_path, 0.05)
    _wait_for(lambda: len(list(tmp_path.rglob("chunk-*.h5"))) >= 3, process)
    process.send_signal(signal.SIGKILL)
    assert process.finish(10).returncode == -signal.SIGKILL
    assert not list(tmp_path.glob("toy/*.h5"))  # nothing that a later run could take for complete
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("chunk-*.h5")}
    process = slow_extraction(tmp_path, 0.03)
    _wait_for(lambda: len(list(tmp_path.rglob("chunk-*.h5"))) > len(finished) + 1, process)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert process.finish().returncode == 0
    [path] = tmp_path.glob("toy/*.h5")
    _assert_same_datasets(undisturbed, path)
    assert not list(tmp_path.glob("toy/*.parts"))


@pytest.mark.slow
def test_two_processes_make_the_file_once(slow_extraction: Callable[..., Any], tmp_path: Path) -> None:
    processes = [slow_extraction(tmp_path, 0.02) for _ in range(2)]
    assert [process.finish().returncode for process in processes] == [0, 0]
    [path] = tmp_path.glob("toy/*.h5")
    assert len(FeatureStore(tmp_path).read(path)) == 100


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "kept"), [(100_000, 0), (600_000, 12)])
def test_a_full_disk_keeps_what_is_finished_and_says_how_to_go_on(
    slow_extraction: Callable[..., Any], undisturbed: Path, tmp_path: Path, limit: int, kept: int
) -> None:
    """The limit on file sizes stops the first chunk, or the final file, in the middle of a write."""
    done = slow_extraction(tmp_path, 0, LIMIT=str(limit)).finish()
    assert done.returncode == 1
    assert "FeatureError: No space left for features" in done.stderr
    assert f"{kept} of 12 chunks are finished" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("toy/*.h5"))
    assert not list(tmp_path.rglob("*.tmp"))
    assert slow_extraction(tmp_path, 0).finish().returncode == 0
    [path] = tmp_path.glob("toy/*.h5")
    _assert_same_datasets(undisturbed, path)


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
    texts = ["a", "b", "q", "q", "c"]
    with pytest.raises(FeatureError, match=r"NaN or infinite features for 2 of the 4 items.*'i2', 'i3'"):
        _extract(letter_encoder(broken={"q": value}), texts, tmp_path, ids=["i0", "i1", "i2", "i3", "i4"])
    with pytest.raises(FeatureError, match="NaN or infinite"):
        encode_all(letter_encoder(broken={"q": value}), texts)
    assert not list(tmp_path.rglob("toy/*.h5"))


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
    with pytest.raises(ConfigError, match=r"features.chunk_size must be at least 1, found 0"):
        _extract(letter_encoder(), ["a"], tmp_path, chunk_size=0)
    with pytest.raises(FeatureError, match=r"encodes sentences \(str\), found PosixPath"):
        encode_all(letter_encoder(), [Path("a.jpg")])


def test_decoding_runs_beside_the_network(letter_encoder) -> None:
    """The next batch is being prepared, in another thread, while one is encoded."""
    seen: dict[str, set[int]] = {"preprocess": set(), "encode": set()}

    class Watched(letter_encoder):
        def preprocess(self, item: str) -> list[int]:
            seen["preprocess"].add(threading.get_ident())
            return super().preprocess(item)

        def encode(self, batch: list[list[int]]) -> list[torch.Tensor]:
            seen["encode"].add(threading.get_ident())
            return super().encode(batch)

    encode_all(Watched(), TEXTS)
    assert seen["encode"] == {threading.get_ident()}
    assert seen["preprocess"].isdisjoint(seen["encode"])


def test_progress_is_logged_where_there_is_no_terminal(
    letter_encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        _extract(letter_encoder(), TEXTS, tmp_path, description="captions with letters")
    assert "Extracting captions with letters into" in caplog.text
    assert "captions with letters: 10 of 10," in caplog.text


def test_a_bar_with_a_rate_is_drawn_on_a_terminal(script: Path, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    reader, writer = pty.openpty()
    variables = {**os.environ, "PAUSE": "0.01", "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "f")], env=variables, stderr=writer)
    os.close(writer)
    shown = b""
    while True:
        try:
            shown += os.read(reader, 4096)
        except OSError:  # the other end was closed
            break
    os.close(reader)
    assert process.wait(300) == 0
    assert b"100/100" in shown
    assert b"/s" in shown
