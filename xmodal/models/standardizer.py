"""Per-dimension standardisation of features with statistics of the training split."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

_ROWS_AT_ONCE = 65_536


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

    def fit(self, values: np.ndarray) -> None:
        """Take mean and population deviation of ``values`` (T, D), in float64, block by block.

        A dimension that never changes keeps a deviation of 1; without any row nothing changes.
        """
        if len(values) == 0:
            return
        blocks = range(0, len(values), _ROWS_AT_ONCE)
        mean = sum(values[i : i + _ROWS_AT_ONCE].astype(np.float64).sum(axis=0) for i in blocks) / len(values)
        squares = sum(((values[i : i + _ROWS_AT_ONCE] - mean) ** 2).sum(axis=0) for i in blocks)
        deviation = np.sqrt(squares / len(values))
        constant = deviation <= 1e-6 * np.abs(mean)  # rounding of a sum; a true spread, however small, counts
        self.mean.copy_(torch.as_tensor(mean))
        self.deviation.copy_(torch.as_tensor(np.where(constant, 1.0, deviation)))

    def forward(self, x: Float[Tensor, "*sets D"]) -> Float[Tensor, "*sets D"]:
        return (x - self.mean) / self.deviation
