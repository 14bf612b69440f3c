"""Items → checked sets, chunk by chunk: decoding runs ahead in threads, checking and saving behind, beside the network.

::

    cut into batches ─► decode, preprocess, collate ─► encode ─► check, round, put in order, save
       one thread            ``num_workers`` threads      here          one thread

Chunks follow one another without a pause. What waits between two stages is bounded.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL.Image import Image
from PIL.ImageOps import exif_transpose
from torch import Tensor

from xmodal.data.images import as_rgb, read_image
from xmodal.encoders.protocol import Collating, Encoder
from xmodal.errors import FeatureError
from xmodal.features.batches import Plan, cut_into_batches
from xmodal.features.checks import check_sets
from xmodal.features.precision import computing_in
from xmodal.types import RaggedFeatures

Input = Path | str | Image
Keep = Callable[[int, RaggedFeatures], None]
Given = TypeVar("Given")
Made = TypeVar("Made")
_WAITING = 2  # encoded batches that wait to be checked and saved
_MOST_THREADS = 16


@dataclass(frozen=True)
class Work:
    """What is to be encoded, and how.

    Args:
        encoder: prepared, and on ``device``.
        inputs: photos or captions, N.
        ids: their names in messages, N.
        plan: which of them are encoded together.
        dtype: of the sets that come out.
        precision: ``float32``, ``bfloat16`` or ``float16``, in which the network computes.
        device: where it does.
        num_workers: threads that decode ahead.
    """

    encoder: Encoder
    inputs: Sequence[Input]
    ids: Sequence[Hashable]
    plan: Plan
    dtype: str
    precision: str
    device: torch.device
    num_workers: int

    def item(self, distinct: int) -> Input:
        """An input that is equal to this distinct item."""
        return self.inputs[self.plan.first[distinct]]


class _Batch(NamedTuple):
    """Distinct items that are encoded together: ``positions`` in chunk ``number``; ``last`` of that chunk or not."""

    number: int
    positions: np.ndarray
    last: bool


def encode_chunks(work: Work, numbers: Iterable[int], keep: Keep, advance: Callable[[int], None]) -> None:
    """Encode these chunks of the plan; ``keep(number, sets)`` gets the sets of each, in the order of the plan.

    ``advance`` is called with the number of items (not only distinct ones) of every finished batch. Both are called
    in another thread. Chunks that are complete are kept even where a later batch fails.

    Raises:
        FeatureError: values that are not finite or too large for the dtype, or a wrong width or count.
        DataError: a photo that can't be decoded.
    """
    saving = _Saving(work, keep, advance)
    # a tokenizer keeps how it was told to pad and cut, so that two threads would disturb each other
    turn = Lock() if work.encoder.modality == "text" else nullcontext()

    def cut(number: int) -> list[_Batch]:
        with turn:
            return _cut(work, number)

    def load(batch: _Batch) -> tuple[_Batch, Any]:
        with turn:
            return batch, _load(work, batch)

    with _cores_for_this_thread(), closing(ahead(cut, numbers, 1)) as cuts:
        batches = (batch for chunk in cuts for batch in chunk)
        with saving, closing(ahead(load, batches, work.num_workers)) as loaded:
            for batch, inputs in loaded:
                with computing_in(work.precision, work.device):
                    sets = work.encoder.encode(inputs)
                saving.put(batch, sets)


def ahead(make: Callable[[Given], Made], given: Iterable[Given], threads: int) -> Generator[Made, None, None]:
    """``map(make, given)`` by threads, at most ``threads`` + 1 results ahead of the one that is asked for.

    Torch works on one core in each of them: a team of threads each would fight with the others and with the network.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead", initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[Future[Made]] = deque()
    try:
        for one in given:
            waiting.append(pool.submit(make, one))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _cores_for_this_thread() -> Iterator[None]:
    """This thread keeps torch's number of cores while threads of `ahead` set theirs, and later threads get it again.

    The number is kept per thread, but a thread that uses torch for the first time takes what was set last, anywhere.
    """
    cores = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        yield
    finally:
        torch.set_num_threads(cores)


