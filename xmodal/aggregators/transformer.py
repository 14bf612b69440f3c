"""Self-attention between the vectors of a set, then a pooling of what comes out."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from xmodal.aggregators.mean import MeanAggregator
from xmodal.aggregators.positions import sinusoids
from xmodal.errors import ConfigError

POSITIONS = ("none", "sinusoidal", "learned")


class TransformerAggregator(nn.Module):
    """Mean (or another pooling) of what a transformer encoder makes of the set; ``output_dim`` is that of the pooling.

    A linear layer brings vectors to ``hidden_size`` first where they have another width. Without positions the order
    of the set plays no part. An empty set maps to what ``pooling`` gives an empty set, the zero vector.
    Source: Vaswani et al., Attention Is All You Need, NeurIPS 2017, section 3; ``norm_first``: Xiong et al., On Layer
    Normalization in the Transformer Architecture, ICML 2020.

    Args:
        feature_dim: D, width of the vectors.
        positions: added to the vectors before the first layer: ``none`` (for sets, such as regions), ``sinusoidal`` or
            ``learned`` (for sequences, such as words). The n-th vector that exists has position n.
        hidden_size: width inside the encoder, a multiple of ``num_heads``.
        num_layers: self-attention layers.
        num_heads: attention heads per layer.
        feedforward_dim: width of the layer between in the feed-forward part; ``None`` takes ``4 · hidden_size``.
        dropout: probability in [0, 1) of dropping, in training, inside the layers.
        norm_first: normalise before each part instead of behind it (steadier with many layers).
        max_positions: number of learned positions; vectors behind them share the last.
        pooling: makes the aggregator of the outputs when given ``feature_dim``; ``None`` takes their mean.

    Raises:
        ConfigError: a size below 1, a width that the heads do not divide, a probability outside [0, 1), an unknown
            choice.
    """

    def __init__(
        self,
        feature_dim: int,
        positions: Literal["none", "sinusoidal", "learned"],
        hidden_size: int = 512,
        num_layers: int = 1,
        num_heads: int = 8,
        feedforward_dim: int | None = None,
        dropout: float = 0.1,
        norm_first: bool = False,
        max_positions: int = 256,
        pooling: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        inner = 4 * hidden_size if feedforward_dim is None else feedforward_dim
        _check_values(positions, hidden_size, num_layers, num_heads, inner, dropout, max_positions)
        self.positions = positions
        self.widen = nn.Identity() if feature_dim == hidden_size else nn.Linear(feature_dim, hidden_size)
        is_learned = positions == "learned"
        self.learned = nn.Parameter(torch.randn(max_positions, hidden_size) * 0.02) if is_learned else None
        layer = nn.TransformerEncoderLayer(
            hidden_size, num_heads, inner, dropout, batch_first=True, norm_first=norm_first
        )
        last_norm = nn.LayerNorm(hidden_size) if norm_first else None
        self.encoder = nn.TransformerEncoder(layer, num_layers, norm=last_norm, enable_nested_tensor=False)
        for copied in self.encoder.layers[1:]:  # torch copies the first, weights and all
            _draw_again(copied)
        self.pooling = MeanAggregator(hidden_size) if pooling is None else pooling(feature_dim=hidden_size)
        self.output_dim: int = self.pooling.output_dim  # type: ignore[assignment]

    def forward(self, x: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B H"]:
        vectors = self.widen(x.masked_fill(~mask.unsqueeze(-1), 0.0))  # padding may hold NaN
        is_seen = mask.clone()
        is_seen[:, 0] |= ~mask.any(dim=1)  # attention to nothing would be NaN: an empty set looks at its padding
        states = self.encoder(self._placed(vectors, mask), src_key_padding_mask=~is_seen)
        return self.pooling(states, mask)

    def _placed(self, x: Float[Tensor, "B L H"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B L H"]:
        if self.positions == "none":
            return x
        known = sinusoids(x.shape[1], x.shape[2], like=x) if self.learned is None else self.learned
        places = (mask.cumsum(dim=1) - 1).clamp(min=0, max=known.shape[0] - 1)
        return x + known[places]


def _draw_again(layer: nn.Module) -> None:
    """Initialise a layer anew, each part as it initialises itself."""
    for part in reversed(list(layer.modules())):  # attention sets what its own parts have set
        reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        if callable(reset):
            reset()


def _check_values(
    positions: str, hidden_size: int, num_layers: int, num_heads: int, inner: int, dropout: float, max_positions: int
) -> None:
    sizes = {
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "feedforward_dim": inner,
        "max_positions": max_positions,
    }
    faults = [f"{name} must be at least 1, found {size}" for name, size in sizes.items() if size < 1]
    if not faults and hidden_size % num_heads:
        faults.append(f"hidden_size={hidden_size} must be a multiple of num_heads={num_heads}")
    if positions not in POSITIONS:
        faults.append(f"positions must be one of {', '.join(POSITIONS)}, found {positions}")
    if not 0 <= dropout < 1:
        faults.append(f"dropout must lie in [0, 1), found {dropout}")
    if faults:
        raise ConfigError(faults)
