import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from xmodal.errors import ConfigError, FeatureError
from xmodal.features.disk_space import Expectation, expected_size, readable, require_space
from xmodal.features.extract import extract
from xmodal.features.pipeline import decoding_threads
from xmodal.features.shards import Place, local_device
from xmodal.features.store import FeatureStore


def _counting(encoder_class):
    class Counting(encoder_class):
        def most_vectors(self, items: Sequence[object]) -> int:
            return self.cells * len(items)

    return Counting


def test_the_size_is_exact_for_sets_of_one_a_bound_for_others_and_else_unknown(grid_encoder) -> None:
    counting = _counting(grid_encoder)
    assert expected_size(counting(cells=1), [0] * 100, "float16") == Expectation(100 * 8 * 2, True)
    assert expected_size(counting(cells=2), [0] * 100, "float32") == Expectation(200 * 8 * 4, False)
    assert expected_size(grid_encoder(), [0] * 100, "float32") == Expectation(None, False)
    assert str(Expectation(243_000_000, True)) == "about 243 MB on disk"
    assert str(Expectation(2_430_000, False)) == "at most 2.43 MB on disk"
    assert str(Expectation(None, False)) == "size unknown"
    assert [readable(size) for size in (17, 999_600, 3e15)] == ["17 bytes", "1 MB", "3,000.0 TB"]


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on a disk that says it has 1500 bytes left."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1500))
    return tmp_path


def test_a_disk_that_is_too_small_is_refused_or_warned_of(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    require_space(small_disk, Expectation(1000, True), 0.5)
    require_space(small_disk, Expectation(None, False), 1.0)
    assert not caplog.records
    with pytest.raises(FeatureError, match=r"need 2 kB \(the file, and its chunks.*1.5 kB are free.*features_dir="):
        require_space(small_disk, Expectation(1000, True), 1.0)
    with caplog.at_level(logging.WARNING):
        require_space(small_disk, Expectation(1000, False), 1.0)
    assert "may need up to 2 kB (the file and its chunks), but 1.5 kB are free" in caplog.text


def test_nothing_is_encoded_for_a_disk_that_cannot_hold_it(grid_encoder, photos: list[Path], small_disk: Path) -> None:
    encoder = _counting(grid_encoder)(cells=1)
    names = {"data_name": "toy", "encoder_name": "grid", "data_fingerprint": "d"}
    inputs = photos * 10
    with pytest.raises(FeatureError, match=r"The features need 3.52 kB"):
        extract(encoder, inputs, list(range(110)), store=FeatureStore(small_disk), **names)
    assert encoder.encoded == 0
    assert not list(small_disk.rglob("*.parts"))


def test_threads_that_decode() -> None:
    assert decoding_threads(None, torch.device("cpu"), "image") == 1
    assert decoding_threads(None, torch.device("cuda"), "text") == 1
    assert decoding_threads(None, torch.device("cuda"), "image") >= 1
    assert [decoding_threads(given, torch.device("cpu"), "image") for given in (0, 1, 5)] == [1, 1, 5]


def test_ranks_and_devices_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Place.of_this_process() == Place(0, 1)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert Place.of_this_process() == Place(0, 1)  # a child of Lightning's launcher
    monkeypatch.setenv("RANK", "2")
    assert Place.of_this_process() == Place(2, 3)
    assert Place(2, 3).share(range(8)) == [2, 5]
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(ConfigError, match=r"RANK=3 and WORLD_SIZE=3 .* expected 0 <= RANK < WORLD_SIZE"):
        Place.of_this_process()
    assert local_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert local_device("cuda:1") == torch.device("cuda:1")
    assert local_device("cuda") == torch.device("cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"LOCAL_RANK=2, but this machine has 2 GPUs.*nproc_per_node=2"):
        local_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert local_device("cuda") == torch.device("cuda")
    for absent in ("cuda:1", "xpu", "graphics", "meta", "cpu:1x"):
        with pytest.raises(ConfigError, match=rf"features.device={absent}: .* no such device.* auto, cpu, cuda:0"):
            local_device(absent)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=r"features.device=cuda: .* no such device. Choices: auto, cpu\.$"):
        local_device("cuda")
