"""Batches of features that are read from disk piece by piece, while training goes along, within a given memory.

Two buffers take turns: a thread reads the next one while batches are made of the current one.
"""

import logging
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, distributed

from xmodal.errors import ConfigError
from xmodal.features.memory import BLOCKS_PER_BUFFER, GB, PAIR_BYTES, Budget, in_gb, least_buffer, resident
from xmodal.features.readers import PartReader, Reader, SetReader
from xmodal.features.store import FeatureFile, cut
from xmodal.types import FeatureBatch, PairBatch

log = logging.getLogger(__name__)

Key = TypeVar("Key")
Value = TypeVar("Value")
Batch = TypeVar("Batch")


class BlockShuffle:
    """Blocks of neighbours in an order that depends on seed and epoch alone, gathered into buffers, shuffled within.

    Lightning calls ``set_epoch``; without it every pass counts as the next epoch.

    Args:
        blocks: numbers of the pairs of each block.
        sizes: bytes of each block.
        buffer_bytes: of a buffer, at most.
    """

    def __init__(
        self, blocks: Sequence[np.ndarray], sizes: np.ndarray, buffer_bytes: int, seed: int, epoch: int = 0
    ) -> None:
        self.blocks = blocks
        self.sizes = sizes
        self.buffer_bytes = buffer_bytes
        self.seed = seed
        self.epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def buffers(self) -> list[np.ndarray]:
        """The pairs of every buffer of this pass, in the order in which they are trained on."""
        random = np.random.default_rng([self.seed, self.epoch])
        self.epoch += 1
        order = random.permutation(len(self.blocks))
        gathered = cut(order, self.sizes[order], self.buffer_bytes)
        return [random.permutation(np.concatenate([self.blocks[block] for block in some])) for some in gathered]


