import logging
from pathlib import Path

import h5py
import numpy as np
import pytest

from xmodal.errors import ConfigError, FeatureError
from xmodal.features.residence import open_features
from xmodal.features.store import FeatureFile, FeatureOrigin, finish_file
from xmodal.types import FeatureSource, RaggedFeatures


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    """Image features of 800,808 bytes, text features of 80,808."""
    for name, width in (("image", 2000), ("text", 200)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["values"] = np.arange(100 * width, dtype=np.float32).reshape(100, width)
            finish_file(file, FeatureOrigin({}, "d", "float32"), list(range(100)), np.arange(101))
    return {name: tmp_path / f"{name}.h5" for name in ("image", "text")}


def _kinds(opened: dict[str, FeatureSource]) -> list[type]:
    return [type(opened[side]) for side in ("image", "text")]


@pytest.mark.parametrize(
    ("memory_gb", "taken", "kinds"),
    [
        (0.001, 0, [RaggedFeatures, RaggedFeatures]),
        (0.001, 200_000, [FeatureFile, RaggedFeatures]),  # together too much
        (0.0005, 0, [FeatureFile, RaggedFeatures]),
        (0.0002, 0, [FeatureFile, FeatureFile]),  # beside the text features nothing would be left to read into
        (0.0001, 0, [FeatureFile, FeatureFile]),  # the text features take more than half
        (0.0001, 200_000, [FeatureFile, FeatureFile]),
    ],
)
def test_what_fits_is_in_memory(
    paths: dict[str, Path], memory_gb: float, taken: int, kinds: list[type], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        other = RaggedFeatures(np.zeros((taken // 4, 1), np.float32), np.zeros(1, np.int64))
        opened = open_features(paths, memory_gb, 4, {"other": other})
    assert _kinds(opened) == kinds
    for side, width in (("image", 2000), ("text", 200)):
        assert opened[side].select(np.array([7])).values[0, 0] == 7 * width
    [line] = [record.message for record in caplog.records]
    assert "image 0.001 GB" in line
    assert line.count(str(paths["image"])) == kinds.count(FeatureFile) - (kinds[1] is FeatureFile)


@pytest.mark.parametrize("memory_gb", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_is_a_positive_number(memory_gb: float, paths: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=rf"features.memory_gb must be a number above 0, found {memory_gb}"):
        open_features(paths, memory_gb)


def test_a_damaged_file_is_found_at_once(paths: dict[str, Path]) -> None:
    with h5py.File(paths["text"], "a") as file:
        file.attrs["complete"] = False
    with pytest.raises(FeatureError, match=r"text.h5 is no complete file of features"):
        open_features(paths, 1e-5)
