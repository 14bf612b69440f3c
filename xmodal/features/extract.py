"""Frozen encoders over photos and captions: into the feature store (resumable), or into memory."""

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from PIL.Image import Image
from PIL.ImageOps import exif_transpose
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from xmodal.data.images import as_rgb, read_image
from xmodal.encoders.protocol import Encoder
from xmodal.errors import ConfigError, FeatureError
from xmodal.features.chunks import ChunkedFile
from xmodal.features.store import FeatureOrigin, FeatureStore
from xmodal.types import RaggedFeatures

log = logging.getLogger(__name__)

Input = Path | str | Image
FLOAT16_MAX = 65504.0
_SECONDS_BETWEEN_LINES = 10.0


def extract(
    encoder: Encoder,
    inputs: Sequence[Input],
    ids: Sequence[int | str],
    *,
    store: FeatureStore,
    data_name: str,
    encoder_name: str,
    data_fingerprint: str,
    dtype: str = "float16",
    chunk_size: int = 512,
    num_workers: int = 0,
    description: str = "features",
) -> Path:
    """Encode N items into the store and return the file; at once where the store has it already.

    Finished chunks survive a kill, a full disk or Ctrl-C: the same call continues from them and ends with the same
    datasets as an uninterrupted run. A second process that wants the same file waits for the first.

    Args:
        encoder: prepared; its ``batch_size`` items are encoded at a time.
        inputs: photos (files or PIL images) or sentences.
        ids: one per input.
        store, data_name, encoder_name: where the file goes and how it is called.
        data_fingerprint: digest of ids and contents of the inputs.
        dtype: ``float16`` (half the size) or ``float32``.
        chunk_size: items between two savings.
        num_workers: threads that decode photos ahead of the network (0 works with one).
        description: what the progress bar says.

    Raises:
        FeatureError: values that are not finite or too large for ``dtype``, a wrong width or count, or a full disk.
        ConfigError: a ``dtype`` or ``chunk_size`` out of range.
    """
    if len(inputs) != len(ids):
        raise FeatureError(f"{len(inputs)} inputs were given with {len(ids)} ids; each input needs one id.")
    if chunk_size < 1:
        raise ConfigError(f"features.chunk_size must be at least 1, found {chunk_size}.")
    origin = FeatureOrigin(encoder.fingerprint(), data_fingerprint, dtype, encoder.modality)
    path = store.path(data_name, encoder_name, origin.key)
    target = ChunkedFile(path, origin, ids, encoder.batch_size, chunk_size)
    if target.is_complete():
        target.clean()  # a run may have been killed between the last rename and the removal of its chunks
        log.info("Features of %s with %s: %s", data_name, encoder_name, path)
        return path
    with _only_one(path):
        if not target.is_complete():
            _fill(target, encoder, inputs, num_workers, description)
    return path


def encode_all(encoder: Encoder, inputs: Sequence[Input], num_workers: int = 0) -> RaggedFeatures:
    """Encode items into memory, as float32, storing nothing.

    Raises:
        FeatureError: values that are not finite, or a wrong width or count.
    """
    batches = _encoded(encoder, inputs, range(len(inputs)), num_workers)
    sets = [features for batch in batches for features in batch]
    if not sets:
        return RaggedFeatures(np.zeros((0, encoder.feature_dim), np.float32), np.zeros(1, np.int64))
    return RaggedFeatures.from_sets(sets)


def _fill(target: ChunkedFile, encoder: Encoder, inputs: Sequence[Input], num_workers: int, description: str) -> None:
    missing = target.missing()
    spans = target.spans
    done = len(inputs) - sum(spans[number][1] - spans[number][0] for number in missing)
    log.info("Extracting %s into %s (%d of %d already done)", description, target.path, done, len(inputs))
    with _progress(description, len(inputs), done) as advance:
        for number in missing:
            start, end = spans[number]
            ids = target.ids[start:end]
            sets = []
            for batch in _encoded(encoder, inputs[start:end], ids, num_workers, target.origin.dtype):
                sets += batch
                advance(len(batch))
            target.write(number, RaggedFeatures.from_sets(sets, target.origin.dtype))
    target.merge(encoder.feature_dim)


