"""A feature file that is written in finished pieces, so that a run may be killed at any moment and continued."""

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from xmodal.errors import FeatureError
from xmodal.features.store import FeatureFile, FeatureOrigin, finish_file, stored_ids
from xmodal.types import RaggedFeatures

log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ChunkedFile:
    """Chunks of a feature file beside the place where it will be: ``<name>.parts/chunk-000123.h5``.

    A chunk is a fixed number of whole batches, so that resuming cuts the items into the same batches as a run without
    interruption. An HDF5 file that was open when its process was killed may never open again: every file is written
    under another name, forced to disk, and renamed. The key in the name keeps the chunks of other encoders and data
    sets apart.

    Args:
        path: the final file.
        origin: what makes the features.
        ids: one id per item, N in all.
        batch_size: items of one forward pass.
        chunk_size: about how many items a chunk holds (rounded down to whole batches, at least one).
    """

    def __init__(
        self, path: Path, origin: FeatureOrigin, ids: Sequence[int | str], batch_size: int, chunk_size: int
    ) -> None:
        self.path = path
        self.origin = origin
        self.ids = ids
        self.batch_size = batch_size
        self.parts = path.with_name(f"{path.name}.parts")
        self._step = max(1, chunk_size // batch_size) * batch_size

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First item and end of every chunk."""
        return [(start, min(start + self._step, len(self.ids))) for start in range(0, len(self.ids), self._step)]

    def is_complete(self) -> bool:
        """Whether the final file is there and good; a bad one is reported and will be replaced."""
        if not self.path.exists():
            return False
        file = FeatureFile(self.path)
        try:
            file.verify()
            same = file.attributes["key"] == self.origin.key and file.ids == stored_ids(self.ids)
        except FeatureError as error:
            log.warning("%s Making it again now.", error)
            return False
        finally:
            file.close()
        if not same:
            log.warning("%s holds the features of other items; making it again.", self.path)
        return same

    def missing(self) -> list[int]:
        """Numbers of the chunks that are not finished yet."""
        return [number for number in range(len(self.spans)) if self._length(number) is None]

    def write(self, number: int, features: RaggedFeatures) -> None:
        """Make chunk ``number`` visible, whole."""
        start, end = self.spans[number]

        def fill(file: h5py.File) -> None:
            file.create_dataset("values", data=features.values.astype(self.origin.dtype, copy=False))
            file.create_dataset("offsets", data=features.offsets)
            file.attrs.update({"start": start, "end": end, "batch_size": self.batch_size, "complete": True})

        self._write_whole(self._chunk(number), fill)

    def merge(self, feature_dim: int) -> None:
        """Join all chunks into the final file and remove them."""
        spans = self.spans
        lengths = [self._lengths_of(number) for number in range(len(spans))]
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))]).astype(np.int64)

        def fill(file: h5py.File) -> None:
            values = file.create_dataset("values", (int(offsets[-1]), feature_dim), self.origin.dtype)
            for number, (start, end) in enumerate(spans):
                with h5py.File(self._chunk(number), "r") as chunk:
                    values[offsets[start] : offsets[end]] = chunk["values"][:]
            finish_file(file, self.origin, self.ids, offsets)

        self._require_space(int(offsets[-1]) * feature_dim * np.dtype(self.origin.dtype).itemsize)
        self._write_whole(self.path, fill)
        self.clean()

    def clean(self) -> None:
        """Remove the chunks."""
        shutil.rmtree(self.parts, ignore_errors=True)

    def _chunk(self, number: int) -> Path:
        return self.parts / f"chunk-{number:06d}.h5"

    def _length(self, number: int) -> int | None:
        """How many items chunk ``number`` holds; None where it isn't there, or was cut in another way."""
        try:
            with h5py.File(self._chunk(number), "r") as chunk:
                start, end = self.spans[number]
                found = [chunk.attrs.get(name) for name in ("start", "end", "batch_size", "complete")]
                good = found == [start, end, self.batch_size, True] and len(chunk["offsets"]) == end - start + 1
                return end - start if good and chunk["offsets"][-1] == len(chunk["values"]) else None
        except (OSError, KeyError):
            return None

    def _lengths_of(self, number: int) -> np.ndarray:
        with h5py.File(self._chunk(number), "r") as chunk:
            return np.diff(chunk["offsets"][:])

    def _write_whole(self, path: Path, fill: Callable[[h5py.File], None]) -> None:
        """Write through ``fill`` under another name in the folder of parts, force it to disk, rename it to ``path``."""
        with self._space_reported(path):
            self.parts.mkdir(parents=True, exist_ok=True)
            temporary = self.parts / f"{path.stem}.{os.getpid()}.tmp"
            try:
                with h5py.File(temporary, "w") as file:
                    fill(file)
                _force_to_disk(temporary)
                temporary.replace(path)
                _force_to_disk(path.parent)
            finally:
                temporary.unlink(missing_ok=True)

    @contextmanager
    def _space_reported(self, path: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # h5py's close() turns an OSError into a RuntimeError
            if not _says_full(error):
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


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _says_full(error: BaseException | None) -> bool:
    """Whether this error, or one that led to it, is a full disk; HDF5 gives the number in its text alone at times."""
    while error is not None:
        stated = re.search(r"errno = (\d+)", str(error))
        if getattr(error, "errno", None) in _FULL or (stated and int(stated.group(1)) in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False
