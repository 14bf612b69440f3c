"""The generalised pooling operator against sorted lists, and against the poolings that are its special cases."""

import math

import pytest
import torch
from torch import Tensor

from xmodal.aggregators.gpo import GPOAggregator
from xmodal.aggregators.max import MaxAggregator
from xmodal.aggregators.mean import MeanAggregator
from xmodal.errors import ConfigError


def weights_of(aggregator: GPOAggregator, count: int) -> list[float]:
    """Weights for one length: encodings by loop, the GRU on them alone, softmax by loop."""
    width = aggregator.gru.input_size
    rates = [1 / 10000 ** (2 * (d // 2) / width) for d in range(width)]
    encodings = [[(math.cos if d % 2 else math.sin)(k * rates[d]) for d in range(width)] for k in range(count)]
    states = aggregator.gru(torch.tensor(encodings)[None])[0][0]
    half = aggregator.gru.hidden_size
    scores = [aggregator.score((s[:half] + s[half:]) / 2).item() / aggregator.temperature for s in states]
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def by_loop(aggregator: GPOAggregator, x: Tensor, mask: Tensor) -> Tensor:
    results = []
    for vectors, exists in zip(x.tolist(), mask.tolist(), strict=True):
        kept = [vector for vector, e in zip(vectors, exists, strict=True) if e]
        weights = weights_of(aggregator, len(kept)) if kept else []
        columns = [sorted((v[d] for v in kept), reverse=True) for d in range(x.shape[2])]
        results.append([sum(w * value for w, value in zip(weights, column, strict=True)) for column in columns])
    return torch.tensor(results)


@pytest.mark.parametrize("position_dim", [6, 7])
def test_agrees_with_sorted_lists(position_dim: int) -> None:
    torch.manual_seed(0)
    aggregator = GPOAggregator(3, position_dim, hidden_size=5)
    x, mask = torch.randn(9, 6, 3), torch.rand(9, 6) > 0.4
    mask[0], mask[1] = False, True
    torch.testing.assert_close(aggregator(x, mask), by_loop(aggregator, x, mask), atol=1e-5, rtol=1e-4)


def test_weights_are_made_once_per_length_of_the_batch() -> None:
    aggregator, read = GPOAggregator(3), []
    aggregator.gru.register_forward_hook(lambda module, given, result: read.append(given[0].batch_sizes.tolist()))
    lengths = torch.tensor([4, 2, 4, 2, 2, 1])
    aggregator(torch.randn(6, 4, 3), torch.arange(4)[None, :] < lengths[:, None])
    assert read == [[3, 2, 1, 1]]  # three sequences, of the lengths 1, 2 and 4


def test_weights_of_a_length_do_not_depend_on_the_others() -> None:
    aggregator = GPOAggregator(3)
    together, alone = aggregator.weights(torch.tensor([0, 2, 7])), aggregator.weights(torch.tensor([2]))
    torch.testing.assert_close(together[1], torch.cat([alone[0], torch.zeros(5)]))
    torch.testing.assert_close(together.sum(dim=1), torch.tensor([0.0, 1.0, 1.0]))


def test_a_set_of_one_vector_is_that_vector() -> None:
    x = torch.randn(2, 1, 3)
    torch.testing.assert_close(GPOAggregator(3)(x, torch.ones(2, 1, dtype=torch.bool)), x[:, 0])


def test_mean_is_a_special_case_and_maximum_can_be_learned() -> None:
    torch.manual_seed(0)
    aggregator, x, mask = GPOAggregator(3), torch.randn(64, 5, 3), torch.rand(64, 5) > 0.3
    torch.nn.init.zeros_(aggregator.score.weight)
    torch.testing.assert_close(aggregator(x, mask), MeanAggregator(3)(x, mask))
    target, optimizer = MaxAggregator(3)(x, mask), torch.optim.Adam(aggregator.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (aggregator(x, mask) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.001 * (MeanAggregator(3)(x, mask) - target).square().mean()


@pytest.mark.parametrize(("wrong", "message"), [
    ({"position_dim": 0}, "position_dim must be at least 1, found 0"),
    ({"hidden_size": -2}, "hidden_size must be at least 1, found -2"),
    ({"temperature": 0.0}, "temperature must be a number above 0, found 0.0"),
    ({"temperature": math.nan}, "temperature must be a number above 0, found nan"),
])  # fmt: skip
def test_impossible_values_are_named(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GPOAggregator(3, **wrong)
