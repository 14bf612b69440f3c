"""A model that knows 16 scenes by heart, its index, and the page as it is served."""

import contextlib
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from xmodal.cli import main
from xmodal.config.command_line import compose
from xmodal.experiment.run import Experiment
from xmodal.search.engine import SearchEngine

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    '"><script>alert(1)</script>',
    "${alert(1)} {{value}} {{#each value}}",
    "a photo & 'quotes' `ticks`",
]
SIZES = {"train": 16, "val": 4, "test": 4}


@dataclass(frozen=True)
class Studio:
    """Trains small models on scenes, and builds indexes of them."""

    root: Path

    def train(self, name: str, *overrides: str) -> Path:
        """A run's folder."""
        sizes = [f"data.{split}_size={size}" for split, size in SIZES.items()]
        small = ["text_encoder.vector_size=32", "text_encoder.epochs=2", "text_encoder.bucket=500", "embedding_dim=32"]
        fixed = [
            *sizes, *small, "data.image_size=96", f"data.root={self.root / 'scenes'}", "data.batch_size=40",
            "model.image_tower.projection.hidden_dim=64", "model.text_tower.projection.hidden_dim=64",
            "model.image_tower.feature_dropout=0.0", "optimizer.lr=0.005", "trainer=cpu",
            "trainer.enable_progress_bar=false", "logger=none", "bootstrap=0", f"paths.output_dir={self.root / name}",
            f"paths.features_dir={self.root / 'features'}", f"paths.cache_dir={self.root / 'cache'}",
        ]  # fmt: skip
        experiment = Experiment.build(compose([*fixed, *overrides]))
        with contextlib.redirect_stdout(io.StringIO()):
            experiment.fit()
            experiment.finish()
        return experiment.folder

    def index(self, place: Path, name: str, *options: str) -> Path:
        """An index, built as on the command line."""
        folder = self.root / "indexes" / name
        assert main(["index", str(place), "--output", str(folder), "--device=cpu", *options]) == 0
        return folder


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    torch.set_num_threads(1)
    return Studio(tmp_path_factory.mktemp("studio"))


@pytest.fixture(scope="session")
def by_heart(studio: Studio) -> Path:
    """The last checkpoint of a run that learnt its 16 scenes by heart; its encoders read new photos and sentences."""
    pytest.importorskip("gradio")
    encoder = ("image_encoder=timm", "image_encoder.model=test_efficientnet", "image_encoder.weights=null")
    epochs = ("trainer.max_epochs=60", "trainer.check_val_every_n_epoch=30")
    return studio.train("by-heart", *encoder, *epochs) / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="session")
def folder(studio: Studio, by_heart: Path) -> Path:
    """Its index of all scenes: train, val and test."""
    return studio.index(by_heart, "scenes", "--split=all")


@pytest.fixture(scope="session")
def engine(folder: Path) -> SearchEngine:
    return SearchEngine.open(folder, device="cpu")


Serve = Callable[..., AbstractContextManager[str]]


@contextlib.contextmanager
def serving(*engines: SearchEngine) -> Iterator[str]:
    """The page of these indexes, on a free port of this machine; its address."""
    from xmodal.demo.collection import side_by_side
    from xmodal.demo.server import address, application, bound, folder_of_uploads, server

    with bound("127.0.0.1", 0) as opened, folder_of_uploads() as sent:
        made = server(application(side_by_side(engines), sent))
        thread = threading.Thread(target=made.run, kwargs={"sockets": [opened]})
        thread.start()
        try:
            deadline = time.monotonic() + 30
            while not made.started and time.monotonic() < deadline:
                time.sleep(0.01)
            yield address(opened)
        finally:
            made.should_exit = True
            thread.join(30)


@pytest.fixture(scope="session")
def serve() -> Serve:
    """See `serving`."""
    return serving


@pytest.fixture(scope="session")
def site(engine: SearchEngine) -> Iterator[str]:
    with serving(engine) as address:
        yield address


@pytest.fixture(scope="session")
def visit() -> Iterator[Callable[[str], Any]]:
    """Visit a page over HTTP; see `benchmarks/parts/visitor.py`."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from parts.visitor import Visitor
    finally:
        sys.path.remove(str(BENCHMARKS))
    visitors = []

    def begin(address: str) -> Any:
        visitors.append(Visitor(address))
        return visitors[-1]

    yield begin
    for visitor in visitors:
        visitor.http.close()


@pytest.fixture(scope="session")
def learnt(engine: SearchEngine) -> Sequence[Any]:
    """Items that the model has seen in training."""
    every = [engine.items.item(one) for one in engine.items.ids]
    return [item for item in every if item.split == "train"]


@pytest.fixture(scope="session")
def words_only(studio: Studio, by_heart: Path) -> SearchEngine:
    """An index of sentences alone, of the unfriendly kind."""
    lines = studio.root / "lines.txt"
    lines.write_text("\n".join(HOSTILE) + "\n", encoding="utf-8")
    return SearchEngine.open(studio.index(by_heart, "words", "--captions", str(lines)), device="cpu")


@pytest.fixture(scope="session")
def hostile() -> Sequence[str]:
    return HOSTILE
