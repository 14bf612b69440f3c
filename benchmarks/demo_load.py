"""Searches per second and their latency through the page of `xmodal demo`, by several users at once.

    python benchmarks/demo_load.py
    python benchmarks/demo_load.py --users 1 --index outputs/indexes/my-run-all

Without --index, a small model is trained on scenes and all of them are indexed. The page is served by a process of its
own on 127.0.0.1. Each user has a session and asks one sentence after the other as a browser does: an event is posted,
and its answer, the HTML of the results, is read from the stream of events. Beside it stands the bare time of the model
in this process, for the same sentences, one at a time: `encode_texts` and `search_vectors`.
"""

import argparse
import contextlib
import io
import logging
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from alternation import describe
from parts.visitor import Visitor

from xmodal.cli import main as xmodal
from xmodal.config.command_line import compose
from xmodal.experiment.run import Experiment
from xmodal.search.engine import SearchEngine

K = 12  # results, as many as the page shows
TRAINED_ON = 200  # scenes
PATIENCE = 120  # seconds for the page to be there


def built_index(items: int, root: Path) -> Path:
    """Train for an epoch on a part of so many scenes, and index all of them."""
    trained_on = min(TRAINED_ON, items // 2)
    encoder = ["image_encoder=timm", "image_encoder.model=test_efficientnet", "image_encoder.weights=null"]
    sizes = [f"data.train_size={trained_on}", "data.val_size=2", f"data.test_size={items - trained_on - 2}"]
    run = [f"data.root={root}", f"paths.output_dir={root / 'run'}", f"paths.features_dir={root / 'features'}"]
    rest = [
        "data.image_size=64",
        "trainer=cpu",
        "trainer.max_epochs=1",
        "trainer.enable_progress_bar=false",
        "bootstrap=0",
    ]
    cache = [f"paths.cache_dir={root / 'cache'}", "logger=none", "embedding_dim=256", "text_encoder.epochs=1"]
    experiment = Experiment.build(compose([*encoder, *sizes, *run, *rest, *cache]))
    with contextlib.redirect_stdout(io.StringIO()):
        experiment.fit()
        experiment.finish()
        xmodal(["index", str(experiment.folder), "--split=all", "--output", str(root / "index"), "--device=cpu"])
    return root / "index"


@contextlib.contextmanager
def served(index: Path) -> Iterator[str]:
    """The page, served by a process of its own; its address."""
    words = [sys.executable, "-m", "xmodal.cli", "demo", str(index), "--port=0", "--device=cpu"]
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(words, stdout=printed, stderr=subprocess.STDOUT)
        try:
            yield _address(process, printed)
        finally:
            process.terminate()
            process.wait(30)


def _address(process: subprocess.Popen[bytes], printed: io.TextIOBase) -> str:
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        printed.seek(0)
        if found := re.search(r"The page is at (\S+)", printed.read()):
            return found[1]
        time.sleep(0.05)
    printed.seek(0)
    sys.exit(f"The page is not there: {printed.read()}")


def asked(address: str, sentences: Sequence[str]) -> list[float]:
    """Seconds of each search of one user; an answer without results is an error."""
    taken = []
    with Visitor(address) as visitor:
        for sentence in sentences:
            start = time.perf_counter()
            shown = visitor.type(sentence, k=K)
            taken.append(time.perf_counter() - start)
            if shown.count("data-number") != K:
                raise RuntimeError(f"Expected {K} results for {sentence!r}, found: {shown[:500]}")
    return taken


def bare(engine: SearchEngine, sentences: Sequence[str]) -> tuple[list[float], list[float]]:
    """Seconds of encoding and of searching, for each sentence."""
    encoding, searching = [], []
    for sentence in sentences:
        start = time.perf_counter()
        vectors = engine.encode_texts([sentence])
        encoded = time.perf_counter()
        engine.search_vectors(vectors, K, target="images")
        encoding.append(encoded - start)
        searching.append(time.perf_counter() - encoded)
    return encoding, searching


def line(name: str, taken: Sequence[float]) -> str:
    p50, p95 = np.percentile(taken, [50, 95]) * 1000
    return f"{name}: p50 {p50:.2f} ms, p95 {p95:.2f} ms"


def sentences_of(engine: SearchEngine, count: int) -> list[str]:
    """Captions of items, drawn from all over the index."""
    drawn = np.random.default_rng(0).choice(len(engine.items), count)
    return [engine.items.captions_at(int(row))[0] for row in drawn]


def measure(index: Path, users: int, searches: int) -> None:
    engine = SearchEngine.open(index, device="cpu")
    sentences = sentences_of(engine, users * searches)
    counts = engine.manifest.counts
    print(f"{counts['images']:,} photos and {counts['captions']:,} captions, {users} users × {searches} searches")
    bare(engine, sentences[:5])
    encoding, searching = bare(engine, sentences[:searches])
    print(line("bare, encoding", encoding))
    print(line("bare, searching", searching))
    print(line("bare, both", [one + other for one, other in zip(encoding, searching, strict=True)]), flush=True)
    with served(index) as address:
        asked(address, sentences[:3])
        print(line("page, one user", asked(address, sentences[:searches])), flush=True)
        with ThreadPoolExecutor(users) as pool:
            start = time.perf_counter()
            found = list(pool.map(lambda place: asked(address, sentences[place::users]), range(users)))
        every = [one for taken in found for one in taken]
        rate = len(every) / (time.perf_counter() - start)
        print(f"{line(f'page, {users} users at once', every)}, {len(every)} searches, no error, {rate:.1f} searches/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, help="a folder from xmodal index, with captions (default: one of scenes)")
    parser.add_argument("--items", type=int, default=8000, help="scenes in that index")
    parser.add_argument("--users", type=int, default=8, help="at once")
    parser.add_argument("--searches", type=int, default=100, help="of each user")
    parser.add_argument("--device", default="cpu", choices=("cpu",), help="where sentences are encoded here")
    options = parser.parse_args()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    print(describe(torch.device("cpu")), flush=True)
    with tempfile.TemporaryDirectory() as root:
        index = options.index or built_index(options.items, Path(root))
        measure(index, options.users, options.searches)


if __name__ == "__main__":
    main()