def decoding_threads(num_workers: int | None, device: torch.device, modality: str) -> int:
    """How many threads load inputs ahead of the network; ``num_workers`` where it is given, at least one.

    Beside a network on the CPU, more than one thread takes from the network what it needs; a GPU is fed by all cores.
    """
    if num_workers is not None:
        return max(1, num_workers)
    if device.type == "cpu" or modality == "text":
        return 1
    return min(_MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _cut(work: Work, number: int) -> list[_Batch]:
    start, end = work.plan.spans[number]
    batches = cut_into_batches(work.encoder, [work.item(distinct) for distinct in range(start, end)])
    return [_Batch(number, positions, at == len(batches) - 1) for at, positions in enumerate(batches)]


def _load(work: Work, batch: _Batch) -> Any:
    """The items of a batch decoded and made ready for the network, and put together where the encoder can do so."""
    start = work.plan.spans[batch.number][0]
    encoder = work.encoder
    items = [encoder.preprocess(_opened(work.item(int(start + row)), encoder.modality)) for row in batch.positions]
    return encoder.collate(items) if isinstance(encoder, Collating) else items


def _opened(item: Input, modality: str) -> Image | str:
    """What ``Encoder.preprocess`` expects: a sentence, or a photo in RGB."""
    if modality == "text":
        if not isinstance(item, str):
            raise FeatureError(f"A text encoder encodes sentences (str), found {type(item).__name__}.")
        return item
    return as_rgb(exif_transpose(item)) if isinstance(item, Image) else read_image(Path(item))


class _Saving:
    """One thread that takes encoded batches, checks them, and keeps a chunk as soon as its last batch has come."""

    def __init__(self, work: Work, keep: Keep, advance: Callable[[int], None]) -> None:
        self.work = work
        self.keep = keep
        self.advance = advance
        self.waiting: deque[Future[None]] = deque()
        self.chunk: list[tuple[np.ndarray, RaggedFeatures]] = []  # positions and sets of its batches so far
        self.failed = False

    def __enter__(self) -> "_Saving":
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="save")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown(wait=True)  # what is encoded is kept, even where something else went wrong
        if kind is None:
            for future in self.waiting:
                future.result()

    def put(self, batch: _Batch, sets: list[Tensor]) -> None:
        """Hand over a batch; raises what went wrong with an earlier one."""
        self.waiting.append(self.pool.submit(self._take, batch, sets))
        while len(self.waiting) > _WAITING:
            self.waiting.popleft().result()

    def _take(self, batch: _Batch, sets: list[Tensor]) -> None:
        if self.failed:
            return  # a chunk that lacks a batch must not be kept
        try:
            self._add(batch, sets)
        except BaseException:
            self.failed = True
            raise

    def _add(self, batch: _Batch, sets: list[Tensor]) -> None:
        work = self.work
        distinct = work.plan.spans[batch.number][0] + batch.positions
        ids = [work.ids[row] for row in work.plan.first[distinct]]
        self.chunk.append((batch.positions, check_sets(sets, ids, work.encoder, work.dtype)))
        if batch.last:
            self.keep(batch.number, _in_order(self.chunk))
            self.chunk = []
        self.advance(int(work.plan.counts[distinct].sum()))


def _in_order(batches: list[tuple[np.ndarray, RaggedFeatures]]) -> RaggedFeatures:
    """The sets of a chunk, whose batches hold those at the given positions."""
    positions = np.concatenate([rows for rows, _ in batches])
    lengths = np.concatenate([sets.lengths for _, sets in batches])
    values = np.concatenate([sets.values for _, sets in batches])
    joined = RaggedFeatures(values, np.concatenate([[0], np.cumsum(lengths)]))
    return joined if (np.diff(positions) > 0).all() else joined.select(np.argsort(positions))
