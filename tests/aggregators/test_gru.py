"""The GRU aggregator against the equations of a GRU, written out."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from xmodal.aggregators.gru import GRUAggregator
from xmodal.aggregators.max import MaxAggregator
from xmodal.errors import ConfigError

WIDTH, HIDDEN = 3, 4


def states_of(gru: nn.GRU, vectors: list[Tensor], suffix: str = "") -> list[Tensor]:
    """States of one reading by the equations of Cho et al. 2014, as torch arranges them."""
    weights = {
        name.removesuffix("_reverse"): p for name, p in gru.named_parameters() if ("_reverse" in name) == bool(suffix)
    }
    state, states = torch.zeros(gru.hidden_size), []
    for vector in vectors:
        from_input = weights["weight_ih_l0"] @ vector + weights["bias_ih_l0"]
        from_state = weights["weight_hh_l0"] @ state + weights["bias_hh_l0"]
        (r, z, n), (hr, hz, hn) = from_input.chunk(3), from_state.chunk(3)
        reset, update = torch.sigmoid(r + hr), torch.sigmoid(z + hz)
        state = (1 - update) * torch.tanh(n + reset * hn) + update * state
        states.append(state)
    return states


def by_equations(aggregator: GRUAggregator, x: Tensor, mask: Tensor, pooled: bool) -> Tensor:
    results = []
    for vectors, exists in zip(x, mask, strict=True):
        steps = [vectors[i] for i in range(len(exists)) if exists[i]]
        if aggregator.bos is not None:
            steps = [aggregator.bos, *steps, aggregator.eos]
        forward = states_of(aggregator.gru, steps)
        backward = states_of(aggregator.gru, steps[::-1], "_reverse") if aggregator.gru.bidirectional else None
        results.append(joined(aggregator, forward, backward, pooled))
    return torch.stack(results)


def joined(aggregator: GRUAggregator, forward: list[Tensor], backward: list[Tensor] | None, pooled: bool) -> Tensor:
    if not forward:
        return torch.zeros(aggregator.output_dim)
    if backward is None:
        return torch.stack(forward).amax(dim=0) if pooled else forward[-1]
    pairs = list(zip(forward, backward[::-1], strict=True)) if pooled else [(forward[-1], backward[-1])]
    both = [(a + b) / 2 if aggregator.directions == "mean" else torch.cat([a, b]) for a, b in pairs]
    return torch.stack(both).amax(dim=0)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("boundaries", [False, True])
@pytest.mark.parametrize(("bidirectional", "directions"), [(False, "concat"), (True, "concat"), (True, "mean")])
def test_agrees_with_the_equations(bidirectional: bool, directions: str, boundaries: bool, pooled: bool) -> None:
    torch.manual_seed(0)
    options = {"bidirectional": bidirectional, "directions": directions, "boundaries": boundaries}
    aggregator = GRUAggregator(WIDTH, HIDDEN, pooling=MaxAggregator if pooled else None, **options)
    x = torch.randn(4, 5, WIDTH)
    mask = torch.tensor([[True] * 5, [True, False, False, True, False], [False] * 5, [False] * 4 + [True]])
    torch.testing.assert_close(aggregator(x, mask), by_equations(aggregator, x, mask, pooled), atol=1e-6, rtol=1e-5)


def test_widths() -> None:
    assert GRUAggregator(WIDTH).output_dim == 512
    assert GRUAggregator(WIDTH, 7, bidirectional=True).output_dim == 14
    assert GRUAggregator(WIDTH, 7, bidirectional=True, directions="mean").output_dim == 7
    assert GRUAggregator(WIDTH, 7, directions="mean").output_dim == 7
    inner = partial(GRUAggregator, hidden_size=5)
    assert GRUAggregator(WIDTH, 7, bidirectional=True, pooling=inner).output_dim == 5


def test_dropout_lies_between_layers() -> None:
    aggregator = GRUAggregator(WIDTH, HIDDEN, num_layers=2, dropout=0.5)
    x, mask = torch.randn(2, 3, WIDTH), torch.ones(2, 3, dtype=torch.bool)
    assert not torch.equal(aggregator(x, mask), aggregator(x, mask))
    aggregator.eval()
    assert torch.equal(aggregator(x, mask), aggregator(x, mask))


@pytest.mark.parametrize(("wrong", "message"), [
    ({"hidden_size": 0}, "hidden_size must be at least 1, found 0"),
    ({"num_layers": -1}, "num_layers must be at least 1, found -1"),
    ({"dropout": 1.0, "num_layers": 2}, r"dropout must lie in \[0, 1\), found 1.0"),
    ({"dropout": 0.5}, "dropout=0.5 acts between layers: set num_layers=2 or more"),
])  # fmt: skip
def test_impossible_values_are_named(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GRUAggregator(WIDTH, **wrong)
