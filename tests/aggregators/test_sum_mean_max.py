"""Sum, mean and max of a set against a loop over its vectors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmodal.aggregators.max import MaxAggregator
from xmodal.aggregators.mean import MeanAggregator
from xmodal.aggregators.sum import SumAggregator

AGGREGATORS = {"sum": SumAggregator, "mean": MeanAggregator, "max": MaxAggregator}
sets = st.lists(st.integers(0, 6), min_size=1, max_size=5)


def padded(lengths: list[int], width: int, filling: float, extra: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.full((len(lengths), max([1, *lengths]) + extra, width), filling)
    mask = torch.zeros(x.shape[:2], dtype=torch.bool)
    for b, n in enumerate(lengths):
        x[b, :n] = torch.randn(n, width)
        mask[b, :n] = True
    return x, mask


def by_loop(name: str, x: Tensor, mask: Tensor) -> Tensor:
    results = []
    for vectors, exists in zip(x, mask, strict=True):
        kept = [v for v, e in zip(vectors.tolist(), exists.tolist(), strict=True) if e]
        columns = list(zip(*kept, strict=True)) or [(0.0,)] * x.shape[2]
        reduce = {"sum": sum, "max": max, "mean": lambda c: sum(c) / len(c)}[name]
        results.append([reduce(column) for column in columns])
    return torch.tensor(results)


@pytest.mark.parametrize("name", AGGREGATORS)
@pytest.mark.parametrize("filling", [0.0, 7.0, math.nan, math.inf, -math.inf])
@settings(max_examples=15, deadline=None)
@given(lengths=sets, extra=st.integers(0, 3), seed=st.integers(0, 999))
def test_agrees_with_a_loop_whatever_the_padding_holds(
    name: str, filling: float, lengths: list[int], extra: int, seed: int
) -> None:
    torch.manual_seed(seed)
    x, mask = padded(lengths, 3, filling, extra)
    aggregator = AGGREGATORS[name](3)
    torch.testing.assert_close(aggregator(x, mask), by_loop(name, x, mask))
    assert aggregator.output_dim == 3


@pytest.mark.parametrize("name", AGGREGATORS)
def test_order_of_a_set_does_not_matter(name: str) -> None:
    x, mask = torch.randn(4, 5, 3), torch.rand(4, 5) > 0.4
    order = torch.randperm(5)
    aggregator = AGGREGATORS[name](3)
    torch.testing.assert_close(aggregator(x, mask), aggregator(x[:, order], mask[:, order]))


@pytest.mark.parametrize("name", AGGREGATORS)
def test_empty_set_is_the_zero_vector(name: str) -> None:
    x, mask = padded([0, 2], 3, math.nan)
    assert AGGREGATORS[name](3)(x, mask)[0].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", AGGREGATORS)
def test_gradient_is_finite_and_zero_at_padding(name: str) -> None:
    x, mask = padded([0, 2, 4], 3, math.nan)
    x.requires_grad_()
    AGGREGATORS[name](3)(x, mask).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert (x.grad[~mask] == 0).all()
    assert (x.grad[mask].abs().sum() > 0).all()


@pytest.mark.parametrize("name", AGGREGATORS)
def test_nan_in_the_set_itself_is_not_hidden(name: str) -> None:
    x, mask = padded([2, 2], 3, 0.0)
    x[0, 1, 2] = math.nan
    result = AGGREGATORS[name](3)(x, mask)
    assert result.isnan().tolist() == [[False, False, True], [False, False, False]]
