"""The LSTM aggregator against a plain nn.LSTM run over each set on its own."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmodal.aggregators.lstm import LSTMAggregator
from xmodal.errors import ConfigError

WIDTH = 3
VARIANTS = [(1, False), (1, True), (2, False), (2, True)]


def one_by_one(aggregator: LSTMAggregator, x: Tensor, mask: Tensor) -> Tensor:
    """Last states of both readings of <bos>, the set, <eos>: forward after the last step, backward after the first."""
    hidden, results = aggregator.lstm.hidden_size, []
    for vectors, exists in zip(x, mask, strict=True):
        kept = [vectors[i] for i in range(len(exists)) if exists[i]]
        states, _ = aggregator.lstm(torch.stack([aggregator.bos, *kept, aggregator.eos])[None])
        results.append(torch.cat([states[0, -1, :hidden], states[0, 0, hidden:]]))
    return torch.stack(results)


def batch(lengths: list[int], filling: float, extra: int = 0) -> tuple[Tensor, Tensor]:
    mask = torch.arange(max([1, *lengths]) + extra)[None, :] < torch.tensor(lengths)[:, None]
    return torch.randn(*mask.shape, WIDTH).masked_fill(~mask[:, :, None], filling), mask


@pytest.mark.parametrize(("layers", "bidirectional"), VARIANTS)
@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5), extra=st.integers(0, 3), seed=st.integers(0, 99))
def test_agrees_with_sets_run_one_by_one(
    layers: int, bidirectional: bool, lengths: list[int], extra: int, seed: int
) -> None:
    torch.manual_seed(seed)
    aggregator = LSTMAggregator(WIDTH, hidden_size=5, num_layers=layers, bidirectional=bidirectional)
    x, mask = batch(lengths, math.nan, extra)
    found = aggregator(x, mask)
    torch.testing.assert_close(found, one_by_one(aggregator, x, mask), atol=1e-6, rtol=1e-5)
    assert found.shape == (len(lengths), aggregator.output_dim)


def test_gaps_in_a_mask_are_closed() -> None:
    aggregator = LSTMAggregator(WIDTH, hidden_size=5)
    x = torch.randn(1, 4, WIDTH)
    with_gap = aggregator(x, torch.tensor([[True, False, False, True]]))
    torch.testing.assert_close(with_gap, aggregator(x[:, [0, 3]], torch.tensor([[True, True]])))


def test_order_of_the_set_matters() -> None:
    aggregator = LSTMAggregator(WIDTH, hidden_size=5)
    x, mask = batch([4], 0.0)
    assert not torch.allclose(aggregator(x, mask), aggregator(x.flip(1), mask))


@pytest.mark.parametrize(("layers", "bidirectional"), VARIANTS)
def test_gradients_are_finite_and_equal_to_those_one_by_one(layers: int, bidirectional: bool) -> None:
    aggregator = LSTMAggregator(WIDTH, hidden_size=5, num_layers=layers, bidirectional=bidirectional)
    x, mask = batch([0, 4, 2], math.nan)
    x.requires_grad_()
    inputs = [x, *aggregator.parameters()]
    found = torch.autograd.grad(aggregator(x, mask).square().sum(), inputs)
    expected = torch.autograd.grad(one_by_one(aggregator, x, mask).square().sum(), inputs)
    for left, right in zip(found, expected, strict=True):
        assert left.isfinite().all()
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-4)
    assert (found[0][~mask] == 0).all()


def test_default_and_bidirectional_width() -> None:
    assert LSTMAggregator(WIDTH).output_dim == 512
    assert LSTMAggregator(WIDTH, hidden_size=7, bidirectional=True).output_dim == 14


def test_impossible_sizes_are_reported_together() -> None:
    with pytest.raises(ConfigError, match=r"hidden_size must be at least 1, found 0\n.*num_layers .* found -1"):
        LSTMAggregator(WIDTH, hidden_size=0, num_layers=-1)
