"""Mean of a set of vectors."""

from jaxtyping import Bool, Float
from torch import Tensor, nn


class MeanAggregator(nn.Module):
    """Mean of a set: ``y[b] = Σ_l mask[b,l]·x[b,l] / max(1, Σ_l mask[b,l])``.

    An empty set maps to the zero vector.
    """

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.output_dim = feature_dim

    def forward(self, x: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        kept = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # not `x * mask`: padding may hold NaN
        return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
