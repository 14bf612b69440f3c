"""The first vectors of a set side by side."""

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal.aggregators.sequences import without_gaps
from xmodal.errors import ConfigError


class ConcatAggregator(nn.Module):
    """``y[b] = (x[b,0], …, x[b,length-1])`` in one row, zeros where the set is shorter: ``output_dim = length · D``.

    Vectors behind the first ``length`` are left out. An empty set maps to the zero vector.

    Args:
        feature_dim: D, width of the vectors.
        length: number of vectors that count.

    Raises:
        ConfigError: a length below 1.
    """

    def __init__(self, feature_dim: int, length: int) -> None:
        super().__init__()
        if length < 1:
            raise ConfigError(f"length must be at least 1, found {length}")
        self.length = length
        self.output_dim = length * feature_dim

    def forward(self, x: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B H"]:
        joined = without_gaps(x, mask)[:, : self.length]
        return F.pad(joined, (0, 0, 0, self.length - joined.shape[1])).flatten(1)
