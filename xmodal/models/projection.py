"""The small MLP that carries a pooled feature into the common space, or each vector of a set into another one."""

from itertools import pairwise
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal.errors import ConfigError


class Projection(nn.Module):
    """Multi-layer perceptron: ``num_layers`` linear layers with ReLU (and drop-out) between them.

    The last layer is linear, so that embeddings may point in any direction of the space. A hidden layer is
    ``dropout(relu(norm(W·x + b)))``.

    Args:
        input_dim: width D of the pooled feature.
        output_dim: embedding size E.
        num_layers: number of linear layers; 0 leaves vectors as they are.
        hidden_dim: width of the layers between; ``None`` takes ``output_dim``.
        dropout: probability in [0, 1) of dropping a hidden unit in training.
        residual: add one linear layer from input to output, ``y = mlp(x) + W·x + b`` (Chen et al., Learning the Best
            Pooling Strategy for Visual Semantic Embedding, CVPR 2021).
        batch_norm: batch normalisation behind each hidden linear layer (Ioffe and Szegedy, Batch Normalization, ICML
            2015). A training batch of a single vector, which has no deviation, is normalised with the running
            statistics and leaves them as they are.
        init: ``default`` is torch's own for linear layers, uniform in ±1/√D of D inputs. ``xavier``: uniform in
            ±√(6 / (D + E)) with biases of 0 (Glorot and Bengio, Understanding the difficulty of training deep
            feedforward neural networks, AISTATS 2010, equation 16), as VSE++ and VSE-infinity begin: for wide inputs
            larger weights, which the same learning rate changes less.

    Raises:
        ConfigError: a size out of range, a probability outside [0, 1); no layer between two widths, or beside a
            residual.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        num_layers: int = 2,
        hidden_dim: int | None = None,
        dropout: float = 0.0,
        residual: bool = False,
        batch_norm: bool = False,
        init: Literal["default", "xavier"] = "default",
    ) -> None:
        super().__init__()
        _check_sizes(output_dim, num_layers, hidden_dim, dropout)
        _check_identity(input_dim, output_dim, num_layers, residual)
        self.output_dim = output_dim
        widths = [input_dim, *[hidden_dim or output_dim] * (num_layers - 1), output_dim]
        layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])] if num_layers else []
        for inputs, outputs in pairwise(widths[1:] if num_layers else []):
            norm = [BatchNorm(inputs)] if batch_norm else []
            layers += [*norm, nn.ReLU(), nn.Dropout(dropout), nn.Linear(inputs, outputs)]
        self.layers = nn.Sequential(*layers)
        self.shortcut = nn.Linear(input_dim, output_dim) if residual else None
        if init == "xavier":
            self.apply(_xavier)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        projected = self.layers(x)
        return projected if self.shortcut is None else projected + self.shortcut(x)


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


class BatchNorm(nn.Module):
    """`torch.nn.BatchNorm1d` that takes training batches of fewer than two vectors, by the running statistics."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        norm = self.norm
        # one that is synchronised over processes has been put in its place: all of them have to take part
        if len(x) > 1 or not norm.training or not isinstance(norm, nn.BatchNorm1d):
            return norm(x)
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def _check_sizes(output_dim: int, num_layers: int, hidden_dim: int | None, dropout: float) -> None:
    sizes = {"embedding_dim": output_dim, "projection.hidden_dim": hidden_dim or 1}
    faults = [f"{name} must be at least 1, found {size}." for name, size in sizes.items() if size < 1]
    if hidden_dim == 0:
        faults.append("projection.hidden_dim must be at least 1, or null for embedding_dim; found 0.")
    if num_layers < 0:
        faults.append(f"projection.num_layers must be at least 0, found {num_layers}.")
    if not 0 <= dropout < 1:
        faults.append(f"projection.dropout must lie in [0, 1), found {dropout}.")
    if faults:
        raise ConfigError(faults)


def _check_identity(input_dim: int, output_dim: int, num_layers: int, residual: bool) -> None:
    if num_layers == 0 and residual:
        raise ConfigError("projection.residual=true is added to layers, but projection.num_layers=0: set 1 or more.")
    if num_layers == 0 and input_dim != output_dim:
        raise ConfigError(
            f"projection.num_layers=0 leaves vectors as they are, {input_dim} wide, but embeddings are to be "
            f"{output_dim} wide (embedding_dim). Set projection.num_layers=1, or make both widths one: "
            f"embedding_dim={input_dim}, or an aggregator with hidden_size={output_dim}."
        )
