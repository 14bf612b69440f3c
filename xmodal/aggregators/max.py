"""Element-wise maximum of a set of vectors."""

import math

from jaxtyping import Bool, Float
from torch import Tensor, nn


class MaxAggregator(nn.Module):
    """Element-wise maximum of a set: ``y[b,d] = max over l with mask[b,l] of x[b,l,d]``.

    An empty set maps to the zero vector. Equal maxima share the gradient evenly.
    """

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.output_dim = feature_dim

    def forward(self, x: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        largest = x.masked_fill(~mask.unsqueeze(-1), -math.inf).amax(dim=1)
        return largest.masked_fill(~mask.any(dim=1, keepdim=True), 0.0)
