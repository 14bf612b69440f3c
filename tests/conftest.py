"""Shapes and types are checked while the tests run; real data is used where it is at hand."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest-xdist runs a process per core

install_import_hook("xmodal", "beartype.beartype")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real data sets (flickr8k/, vectors/, …), named by XMODAL_DATA."""
    folder = Path(os.environ.get("XMODAL_DATA", "nowhere"))
    if not (folder / "flickr8k" / "dataset.json").exists():
        pytest.skip("XMODAL_DATA names no folder with flickr8k/dataset.json: the tests on real data need one")
    return folder
