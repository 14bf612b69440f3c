"""One side of the dual encoder: a set of features becomes one embedding."""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal.errors import ConfigError
from xmodal.models.standardizer import Standardizer


class Tower(nn.Module):
    """[Trainable tail] → standardisation → drop-out of features → aggregator → projection → L2 normalisation.

    Args:
        feature_dim: width D of the vectors that reach the aggregator: of the features, or of what a tail makes of them.
        aggregator: pools (B, L, D) with a mask (B, L) into (B, ``aggregator.output_dim``).
        projection: makes the MLP when given ``input_dim``.
        standardize: put features to zero mean and unit deviation per dimension (statistics of the training split).
        normalize: bring embeddings to length 1; a zero vector stays zero.
        feature_dropout: probability in [0, 1) of dropping an entry of a feature in training. A frozen network gives one
            feature per photo, so a projection soon knows the training photos by heart; drop-out is their augmentation.

    The tail, the last layers of an encoder (`xmodal.encoders.protocol.Tail`), is given by ``attach``.

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
        self.tail: nn.Module | None = None
        self.standardizer = Standardizer(feature_dim) if standardize else None
        self.aggregator = aggregator
        self.projection = projection(input_dim=aggregator.output_dim)
        self.feature_dropout = nn.Dropout(feature_dropout)
        self.normalize = normalize

    def attach(self, tail: nn.Module) -> None:
        """Put the trainable layers of an encoder in front; they are parameters of the tower from now on.

        All of them require gradients at first, those too that wait for their epoch: a distributed strategy looks for
        parameters before the first one.
        """
        self.tail = tail.requires_grad_(True)

    def forward(self, x: Float[Tensor, "B L C"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B E"]:
        """Embeddings of B sets, whose width C is D, or that of the cut where there is a tail."""
        return self.embed(self.pool(x, mask))

    def vectors(
        self, x: Float[Tensor, "B L C"], mask: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B M D"], Bool[Tensor, "B M"]]:
        """What the standardisation is about: the sets as the encoder would give them, were it not cut."""
        return (x, mask) if self.tail is None else self.tail(x, mask)

    def pool(self, x: Float[Tensor, "B L C"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B H"]:
        """One vector per set: everything before the projection."""
        x, mask = self.vectors(x, mask)
        if self.standardizer is not None:
            x = self.standardizer(x)
        return self.aggregator(self.feature_dropout(x), mask)

    def embed(self, pooled: Float[Tensor, "B H"]) -> Float[Tensor, "B E"]:
        """Embeddings of what ``pool`` gave."""
        embedding = self.projection(pooled)
        return F.normalize(embedding, dim=1) if self.normalize else embedding
