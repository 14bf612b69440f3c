"""The small MLP that carries a pooled feature into the common space."""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from xmodal.errors import ConfigError


class Projection(nn.Module):
    """Multi-layer perceptron: ``num_layers`` linear layers with ReLU (and drop-out) between them.

    The last layer is linear, so that embeddings may point in any direction of the space.

    Args:
        input_dim: width D of the pooled feature.
        output_dim: embedding size E.
        num_layers: number of linear layers, at least 1.
        hidden_dim: width of the layers between; ``None`` takes ``output_dim``.
        dropout: probability in [0, 1) of dropping a hidden unit in training.

    Raises:
        ConfigError: a size below 1 or a probability outside [0, 1).
    """

    def __init__(
        self, input_dim: int, output_dim: int, num_layers: int = 2, hidden_dim: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        _check_sizes(output_dim, num_layers, hidden_dim, dropout)
        widths = [input_dim, *[hidden_dim or output_dim] * (num_layers - 1), output_dim]
        layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
        for inputs, outputs in pairwise(widths[1:]):
            layers += [nn.ReLU(), nn.Dropout(dropout), nn.Linear(inputs, outputs)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        return self.layers(x)


def _check_sizes(output_dim: int, num_layers: int, hidden_dim: int | None, dropout: float) -> None:
    sizes = {"embedding_dim": output_dim, "projection.num_layers": num_layers, "projection.hidden_dim": hidden_dim or 1}
    faults = [f"{name} must be at least 1, found {size}." for name, size in sizes.items() if size < 1]
    if hidden_dim == 0:
        faults.append("projection.hidden_dim must be at least 1, or null for embedding_dim; found 0.")
    if not 0 <= dropout < 1:
        faults.append(f"projection.dropout must lie in [0, 1), found {dropout}.")
    if faults:
        raise ConfigError(faults)
