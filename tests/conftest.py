"""Shapes and types are checked while the tests run; real data is used where it is at hand.

Programs run in processes of their own, forked from one that has imported the large libraries before.
"""

import contextlib
import gc
import io
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest-xdist runs a process per core

# Modules that state shapes. To check a call costs as much as a hundred lines do, so that those which handle settings,
# words and files are left to mypy, which sees all there is to see of them.
SOURCES = Path(__file__).resolve().parents[1]
SHAPED = [
    ".".join(file.relative_to(SOURCES).with_suffix("").parts)
    for file in sorted((SOURCES / "xmodal").rglob("*.py"))
    if "jaxtyping" in file.read_text(encoding="utf-8")
]
install_import_hook(SHAPED, "beartype.beartype")

# What a program of this project imports sooner or later, seconds of work each time.
LARGE_LIBRARIES = (
    "xmodal.experiment.run",
    "xmodal.encoders.vgg",
    "xmodal.encoders.faster_rcnn",
    "xmodal.encoders.fasttext",
    "xmodal.encoders.bert",
    "transformers.models.bert.modeling_bert",
    "pytorch_lightning",
    "hydra.core.plugins",
    "wandb",
    "matplotlib.pyplot",
)

# Makes the forked process what `python script arguments` or `python -m module arguments` would have made.
BECOME = """
import atexit, gc, multiprocessing, os, runpy, signal, sys, threading
gc.freeze()
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's `pytest &` has ignored
for number, path in enumerate(outputs, start=1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
os.environ.clear()
os.environ.update(environment)
os.chdir(folder)
multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
try:
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, os.path.dirname(words[0]))
        runpy.run_path(words[0], run_name="__main__")
finally:  # in the order in which Python ends a program
    threading._shutdown()
    atexit._run_exitfuncs()
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests go first: each runs in one process, and none shall be left for the end alone.

    Notebooks are slow, and have no other place to say so.
    """
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.slow)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """What large libraries brought stays to the end: collections of garbage need not look through it each time.

    Nor need they come each time that 700 objects of a configuration have been made.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


class Program:
    """A program in a process of its own; a small part of subprocess.Popen."""

    def __init__(
        self, server: ForkServerContext, words: Sequence[str], folder: Path, environment: dict[str, str], scratch: Path
    ) -> None:
        self._words = list(words)
        self._outputs = [str(scratch / "stdout"), str(scratch / "stderr")]
        given = {"words": self._words, "outputs": self._outputs, "folder": str(folder), "environment": environment}
        self._process = server.Process(target=exec, args=(BECOME, given))
        self._process.start()

    def poll(self) -> int | None:
        """Exit code; None as long as it runs, negative after a signal."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def finish(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Wait for the end."""
        self._process.join(timeout)
        if self.poll() is None:
            self._process.kill()
            self._process.join()
            raise subprocess.TimeoutExpired(self._words, timeout, *self.printed())
        return subprocess.CompletedProcess(self._words, self.poll(), *self.printed())

    def printed(self) -> tuple[str, str]:
        """Standard output and error so far."""
        out, err = (Path(path).read_text() if Path(path).exists() else "" for path in self._outputs)
        return out, err


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Program]:
    """Start ``python WORDS`` (a script with its arguments, or ``-m`` with a module's) in a folder.

    ``environment`` is put on top of this process's; None takes a variable out. What is read from it while a large
    library is imported, and what Python itself reads, has no effect any more: a test that needs it runs
    ``sys.executable``.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(LARGE_LIBRARIES))

    def begin(words: Sequence[str], folder: Path, **environment: str | None) -> Program:
        given = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
        return Program(server, words, folder, given, tmp_path_factory.mktemp("program"))

    return begin


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real data sets (flickr8k/, vectors/, …), named by XMODAL_DATA."""
    folder = Path(os.environ.get("XMODAL_DATA", "nowhere"))
    if not (folder / "flickr8k" / "dataset.json").exists():
        pytest.skip("XMODAL_DATA names no folder with flickr8k/dataset.json: the tests on real data need one")
    return folder


_BLOCK, _HEAD = 32768, 7  # LevelDB's log: blocks of 32 KiB, each fragment after 4 bytes CRC, 2 length, 1 kind


def fragments(content: bytes) -> Iterator[tuple[int, bytes]]:
    place = _HEAD  # ":W&B", magic number, version
    while place + _HEAD <= len(content):
        if _BLOCK - place % _BLOCK < _HEAD:
            place += _BLOCK - place % _BLOCK
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        yield kind, content[place + _HEAD : place + _HEAD + length]
        place += _HEAD + length


def records(file: Path) -> Iterator[Any]:
    """Records of a .wandb file; kind 1 is a whole one, 2 to 4 are its first, middle and last part."""
    from wandb.proto.wandb_internal_pb2 import Record

    parts = b""
    for kind, data in fragments(file.read_bytes()):
        parts = data if kind in (1, 2) else parts + data
        if kind in (1, 4):
            yield Record.FromString(parts)


