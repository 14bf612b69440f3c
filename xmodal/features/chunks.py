"""A feature file that is written in finished pieces, so that a run may be killed at any moment and continued."""

import shutil
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from xmodal.errors import FeatureError
from xmodal.features.batches import Plan
from xmodal.features.hdf5_writing import (
    READ_ERRORS,
    create_values,
    pieces,
    read_attributes,
    remove_temporaries,
    says_full,
    write_attributes,
    write_whole,
)
from xmodal.features.store import FeatureOrigin, cut, finish_file, is_complete, rises_to
from xmodal.types import RaggedFeatures

_BLOCK_BYTES = 2**25  # of values that merging holds in memory at a time


class DamagedChunkError(FeatureError):
    """A chunk that was finished can't be read any more."""

    def __init__(self, path: Path, number: int, reason: Exception) -> None:
        self.number = number
        super().__init__(
            f"{path} was finished, but can't be read any more ({reason}): the disk may be failing. "
            "Delete it and run the same command again: that piece alone will be made anew."
        )


class ChunkedFile:
    """Chunks of a feature file beside the place where it will be: ``<name>.parts/chunk-000123.h5``.

    A chunk holds the sets of a span of distinct items, in whole batches, so that resuming cuts the items into the same
    batches as a run without interruption. The key in the name keeps the chunks of other encoders and data sets apart.

    Args:
        path: the final file.
        origin: what makes the features.
        ids: one id per item, N in all.
        batch_size: items of one forward pass.
        chunk_size: about how many distinct items a chunk holds (rounded down to whole batches, at least one).
        keys: equal for equal items; None: all differ.
        precision: in which the encoder computes; chunks and files of another are not taken for these.
    """

    def __init__(
        self,
        path: Path,
        origin: FeatureOrigin,
        ids: Sequence[int | str],
        batch_size: int,
        chunk_size: int,
        keys: Sequence[Hashable] | None = None,
        precision: str = "float32",
    ) -> None:
        self.path = path
        self.origin = origin
        self.ids = ids
        self.precision = precision
        self.parts = path.with_name(f"{path.name}.parts")
        self.plan = Plan.of(range(len(ids)) if keys is None else keys, batch_size, chunk_size)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First distinct item and end of every chunk."""
        return self.plan.spans

    def is_complete(self) -> bool:
        """Whether the final file is there and good; a bad one is reported and will be replaced."""
        return is_complete(self.path, self.origin, self.ids, self.precision)

    def missing(self) -> list[int]:
        """Numbers of the chunks that are not finished yet."""
        return [number for number in range(len(self.spans)) if not self.has(number)]

    def useless(self) -> int:
        """How many chunks are there that this file has no use for: cut or computed in another way, or damaged."""
        there = sum(1 for _ in self.parts.glob("chunk-*.h5"))
        return max(0, there - len(self.spans) + len(self.missing()))  # other ranks may be finishing some right now

    def has(self, number: int) -> bool:
        """Whether chunk ``number`` is there, sound, and cut and computed as this file wants it.

        Its values are not read; one without checksums, which older versions made, does not count.
        """
        start, end = self.spans[number]
        try:
            with h5py.File(self._chunk(number), "r") as chunk:
                found, offsets, values = read_attributes(chunk), chunk["offsets"], chunk["values"]
                alike = all(found.get(name) == value for name, value in self._marks(number).items())
                checked = offsets.fletcher32 and values.dtype == np.dtype(self.origin.dtype)
                return bool(alike and checked) and len(offsets) == end - start + 1 and rises_to(offsets[:], len(values))
        except READ_ERRORS:
            return False

    def remove_temporaries(self) -> None:
        """Remove what a killed process left half written, up to the size of the file; the caller holds the lock."""
        remove_temporaries(self.parts)

    def write(self, number: int, features: RaggedFeatures) -> None:
        """Make chunk ``number`` visible, whole."""

        def fill(file: h5py.File) -> None:
            values = create_values(file, len(features.values), features.feature_dim, self.origin.dtype)
            values[...] = features.values
            file.create_dataset("offsets", data=features.offsets, **pieces(len(features.offsets)))
            write_attributes(file, self._marks(number))

        self._write_whole(self._chunk(number), fill)

    def merge(self, feature_dim: int, working: Callable[[], None] = lambda: None) -> None:
        """Join all chunks into the final file, every item with its set, and remove them.

        Holds a bounded number of vectors in memory. ``working`` is called now and then.

        Raises:
            DamagedChunkError: a chunk can't be read.
            FeatureError: no space left.
        """
        lengths = self._lengths()[self.plan.codes]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        size = int(offsets[-1]) * feature_dim * np.dtype(self.origin.dtype).itemsize

        def fill(file: h5py.File) -> None:
            values = create_values(file, int(offsets[-1]), feature_dim, self.origin.dtype)
            for rows in cut(np.arange(len(lengths)), lengths * feature_dim * values.dtype.itemsize, _BLOCK_BYTES):
                start, end = offsets[rows[0]], offsets[rows[-1] + 1]
                values[start:end] = self._sets(self.plan.codes[rows]).values
                working()
            write_attributes(file, {"computed_in": self.precision})
            finish_file(file, self.origin, self.ids, offsets)

        self._require_space(size)
        self._write_whole(self.path, fill)
        self.clean()

    def clean(self) -> None:
        """Remove the chunks."""
        shutil.rmtree(self.parts, ignore_errors=True)

    def _marks(self, number: int) -> dict[str, str | int | bool]:
        start, end = self.spans[number]
        cut: dict[str, str | int | bool] = {"start": start, "end": end, "of": len(self.spans), "plan": self.plan.digest}
        return cut | {"precision": self.precision, "complete": True}

    def _chunk(self, number: int) -> Path:
        return self.parts / f"chunk-{number:06d}.h5"

    def _lengths(self) -> np.ndarray:
        """Number of vectors of every distinct item: (U,)."""
        parts = [np.zeros(0, np.int64)]
        for number in range(len(self.spans)):
            with self._readable(number) as chunk:
                parts.append(np.diff(_offsets(chunk)))
        return np.concatenate(parts)

    def _sets(self, codes: np.ndarray) -> RaggedFeatures:
        """The sets of these distinct items, in that order, each as often as it is named."""
        wanted, order = np.unique(codes, return_inverse=True)
        parts = [
            self._read(int(number), wanted[wanted // self.plan.step == number] % self.plan.step)
            for number in np.unique(wanted // self.plan.step)
        ]
        together = _joined(parts)
        return together if np.array_equal(order, np.arange(len(wanted))) else together.select(order)

    def _read(self, number: int, rows: np.ndarray) -> RaggedFeatures:
        """Sets of one chunk, ``rows`` rising; neighbours are read at once."""
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        with self._readable(number) as chunk:
            offsets = _offsets(chunk)
            values = np.concatenate([chunk["values"][offsets[run[0]] : offsets[run[-1] + 1]] for run in runs])
        return RaggedFeatures(values, np.concatenate([[0], np.cumsum(np.diff(offsets)[rows])]))

    @contextmanager
    def _readable(self, number: int) -> Iterator[h5py.File]:
        try:
            with h5py.File(self._chunk(number), "r") as chunk:
                yield chunk
        except READ_ERRORS as error:
            raise DamagedChunkError(self._chunk(number), number, error) from error

    def _write_whole(self, path: Path, fill: Callable[[h5py.File], None]) -> None:
        try:
            write_whole(path, self.parts, fill)
        except (OSError, RuntimeError) as error:  # h5py's close() turns an OSError into a RuntimeError
            if not says_full(error):
                raise
            raise FeatureError(self._full(path)) from error

    def _require_space(self, size: int) -> None:
        free = shutil.disk_usage(self.path.parent).free
        if free < size:
            raise FeatureError(self._full(self.path, f", and the file needs {size:,} bytes"))

    def _full(self, path: Path, needed: str = "") -> str:
        total = len(self.spans)
        free = shutil.disk_usage(self.path.parent).free
        return (
            f"No space left for features: {path} could not be written ({free:,} bytes free on that disk{needed}; a "
            f"quota or a limit on file sizes counts too). {total - len(self.missing())} of {total} chunks are finished "
            f"and kept in {self.parts}. Free some space and run the same command again: it continues where it stopped. "
            "Or choose another disk with paths.features_dir=…"
        )


def _offsets(chunk: h5py.File) -> np.ndarray:
    offsets: np.ndarray = chunk["offsets"][:]
    if not rises_to(offsets, len(chunk["values"])):
        raise ValueError(f"its offsets don't rise from 0 to the {len(chunk['values'])} vectors it holds")
    return offsets


def _joined(parts: Sequence[RaggedFeatures]) -> RaggedFeatures:
    lengths = np.concatenate([part.lengths for part in parts])
    return RaggedFeatures(np.concatenate([p.values for p in parts]), np.concatenate([[0], np.cumsum(lengths)]))
