"""Per-dimension standardisation of features with statistics of the training split."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from xmodal.types import FeatureSource, RaggedFeatures

_BLOCK_BYTES = 2**22  # of float64, at most, while statistics are taken (beside one set, where that is larger)


class Standardizer(nn.Module):
    """``y = (x − mean) / deviation`` per dimension; the identity until `fit` has been called.

    Features of random or strongly rectified networks are nearly parallel (cosine above 0.9 between any two photos);
    what tells photos apart is the small deviation from the mean. The statistics are buffers: a checkpoint keeps them.

    Args:
        feature_dim: width D of a feature.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.register_buffer("deviation", torch.ones(feature_dim))

    def fit(self, source: FeatureSource, rows: np.ndarray) -> None:
        """Take mean and population deviation over all vectors of the sets ``rows``, in float64, block by block.

        A dimension that never changes keeps a deviation of 1; without any vector nothing changes. Where there are
        codes, each vector of the table counts as often as its code occurs.
        """
        moments = _Moments(source.feature_dim)
        for values, counts in _counted(source, np.asarray(rows)):
            moments.add(values, counts)
        if moments.count == 0:
            return
        deviation = np.sqrt(moments.squares / moments.count)
        constant = deviation <= 1e-6 * np.abs(moments.mean)  # rounding of a sum; a true spread, however small, counts
        self.mean.copy_(torch.as_tensor(moments.mean))
        self.deviation.copy_(torch.as_tensor(np.where(constant, 1.0, deviation)))

    def forward(self, x: Float[Tensor, "*sets D"]) -> Float[Tensor, "*sets D"]:
        return (x - self.mean) / self.deviation


class _Moments:
    """Count, mean and summed squared deviations of vectors that come in blocks.

    Blocks are merged as by Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample
    variances, 1979: one pass suffices, and nothing cancels as in mean(x²) − mean(x)².
    """

    def __init__(self, feature_dim: int) -> None:
        self.count = 0
        self.mean = np.zeros(feature_dim)
        self.squares = np.zeros(feature_dim)

    def add(self, values: np.ndarray, counts: np.ndarray) -> None:
        """Take in the rows of ``values`` (n, D), row i ``counts[i]`` times."""
        added = int(counts.sum())
        exact = values.astype(np.float64)
        mean = counts @ exact / added
        exact -= mean
        np.square(exact, out=exact)
        total = self.count + added
        apart = mean - self.mean
        self.squares += counts @ exact + apart**2 * (self.count * added / total)
        self.mean += apart * (added / total)
        self.count = total


def _counted(source: FeatureSource, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Vectors of the sets ``rows`` in blocks, and how often each of them counts."""
    step = max(1, _BLOCK_BYTES // (8 * max(1, source.feature_dim)))
    for some in _blocks(source, rows, step):
        values, counts = _distinct(source.select(some))
        for start in range(0, len(values), step):  # a single set may be larger than a block
            yield values[start : start + step], counts[start : start + step]


def _blocks(source: FeatureSource, rows: np.ndarray, step: int) -> Iterator[np.ndarray]:
    """The rows cut where about ``step`` vectors have come together."""
    ends = np.cumsum(source.lengths[rows])
    numbers = np.maximum(ends - 1, 0) // step
    yield from np.split(rows, np.flatnonzero(np.diff(numbers)) + 1)


def _distinct(sets: RaggedFeatures) -> tuple[np.ndarray, np.ndarray]:
    """Vectors with their counts; all counts are 1 where there are no codes."""
    if sets.codes is None:
        return sets.values, np.ones(len(sets.values))
    counts = np.bincount(sets.codes.astype(np.intp, copy=False), minlength=len(sets.values))
    used = np.flatnonzero(counts)
    return sets.values[used], counts[used].astype(np.float64)
