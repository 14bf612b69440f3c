"""Small trained runs and what is indexed of them: one of thumbnails and FastText, one whose encoders were tuned."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xmodal.cli import main
from xmodal.search.engine import SearchEngine

FEW = ("data.train_size=8", "data.val_size=4", "data.test_size=6", "data.batch_size=16", "trainer.max_epochs=1")
PIXELS = ("image_encoder=timm", "image_encoder.model=test_resnet.r160_in1k", "image_encoder.weights=null")
BERT = ("text_encoder=bert", *(f"text_encoder.{line}" for line in ("hidden_size=16", "num_layers=2", "num_heads=2")))


@dataclass
class Shelf:
    """Runs, and a folder for the indexes of them."""

    root: Path
    run: Path
    tuned: Path

    def index(self, name: str, *words: str, run: Path | None = None) -> Path:
        """What the command makes of a run."""
        folder = self.root / name
        assert main(["index", str(run or self.run), "--output", str(folder), *words]) == 0
        return folder


@pytest.fixture(scope="session")
def shelf(workshop: Any, tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    run = workshop.run("searched", "trainer.max_epochs=2")
    layers = ("image_encoder.trainable_layers=all", "text_encoder.trainable_layers=1")
    tuned = workshop.run("searched_tuned", *PIXELS, *BERT, *FEW, *layers, f"data.root={workshop.root}/few")
    return Shelf(tmp_path_factory.mktemp("indexes"), run.folder, tuned.folder)


@pytest.fixture(scope="session")
def whole(shelf: Shelf) -> Path:
    """An index of all splits, with a query bank."""
    return shelf.index("whole", "--split", "all", "--query-bank", "30")


@pytest.fixture(scope="session")
def engine(whole: Path) -> SearchEngine:
    return SearchEngine.open(whole)


def photo(path: Path, seed: int, size: tuple[int, int] = (60, 40), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, size=(*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((size[0] * 2, size[1] * 2)).save(path, **options)
    return path


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of one's own in folders, one of them turned by its EXIF data, one leading out, and sentences."""
    folder = tmp_path_factory.mktemp("own")
    turned = Image.Exif()
    turned[0x0112] = 6
    photo(folder / "photos" / "a.jpg", 1)
    photo(folder / "photos" / "deep" / "er" / "a.PNG", 2)
    photo(folder / "photos" / "deep" / "turned.jpg", 3, exif=turned)
    outside = photo(folder / "elsewhere" / "secret.jpg", 4)
    (folder / "photos" / "link.jpg").symlink_to(outside)
    (folder / "photos" / "notes.txt").write_text("no photo")
    (folder / "lines.txt").write_text("\ufeffa red circle\n\n   \n  a blue square above a star \na red circle\n")
    return folder
