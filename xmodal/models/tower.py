"""One side of the dual encoder: a set of features becomes one embedding."""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal.errors import ConfigError
from xmodal.models.standardizer import Standardizer


class Tower(nn.Module):
    """Standardisation → drop-out of features → aggregator → projection → L2 normalisation.

    Args:
        feature_dim: width D of the features that arrive.
        aggregator: pools (B, L, D) with a mask (B, L) into (B, ``aggregator.output_dim``).
        projection: makes the MLP when given ``input_dim``.
        standardize: put features to zero mean and unit deviation per dimension (statistics of the training split).
        normalize: bring embeddings to length 1; a zero vector stays zero.
        feature_dropout: probability in [0, 1) of dropping an entry of a feature in training. A frozen network gives one
            feature per photo, so a projection soon knows the training photos by heart; drop-out is their augmentation.

    Raises:
        ConfigError: a probability outside [0, 1).
    """

    def __init__(
        self,
        feature_dim: int,
        aggregator: nn.Module,
        projection: Callable[..., nn.Module],
        standardize: bool = True,
        normalize: bool = True,
        feature_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= feature_dropout < 1:
            raise ConfigError(f"feature_dropout must lie in [0, 1), found {feature_dropout}.")
        self.feature_dim = feature_dim
        self.standardizer = Standardizer(feature_dim) if standardize else None
        self.aggregator = aggregator
        self.projection = projection(input_dim=aggregator.output_dim)
        self.feature_dropout = nn.Dropout(feature_dropout)
        self.normalize = normalize

    def forward(self, x: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B E"]:
        if self.standardizer is not None:
            x = self.standardizer(x)
        embedding = self.projection(self.aggregator(self.feature_dropout(x), mask))
        return F.normalize(embedding, dim=1) if self.normalize else embedding
