"""A GRU that reads the set in its order: its last states, or its states pooled."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xmodal.aggregators.reading import all_states, last_states
from xmodal.aggregators.sequences import between, without_gaps
from xmodal.errors import ConfigError


class GRUAggregator(nn.Module):
    """States of a GRU over ``<bos>, x[b,0], …, x[b,n-1], <eos>`` at the true length n + 2, made one vector.

    ``<bos>`` and ``<eos>`` are learned vectors of width D, as captions have them in VSE++ and VSE∞. Without
    ``pooling`` the vector is the last state of each reading; with it, an aggregator takes the states of all steps,
    those of ``<bos>`` and ``<eos>`` included, so that an empty set has states too.

    Sources: Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, EMNLP 2014 (the network); Faghri et
    al., VSE++, BMVC 2018 (last state of one reading); Chen et al., Learning the Best Pooling Strategy for Visual
    Semantic Embedding, CVPR 2021 (mean of both readings, states pooled by a learned operator).

    Args:
        feature_dim: D, width of the vectors.
        hidden_size: width of the state of one direction.
        num_layers: stacked GRU layers.
        bidirectional: read the set backwards as well.
        directions: how the states of both readings become one: ``concat``, forward first (width
            ``2 · hidden_size``), or their ``mean`` (width ``hidden_size``). Plays no part for one reading.
        dropout: probability in [0, 1) of dropping an output of a layer that another layer reads, in training.
        boundaries: put ``<bos>`` and ``<eos>`` around the set. Without them an empty set maps to the zero vector.
        pooling: makes the aggregator of the states when given ``feature_dim``; ``None`` takes the last states.

    Raises:
        ConfigError: a size below 1, a probability outside [0, 1) or one without a second layer, an unknown choice.
    """

    def __init__(
        self,
        feature_dim: int,
        hidden_size: int = 512,
        num_layers: int = 1,
        bidirectional: bool = False,
        directions: Literal["concat", "mean"] = "concat",
        dropout: float = 0.0,
        boundaries: bool = True,
        pooling: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        _check_values(hidden_size, num_layers, directions, dropout)
        self.directions = directions
        ends = [nn.Parameter(torch.randn(feature_dim) * 0.1) if boundaries else None for _ in range(2)]
        self.bos, self.eos = ends
        self.gru = nn.GRU(
            feature_dim, hidden_size, num_layers, batch_first=True, dropout=dropout, bidirectional=bidirectional
        )
        state_dim = hidden_size * (2 if bidirectional and directions == "concat" else 1)
        self.pooling = None if pooling is None else pooling(feature_dim=state_dim)
        self.output_dim: int = state_dim if self.pooling is None else self.pooling.output_dim  # type: ignore[assignment]

    def forward(self, x: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B H"]:
        sequence, lengths = self._sequence(x, mask)
        steps = lengths.clamp(min=1)  # an empty sequence can't be read: it has a zero that no one looks at
        if self.pooling is not None:
            return self.pooling(*self._states(all_states(self.gru, sequence, steps), lengths))
        last = last_states(self.gru, sequence, steps)
        joined = self._join(last[-2], last[-1]) if self.gru.bidirectional else last[-1]
        return joined.masked_fill((lengths == 0).unsqueeze(1), 0.0)

    def _sequence(
        self, x: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B M D"], Int[Tensor, "B"]]:
        if self.bos is not None and self.eos is not None:
            return between(self.bos, self.eos, x, mask)
        return without_gaps(x.to(next(self.gru.parameters()).dtype), mask), mask.sum(dim=1)

    def _states(
        self, states: Float[Tensor, "B N S"], lengths: Int[Tensor, "B"]
    ) -> tuple[Float[Tensor, "B N H"], Bool[Tensor, "B N"]]:
        exists = torch.arange(states.shape[1], device=states.device)[None, :] < lengths[:, None]
        return (self._join(*states.chunk(2, dim=2)) if self.gru.bidirectional else states), exists

    def _join(self, forward: Float[Tensor, "*B H"], backward: Float[Tensor, "*B H"]) -> Float[Tensor, "*B J"]:
        return (forward + backward) / 2 if self.directions == "mean" else torch.cat((forward, backward), dim=-1)


def _check_values(hidden_size: int, num_layers: int, directions: str, dropout: float) -> None:
    sizes = {"hidden_size": hidden_size, "num_layers": num_layers}
    faults = [f"{name} must be at least 1, found {size}" for name, size in sizes.items() if size < 1]
    if directions not in ("concat", "mean"):
        faults.append(f"directions must be concat or mean, found {directions}")
    if not 0 <= dropout < 1:
        faults.append(f"dropout must lie in [0, 1), found {dropout}")
    elif dropout > 0 and num_layers == 1:
        faults.append(f"dropout={dropout} acts between layers: set num_layers=2 or more, or dropout=0.0")
    if faults:
        raise ConfigError(faults)