def _encoded(
    encoder: Encoder,
    inputs: Sequence[Input],
    ids: Sequence[int | str],
    num_workers: int,
    dtype: str = "float32",
) -> Iterator[list[np.ndarray]]:
    """The checked sets of each batch of ``encoder.batch_size`` inputs."""
    batches = [inputs[start : start + encoder.batch_size] for start in range(0, len(inputs), encoder.batch_size)]

    def load(batch: Sequence[Input]) -> list[Any]:
        return [encoder.preprocess(_opened(item, encoder.modality)) for item in batch]

    for number, loaded in enumerate(_ahead(load, batches, num_workers)):
        sets = [features.numpy() for features in encoder.encode(loaded)]
        first = number * encoder.batch_size
        _check_sets(sets, ids[first : first + len(loaded)], encoder, dtype)
        yield sets


def _opened(item: Input, modality: str) -> Image | str:
    """What ``Encoder.preprocess`` expects: a sentence, or a photo in RGB."""
    if modality == "text":
        if not isinstance(item, str):
            raise FeatureError(f"A text encoder encodes sentences (str), found {type(item).__name__}.")
        return item
    return as_rgb(exif_transpose(item)) if isinstance(item, Image) else read_image(Path(item))


def _ahead(
    load: Callable[[Sequence[Input]], list[Any]], batches: list[Sequence[Input]], num_workers: int
) -> Iterator[list[Any]]:
    """Loaded batches in order, decoded by threads while the network works on earlier ones (PIL releases the GIL)."""
    workers = max(1, num_workers)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[Future[list[Any]]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(load, batch))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check_sets(sets: list[np.ndarray], ids: Sequence[int | str], encoder: Encoder, dtype: str) -> None:
    name = type(encoder).__name__
    if len(sets) != len(ids):
        raise FeatureError(f"{name} gave {len(sets)} sets for a batch of {len(ids)} items.")
    for item, features in zip(ids, sets, strict=True):
        if features.ndim != 2 or features.shape[1] != encoder.feature_dim:
            raise FeatureError(
                f"{name} gave features of shape {features.shape} for item {item!r}; "
                f"expected (n, {encoder.feature_dim})."
            )
    _check_range(sets, ids, name, dtype)


def _check_range(sets: list[np.ndarray], ids: Sequence[int | str], name: str, dtype: str) -> None:
    largest = [np.abs(features).max(initial=0.0) for features in sets]  # NaN and infinity stay what they are
    wrong = [repr(item) for item, value in zip(ids, largest, strict=True) if not np.isfinite(value)]
    if wrong:
        raise FeatureError(
            f"{name} gave NaN or infinite features for {len(wrong)} of the {len(ids)} items of a batch, the first "
            f"being {', '.join(wrong[:5])}. Look at these items and at the encoder's weights; no vector of this batch "
            "was stored."
        )
    large = [(value, item) for item, value in zip(ids, largest, strict=True) if value > FLOAT16_MAX]
    if dtype == "float16" and large:
        value, item = large[0]
        raise FeatureError(
            f"{name} gave the feature value {value:.6g} for item {item!r}; float16 ends at {FLOAT16_MAX:.0f}. "
            "Set features.dtype=float32."
        )


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Hold the right to write ``path``; the operating system takes it back from a process that dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("Another process is extracting %s; waiting for it.", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _progress(description: str, total: int, done: int) -> Iterator[Callable[[int], None]]:
    """A bar with rate and remaining time on a terminal, else a log line every ten seconds."""
    if sys.stderr.isatty():
        with _bar(description, total, done) as advance:
            yield advance
    else:
        yield _LoggedProgress(description, total, done)


@contextmanager
def _bar(description: str, total: int, done: int) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task: TaskID = progress.add_task(description, total=total, completed=done, rate="")
        start, encoded = time.monotonic(), 0

        def advance(count: int) -> None:
            nonlocal encoded
            encoded += count
            rate = encoded / max(1e-6, time.monotonic() - start)
            progress.update(task, advance=count, rate=f"{rate:.1f}/s")

        yield advance


class _LoggedProgress:
    """Called with the number of items that were just encoded; logs rate and remaining time now and then."""

    def __init__(self, description: str, total: int, done: int) -> None:
        self.description = description
        self.total = total
        self.done = done
        self.before = done
        self.start = self.last = time.monotonic()

    def __call__(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last < _SECONDS_BETWEEN_LINES and self.done < self.total:
            return
        self.last = now
        rate = (self.done - self.before) / max(1e-6, now - self.start)
        left = (self.total - self.done) / rate
        log.info("%s: %d of %d, %.1f/s, %.0f s left", self.description, self.done, self.total, rate, left)