class PairStream:
    """Batches of matching pairs, of which at least one side is read from disk: each pair once per pass.

    Pairs are cut into blocks of neighbouring images with all their captions; blocks are shuffled, as many as fit are
    read into a buffer, and its pairs are shuffled. What a buffer leaves over goes into a batch with the first pairs
    of the next, so that only the last batch is smaller. Of several processes (``torch.distributed``), process r of W
    takes batches r, r + W, …, all the same number: up to W − 1 last batches are left out.

    Args:
        image: image sets, in memory or in a file.
        text: caption sets, likewise.
        images: image row of each of P pairs.
        captions: caption row of each pair.
        batch_size: pairs per batch.
        shares: of the memory.
        seed, epoch: what the order depends on, beside ``shares``.

    Raises:
        ConfigError: sets that are too large for a buffer, or none of the memory left; fewer batches than processes.
    """

    def __init__(
        self,
        image: Reader | FeatureFile,
        text: Reader | FeatureFile,
        images: np.ndarray,
        captions: np.ndarray,
        batch_size: int,
        shares: Budget,
        seed: int,
        epoch: int = 0,
    ) -> None:
        self.image = image
        self.text = text
        self.images = images
        self.captions = captions
        self.batch_size = batch_size
        image_bytes, text_bytes = _row_bytes(image, images), _row_bytes(text, captions)
        _require_room(image_bytes, text_bytes, batch_size, shares, _all_in_memory(image, text, shares))
        blocks, sizes = _blocks(image_bytes, text_bytes, images, shares.buffer)
        self.sampler = BlockShuffle(blocks, sizes, shares.buffer, seed, epoch)
        self._passes = _Passes()
        self._share_out()

    def __len__(self) -> int:
        """Batches of this process."""
        return self._batches_in_all // _processes()[1]

    def __iter__(self) -> Iterator[PairBatch]:
        return self._passes.begin(self._pass())

    def close(self) -> None:
        """End a pass that was left early, and its thread."""
        self._passes.close()

    @property
    def _batches_in_all(self) -> int:
        return -(-len(self.captions) // self.batch_size)

    def _share_out(self) -> None:
        rank, world = _processes()
        surplus = self._batches_in_all % world
        if self._batches_in_all < world:
            raise ConfigError(
                f"{world} processes can't share {self._batches_in_all} batches of data.batch_size={self.batch_size} "
                f"({len(self.captions)} pairs). Lower data.batch_size, or trainer.devices."
            )
        if surplus and rank == 0:
            log.info("The last %d of %d batches of an epoch are left out, %d processes taking as many each.",
                     surplus, self._batches_in_all, world)  # fmt: skip

    def _pass(self) -> Generator[PairBatch, None, None]:
        rank, world = _processes()
        own = range(rank, len(self) * world, world)
        begun: PairBatch | None = None  # a batch whose other pairs come with the next buffer
        start = 0
        with closing(read_ahead(self._read, self.sampler.buffers())) as buffers:
            for buffer in buffers:
                end = start + len(buffer.images)
                for number in range(start // self.batch_size, -(-end // self.batch_size)):
                    if number not in own:
                        continue
                    first, last = number * self.batch_size, min((number + 1) * self.batch_size, len(self.captions))
                    batch = buffer.batch(max(first, start) - start, min(last, end) - start)
                    begun = batch if begun is None else _joined(begun, batch)
                    if last <= end:
                        yield _pinned(begun)
                        begun = None
                start = end
                del buffer  # before the one after the next is begun

    def _read(self, pairs: np.ndarray) -> "_Buffer":
        images, captions = self.images[pairs], self.captions[pairs]
        image_sets, text_sets = _part(self.image, images), _part(self.text, captions)
        return _Buffer(image_sets, text_sets, torch.from_numpy(images), torch.from_numpy(captions))


class SetStream:
    """Batches of items of one side, in order, read from a file in pieces of whole batches.

    Args:
        file: the sets.
        rows: those wanted.
        image_ids: the image row that each belongs to.
        batch_size: items per batch.
        block_bytes: of a piece, at most, unless a single batch is larger.
    """

    def __init__(
        self, file: FeatureFile, rows: np.ndarray, image_ids: np.ndarray, batch_size: int, block_bytes: int
    ) -> None:
        self.file = file
        self.rows = rows
        self.image_ids = torch.from_numpy(image_ids)
        self.batch_size = batch_size
        starts = np.arange(0, len(rows), batch_size)
        sizes = np.add.reduceat(_row_bytes(file, rows), starts) if len(rows) else starts
        self.pieces = cut(starts, sizes, block_bytes)
        self._passes = _Passes()

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[FeatureBatch]:
        return self._passes.begin(self._pass())

    def close(self) -> None:
        """End a pass that was left early, and its thread."""
        self._passes.close()

    def _pass(self) -> Generator[FeatureBatch, None, None]:
        first = 0
        with closing(read_ahead(self._read, self.pieces)) as pieces:
            for sets in pieces:  # no enumerate, no zip: they keep hold of what they gave last
                count = len(sets.offsets) - 1
                for rows in torch.arange(count).split(self.batch_size):
                    yield _pinned_side(sets.batch(rows, self.image_ids[rows + first]))
                first += count
                del sets

    def _read(self, starts: np.ndarray) -> SetReader:
        return SetReader(self.file.select(self.rows[starts[0] : starts[-1] + self.batch_size]))


class _Passes:
    """The pass that is going on, if any; whoever iterates keeps it alive, and its end is the end of its thread.

    A reference from a stream to its own pass would be a cycle, which is cleared some time or other.
    """

    def __init__(self) -> None:
        self._running: weakref.ref[Generator] | None = None

    def begin(self, one: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
        self.close()
        self._running = weakref.ref(one)
        return one

    def close(self) -> None:
        running = None if self._running is None else self._running()
        if running is not None:
            running.close()

    def __getstate__(self) -> dict[str, None]:
        return {"_running": None}  # no other process goes on with it


@dataclass(frozen=True)
class _Buffer:
    """Pairs whose sets are in memory, in their order."""

    image_sets: Reader
    text_sets: Reader
    images: Tensor
    captions: Tensor

    def batch(self, start: int, end: int) -> PairBatch:
        images, captions = self.images[start:end], self.captions[start:end]
        return PairBatch(self.image_sets.batch(images, images), self.text_sets.batch(captions, images))


def read_ahead(read: Callable[[Key], Value], keys: Sequence[Key]) -> Generator[Value, None, None]:
    """``read(key)`` for every key, in order, the next one read by a thread while the last one is used.

    No more than two values exist at a time where the caller deletes each before it asks for the next. What goes wrong
    in the thread is raised here. Closing the generator waits for the thread and ends it.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
    try:
        waiting: Future[Value] | None = pool.submit(read, keys[0]) if len(keys) else None
        for following in range(1, len(keys) + 1):
            assert waiting is not None
            ready = waiting.result()
            waiting = pool.submit(read, keys[following]) if following < len(keys) else None
            yield ready
            del ready
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _blocks(
    image_bytes: np.ndarray, text_bytes: np.ndarray, images: np.ndarray, buffer_bytes: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Numbers of the pairs of each block, and its bytes: neighbouring images with all their captions.

    The captions of one image are parted only where they alone are larger than a block.
    """
    order = np.argsort(images, kind="stable")
    is_first = np.diff(images[order], prepend=-1) != 0
    own = PAIR_BYTES + text_bytes[order]
    blocks = cut(order, own + np.where(is_first, image_bytes[order], 0), max(1, buffer_bytes // BLOCKS_PER_BUFFER))
    sizes = []
    for pairs in blocks:
        firsts = np.unique(images[pairs], return_index=True)[1]
        sizes.append(int(len(pairs) * PAIR_BYTES + text_bytes[pairs].sum() + image_bytes[pairs[firsts]].sum()))
    return blocks, np.array(sizes, dtype=np.int64)


def _require_room(
    image_bytes: np.ndarray, text_bytes: np.ndarray, batch_size: int, shares: Budget, enough: int
) -> None:
    """Raise ConfigError where a buffer might not hold what is read together; more memory never makes it fail."""
    needed = least_buffer(int(image_bytes.max(initial=0)), int((image_bytes + text_bytes).max(initial=0)) + PAIR_BYTES)
    if shares.buffer < needed:
        raise ConfigError(
            f"features.memory_gb={shares.memory / GB:.6g} is too small to stream these features: what is in memory "
            f"takes {in_gb(shares.resident)} GB of it, the largest batches of {batch_size} that are possible, several "
            f"at a time, {in_gb(shares.batches)} GB, and each of two buffers has to hold {in_gb(needed)} GB. Set it to "
            f"at least {in_gb(min(enough, shares.enough_for(needed)))}, or lower data.batch_size."
        )


def _all_in_memory(image: Reader | FeatureFile, text: Reader | FeatureFile, shares: Budget) -> int:
    """The memory with which nothing has to be streamed, which is less where features are few and batches large."""
    files = [side for side in (image, text) if isinstance(side, FeatureFile)]
    return shares.resident + sum(file.nbytes - resident(file) for file in files)


def _row_bytes(side: Reader | FeatureFile, rows: np.ndarray) -> np.ndarray:
    """Bytes to read for each of these rows; nothing for what is in memory."""
    if isinstance(side, FeatureFile):
        return side.lengths[rows] * side.vector_bytes
    return np.zeros(len(rows), dtype=np.int64)


def _part(side: Reader | FeatureFile, rows: np.ndarray) -> Reader:
    """The sets of these rows in memory."""
    if isinstance(side, FeatureFile):
        rising = np.unique(rows)
        return PartReader(rising, side.select(rising))
    return side


def _joined(one: PairBatch, other: PairBatch) -> PairBatch:
    return PairBatch(*(_joined_side(*sides) for sides in zip(one, other, strict=True)))


def _joined_side(one: FeatureBatch, other: FeatureBatch) -> FeatureBatch:
    """Both batches as one, padded to the longer."""
    length = max(one.x.shape[1], other.x.shape[1])
    x = torch.cat([torch.nn.functional.pad(part.x, (0, 0, 0, length - part.x.shape[1])) for part in (one, other)])
    masks = [torch.nn.functional.pad(part.mask, (0, length - part.mask.shape[1])) for part in (one, other)]
    return FeatureBatch(x, torch.cat(masks), torch.cat([one.image_ids, other.image_ids]), one.pooled)


def _pinned(batch: PairBatch) -> PairBatch:
    return PairBatch(*(_pinned_side(side) for side in batch))


def _pinned_side(batch: FeatureBatch) -> FeatureBatch:
    """In memory from which an accelerator copies while it computes, where there is one."""
    if not torch.cuda.is_available():
        return batch
    return FeatureBatch(batch.x.pin_memory(), batch.mask.pin_memory(), batch.image_ids.pin_memory(), batch.pooled)


def _processes() -> tuple[int, int]:
    """Number of this process and of all that train together."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
