"""One side of the dual encoder: a set of features becomes one embedding."""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal.errors import ConfigError
from xmodal.models.element_dropout import ElementDropout
from xmodal.models.standardizer import Standardizer


class Tower(nn.Module):
    """[Tail] → standardisation → drop-out → [vector projection] → aggregator → projection → L2 normalisation.

    Args:
        feature_dim: width D of the vectors: of the features, or of what a tail makes of them.
        aggregator: pools (B, L, W) with a mask (B, L) into (B, ``aggregator.output_dim``); W is D, or the width that
            the vector projection gives.
        projection: makes the MLP when given ``input_dim``.
        standardize: put features to zero mean and unit deviation per dimension (statistics of the training split).
        normalize: bring embeddings to length 1; a zero vector stays zero.
        feature_dropout: probability in [0, 1) of dropping an entry of a feature in training. A frozen network gives one
            feature per photo, so a projection soon knows the training photos by heart; drop-out is their augmentation.
        element_dropout: probability in [0, 1) of dropping a whole vector of a set in training; one at least stays.
        vector_projection: makes an MLP on each vector of a set when given ``input_dim``; ``None`` for none. Padding
            does not go through it, so a batch normalisation in it is over the vectors that exist.

    The tail, the last layers of an encoder (`xmodal.encoders.protocol.Tail`), is given by ``attach``.

    Raises:
        ConfigError: probabilities outside [0, 1).
    """

    def __init__(
        self,
        feature_dim: int,
        aggregator: nn.Module,
        projection: Callable[..., nn.Module],
        standardize: bool = True,
        normalize: bool = True,
        feature_dropout: float = 0.0,
        element_dropout: float = 0.0,
        vector_projection: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        shares = {"feature_dropout": feature_dropout, "element_dropout": element_dropout}
        if faults := [f"{name} must lie in [0, 1), found {p}." for name, p in shares.items() if not 0 <= p < 1]:
            raise ConfigError(faults)
        self.feature_dim = feature_dim
        self.tail: nn.Module | None = None
        self.standardizer = Standardizer(feature_dim) if standardize else None
        self.vector_projection = None if vector_projection is None else vector_projection(input_dim=feature_dim)
        self.aggregator = aggregator
        self.projection = projection(input_dim=aggregator.output_dim)
        self.feature_dropout = nn.Dropout(feature_dropout)
        self.element_dropout = ElementDropout(element_dropout)
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
        mask = self.element_dropout(mask)
        x = self.feature_dropout(x)
        return self.aggregator(x if self.vector_projection is None else self._projected(x, mask), mask)

    def _projected(self, x: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B L W"]:
        """Every vector that exists through the vector projection; zeros elsewhere."""
        assert self.vector_projection is not None
        vectors = self.vector_projection(x[mask])
        projected = vectors.new_zeros(*mask.shape, vectors.shape[1])
        projected[mask] = vectors
        return projected

    def embed(self, pooled: Float[Tensor, "B H"]) -> Float[Tensor, "B E"]:
        """Embeddings of what ``pool`` gave."""
        embedding = self.projection(pooled)
        return F.normalize(embedding, dim=1) if self.normalize else embedding
