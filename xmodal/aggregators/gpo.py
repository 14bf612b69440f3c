"""Generalised pooling: every dimension sorted, then summed with weights that are made for the length of the set."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xmodal.aggregators.masked_softmax import masked_softmax
from xmodal.aggregators.positions import sinusoids
from xmodal.aggregators.reading import all_states
from xmodal.errors import ConfigError


class GPOAggregator(nn.Module):
    """Generalised Pooling Operator: ``y[b,d] = Σ_k w[n_b,k]·(k-th largest of x[b,·,d])``, with ``Σ_k w[n,k] = 1``.

    Mean (all weights 1/n) and maximum (the first weight 1) are special cases. The weights of a set of n vectors depend
    on n alone: a bidirectional GRU reads the sinusoidal encodings of the positions 1 … n, both readings are
    averaged, and a linear layer gives each position its score; the weights are the softmax of the scores.
    An empty set maps to the zero vector.
    Source: Chen et al., Learning the Best Pooling Strategy for Visual Semantic Embedding, CVPR 2021.

    Args:
        feature_dim: D, width of the vectors.
        position_dim: width of the encoding of a position.
        hidden_size: width of the GRU's state, of one direction.
        temperature: the scores are divided by it; 0.1 is what the authors' own code has, the paper has none.

    Raises:
        ConfigError: a size below 1, or a temperature that is not positive.
    """

    def __init__(
        self, feature_dim: int, position_dim: int = 32, hidden_size: int = 32, temperature: float = 0.1
    ) -> None:
        super().__init__()
        sizes = {"position_dim": position_dim, "hidden_size": hidden_size}
        faults = [f"{name} must be at least 1, found {size}" for name, size in sizes.items() if size < 1]
        if not 0 < temperature < math.inf:
            faults.append(f"temperature must be a number above 0, found {temperature}")
        if faults:
            raise ConfigError(faults)
        self.output_dim = feature_dim
        self.temperature = temperature
        self.gru = nn.GRU(position_dim, hidden_size, batch_first=True, bidirectional=True)
        self.score = nn.Linear(hidden_size, 1, bias=False)  # a softmax would not see a bias

    def forward(self, x: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        counts, which = mask.sum(dim=1).unique(return_inverse=True)
        return self.weighted(x, mask, self.weights(counts)[which])

    def weighted(
        self, x: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"], weights: Float[Tensor, "B K"]
    ) -> Float[Tensor, "B D"]:
        """Every dimension sorted, then summed with these weights; no set has more than K vectors."""
        # sorted along the last dimension (0.2 s instead of 0.5 s on one core for 128 sets of 36 vectors, D 1024)
        kept = x.masked_fill(~mask.unsqueeze(-1), -math.inf).transpose(1, 2).contiguous()
        ranked = kept.sort(dim=2, descending=True).values[:, :, : weights.shape[1]]
        exists = torch.arange(weights.shape[1], device=x.device)[None, :] < mask.sum(dim=1)[:, None]
        return torch.einsum("bk,bdk->bd", weights.to(x.dtype), ranked.masked_fill(~exists.unsqueeze(1), 0.0))

    def weights(self, counts: Int[Tensor, "N"], longest: int | torch.SymInt | None = None) -> Float[Tensor, "N K"]:
        """The weights of sets of so many vectors, zero behind the last; K is the largest count, or ``longest``."""
        longest = int(counts.max()) if longest is None else longest
        if longest == 0:
            return self.score.weight.new_zeros(len(counts), 0)
        encodings = sinusoids(longest, self.gru.input_size, like=self.score.weight).expand(counts.shape[0], -1, -1)
        steps = counts.clamp(min=1)  # an empty sequence can't be read
        forward, backward = all_states(self.gru, encodings, steps).chunk(2, dim=2)
        scores = self.score((forward + backward) / 2).squeeze(2) / self.temperature
        return masked_softmax(scores, torch.arange(longest, device=counts.device)[None, :] < counts[:, None])
