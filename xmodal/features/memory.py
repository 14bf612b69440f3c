"""How the memory for the features of a run is shared out, and what reading them from disk needs of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context

from xmodal.errors import ConfigError
from xmodal.features.store import FeatureFile
from xmodal.types import FeatureSource

GB = 10**9
BLOCKS_PER_BUFFER = 16  # neighbours stay together in a block; a buffer shuffles this many blocks from all over
PAIR_BYTES = 64  # of row numbers, whatever the size of the sets
_BATCHES_UNDER_WAY = 4  # stored, as float32, handed to the trainer, and on the way to an accelerator
_READING_BYTES = 2**23  # at most, for HDF5's cache and for what the allocator doesn't give back


@dataclass(frozen=True)
class Budget:
    """How the memory for features is shared out, in bytes.

    Args:
        memory: all of it.
        resident: what is held as long as the run.
        batches: what the largest batches under way may take.
        reading: for reading itself, at most a fifth of all.
    """

    memory: int
    resident: int = 0
    batches: int = 0
    reading: int = 0

    @property
    def left(self) -> int:
        """For what is read; less than nothing where the memory is too small."""
        return self.memory - self.resident - self.batches - self.reading

    @property
    def buffer(self) -> int:
        """For one of the two buffers of training: three eighths of what is left."""
        return max(0, self.left) * 3 // 8

    @property
    def block(self) -> int:
        """For one of the two pieces of a gallery; training, half-way through an epoch, may hold its buffers still."""
        return max(0, self.left) // 8

    def enough_for(self, buffer: int) -> int:
        """The least memory with buffers of this size."""
        needed = self.resident + self.batches + -(-buffer * 8 // 3)
        return min(needed + _READING_BYTES, -(-needed * 5 // 4) + 4) if self.reading else needed


def budget(
    memory_gb: float, batch_size: int, batched: Sequence[FeatureSource], held: Sequence[FeatureSource]
) -> Budget:
    """Share out the memory for features.

    Args:
        memory_gb: all of it, in 10⁹ bytes.
        batch_size: items of a batch.
        batched: what batches are made of.
        held: what exists as long as the run; of a file, that is its table of distinct vectors.
    """
    batches = _BATCHES_UNDER_WAY * sum(_largest_batch(source, batch_size) for source in batched)
    memory = in_bytes(memory_gb)
    return Budget(memory, sum(map(resident, held)), batches, min(_READING_BYTES, memory // 5))


def least_buffer(image_bytes: int, pair_bytes: int) -> int:
    """The buffer from which on any block of pairs fits, however the pairs are cut.

    A block takes at most a sixteenth of the buffer and one image more, whose captions were parted; or it is one pair.

    Args:
        image_bytes: of the largest set of an image that is read.
        pair_bytes: of the largest pair, `PAIR_BYTES` included.
    """
    return max(pair_bytes, -(-image_bytes * BLOCKS_PER_BUFFER // (BLOCKS_PER_BUFFER - 1)))


def largest_set(source: FeatureSource) -> int:
    """Bytes to read for the largest set; nothing for what is in memory."""
    return int(source.lengths.max(initial=0)) * source.vector_bytes if isinstance(source, FeatureFile) else 0


def resident(source: FeatureSource) -> int:
    """Bytes in memory throughout: of a file, its table of distinct vectors."""
    if isinstance(source, FeatureFile):
        return source.offsets.nbytes + (0 if source.table is None else source.table.nbytes)
    return int(getattr(source, "nbytes", 0))


def in_bytes(memory_gb: float) -> int:
    """``features.memory_gb`` as a number of bytes.

    Raises:
        ConfigError: no positive number.
    """
    if not (math.isfinite(memory_gb) and memory_gb > 0):
        raise ConfigError(f"features.memory_gb must be a number above 0, found {memory_gb}.")
    return round(memory_gb * GB)


def in_gb(size: int) -> str:
    """Bytes in GB to six digits, rounded up: as ``features.memory_gb`` no less than ``size``."""
    rounded = Context(prec=6, rounding=ROUND_CEILING).create_decimal(size)
    return f"{(rounded / GB).normalize():f}" if size else "0"


def _largest_batch(source: FeatureSource, batch_size: int) -> int:
    """Bytes of a padded batch in which the longest set occurs."""
    return min(batch_size, len(source)) * int(source.lengths.max(initial=1)) * source.feature_dim * 4
