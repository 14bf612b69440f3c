"""A made-up data set, and a look at one as the command takes it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from xmodal.config.command_line import compose
from xmodal.doctor.data import data_set
from xmodal.doctor.finding import Finding


@pytest.fixture
def flickr8k(tmp_path: Path) -> Path:
    """The folder of a data set of six photos with two captions each, in a folder of data sets."""
    folder = tmp_path / "data" / "flickr8k"
    (folder / "images").mkdir(parents=True)
    splits = ("train", "train", "train", "val", "val", "test")
    for number in range(6):
        Image.new("RGB", (40, 30), (40 * number, 90, 90)).save(folder / "images" / f"{number}.jpg")
    images = [
        {
            "filename": f"{number}.jpg",
            "imgid": number,
            "split": split,
            "sentences": [{"raw": f"photo {number}", "sentid": 2 * number + k} for k in range(2)],
        }
        for number, split in enumerate(splits)
    ]
    (folder / "dataset.json").write_text(json.dumps({"images": images}), encoding="utf-8")
    return folder


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., list[Finding]]:
    """The lines about a data set below ``tmp_path / "data"``."""

    def see(option: str, *overrides: str, is_needed: bool = False, is_thorough: bool = False) -> list[Finding]:
        folders = (f"paths.data_dir={tmp_path}/data", f"paths.output_dir={tmp_path}/outputs")
        return list(data_set(option, compose([*folders, f"data={option}", *overrides]), is_needed, is_thorough))

    return see
