"""How much an extraction will take of the disk, said before it starts."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xmodal.encoders.protocol import Counting, Encoder
from xmodal.errors import FeatureError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Expectation:
    """Bytes of the final file's values; None where the encoder can't tell, an upper bound where not ``exact``."""

    size: int | None
    exact: bool

    def __str__(self) -> str:
        return self.stated("on disk")

    def stated(self, place: str) -> str:
        """``about 243 MB on disk``."""
        if self.size is None:
            return "size unknown"
        return f"{'about' if self.exact else 'at most'} {readable(self.size)} {place}"


def expected_size(encoder: Encoder, inputs: Sequence[Any], dtype: str) -> Expectation:
    """What the features of ``inputs`` will take; exact where every item gives one vector."""
    if not isinstance(encoder, Counting):
        return Expectation(None, False)
    vectors = encoder.most_vectors(inputs)
    return Expectation(vectors * encoder.feature_dim * np.dtype(dtype).itemsize, vectors == len(inputs))


def require_space(folder: Path, expected: Expectation, missing: float) -> None:
    """Raise FeatureError where the disk can't hold the file and, until then, its chunks; warn where it might not.

    Args:
        folder: on that disk, and there.
        missing: share of the chunks that are still to be written, relative to the final file.
    """
    if expected.size is None:
        return
    free, needed = shutil.disk_usage(folder).free, int(expected.size * (1 + missing))
    if free >= needed:
        return
    stated = f"{readable(free)} are free on the disk of {folder}"
    if not expected.exact:
        log.warning("The features may need up to %s (the file and its chunks), but %s.", readable(needed), stated)
        return
    raise FeatureError(
        f"The features need {readable(needed)} (the file, and its chunks until it is whole), but {stated}. Free some "
        "space, choose another disk with paths.features_dir=…, or keep nothing with features.store=false."
    )


def readable(size: int | float) -> str:
    """``243 MB``: decimal units, three digits."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size = size / 1000
    return f"{size:,.1f} TB"
