"""Sum of a set of vectors."""

from jaxtyping import Bool, Float
from torch import Tensor, nn


class SumAggregator(nn.Module):
    """Sum of a set: ``y[b] = Σ_l mask[b,l]·x[b,l]``.

    An empty set maps to the zero vector.
    """

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.output_dim = feature_dim

    def forward(self, x: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        return x.masked_fill(~mask.unsqueeze(-1), 0.0).sum(dim=1)  # not `x * mask`: padding may hold NaN