@dataclass
class WandbRecord:
    """What the folder of an offline run holds, read record by record: messages of W&B, and values by name."""

    folder: Path
    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)  # definitions by name or pattern
    artifacts: list[Any] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path) -> "WandbRecord":
        found = cls(folder)
        (file,) = folder.glob("run-*.wandb")
        for record in records(file):
            found.add(record.WhichOneof("record_type"), record)
        return found

    def add(self, kind: str, record: Any) -> None:
        if kind == "run":
            self.run = record.run
            self.config |= values_of(record.run.config.update)
        elif kind == "config":
            self.config |= values_of(record.config.update)
        elif kind == "history":
            self.history.append(values_of(record.history.item))
        elif kind == "summary":
            self.summary |= values_of(record.summary.update)
        elif kind == "metric":
            self.metrics[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "artifact":
            self.artifacts.append(record.artifact)
        elif kind == "files":
            self.files += [file.path for file in record.files.files]
        elif kind == "exit":
            self.exit_codes.append(record.exit.exit_code)

    def column(self, name: str) -> list[Any]:
        """Values of a figure, in the order in which they were logged."""
        return [row[name] for row in self.history if name in row]


def values_of(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.fixture(scope="session")
def wandb_record() -> Callable[..., WandbRecord]:
    """Read the folder of an offline run once W&B's own process, which writes after the run has ended, has come to its
    end; or as it is after ``seconds``."""

    def read(folder: Path, seconds: float = 120.0) -> WandbRecord:
        deadline = time.monotonic() + seconds
        while not (found := WandbRecord.of(folder)).exit_codes and time.monotonic() < deadline:
            time.sleep(0.2)
        return found

    return read


SIZES = {"train": 40, "val": 12, "test": 14}  # of the scenes that small experiments train on


@dataclass
class Finished:
    """A run that has ended, its experiment, and what it printed."""

    experiment: Any
    folder: Path
    output: str
    score: float | None


@dataclass
class Workshop:
    """Makes experiments that share scenes, features and word vectors, each with an output folder of its own."""

    root: Path
    finished: dict[str, Finished] = field(default_factory=dict)

    def compose(self, name: str, *overrides: str) -> Any:
        from xmodal.config.command_line import compose

        sizes = [f"data.{split}_size={size}" for split, size in SIZES.items()]
        fixed = [
            "data=scenes",
            *sizes,
            "data.image_size=48",
            f"data.root={self.root / 'scenes'}",
            "data.batch_size=64",
            "embedding_dim=16",
            "model.image_tower.projection.hidden_dim=32",
            "model.text_tower.projection.hidden_dim=32",
            "trainer=cpu",
            "trainer.max_epochs=3",
            "trainer.enable_progress_bar=false",
            "logger=none",
            "optimizer.lr=0.005",
            f"paths.output_dir={self.root / name}",
            f"paths.features_dir={self.root / 'features'}",
            f"paths.cache_dir={self.root / 'cache'}",
        ]
        if not any(line.startswith("image_encoder=") for line in overrides):
            fixed += ["image_encoder=precomputed", f"image_encoder.path={self.root / 'thumbnails.npy'}"]
        if not any(line.startswith("text_encoder=") for line in overrides):
            fixed += ["text_encoder.vector_size=16", "text_encoder.epochs=1", "text_encoder.bucket=500"]
        return compose([*fixed, *overrides])  # of two settings of a key the later one counts

    def build(self, name: str, *overrides: str) -> Any:
        from xmodal.experiment.run import Experiment

        return Experiment.build(self.compose(name, *overrides))

    def run(self, name: str, *overrides: str) -> Finished:
        """The whole run, as train.py does it."""
        experiment = self.build(name, *overrides)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), attached_log(printed):
            experiment.fit()
            experiment.test()
            score = experiment.finish()
        return Finished(experiment, experiment.folder, printed.getvalue(), score)

    def interrupted(self, name: str, stop: Any, *overrides: str) -> tuple[Any, SystemExit, str]:
        """A run stopped by Ctrl-C; Lightning ignores further signals from then on, so the handler is put back."""
        experiment = self.build(name, *overrides)
        experiment.trainer.callbacks.insert(0, stop)  # type: ignore[attr-defined]
        handler, printed = signal.getsignal(signal.SIGINT), io.StringIO()
        try:
            with contextlib.redirect_stderr(printed), pytest.raises(SystemExit) as leaving:
                experiment.fit()
        finally:
            signal.signal(signal.SIGINT, handler)
        return experiment, leaving.value, printed.getvalue()


@contextlib.contextmanager
def attached_log(stream: io.StringIO) -> Iterator[None]:
    handler, logger = logging.StreamHandler(stream), logging.getLogger("xmodal")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def thumbnails(items, side: int = 6) -> Any:
    import numpy as np
    from PIL import Image

    pictures = [Image.open(image.path).convert("RGB").resize((side, side)) for image in items.images]
    return np.stack([np.asarray(picture, dtype=np.float32).ravel() / 255 for picture in pictures])


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    import numpy as np
    import torch

    from xmodal.experiment.features import load_dataset
    from xmodal.experiment.parts import build_parts

    torch.set_num_threads(1)
    made = Workshop(tmp_path_factory.mktemp("experiments"))
    np.save(made.root / "thumbnails.npy", np.zeros((1, 1), dtype=np.float32))  # the check wants a file
    cfg = made.compose("first")
    items = load_dataset(cfg, build_parts(cfg)).full
    np.save(made.root / "thumbnails.npy", thumbnails(items))
    return made


@pytest.fixture(scope="session")
def plain_run(workshop: Workshop) -> Finished:
    """Three epochs with the CSV logger, to the end."""
    return workshop.run("plain", "logger=csv")
