"""What holds for every aggregator with something to learn, and for concat: padding, gaps, empty sets, gradients."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from xmodal.aggregators.attention import AttentionAggregator
from xmodal.aggregators.concat import ConcatAggregator
from xmodal.aggregators.gpo import GPOAggregator
from xmodal.aggregators.gru import GRUAggregator
from xmodal.aggregators.max import MaxAggregator
from xmodal.aggregators.transformer import TransformerAggregator

WIDTH = 3
small_gpo = partial(GPOAggregator, position_dim=4, hidden_size=3)
small_gru = partial(GRUAggregator, hidden_size=4)
small_transformer = partial(TransformerAggregator, hidden_size=4, num_heads=2, feedforward_dim=5, dropout=0.0)
AGGREGATORS: dict[str, Callable[..., nn.Module]] = {
    "attention": AttentionAggregator,
    "concat": partial(ConcatAggregator, length=3),
    "gpo": small_gpo,
    "gru": small_gru,
    "gru, both ways": partial(small_gru, bidirectional=True, num_layers=2),
    "gru without boundaries": partial(small_gru, boundaries=False, bidirectional=True, directions="mean"),
    "gru with gpo": partial(small_gru, bidirectional=True, directions="mean", pooling=small_gpo),
    "gru without boundaries with max": partial(small_gru, boundaries=False, pooling=MaxAggregator),
    "transformer": partial(small_transformer, positions="none"),
    "transformer over a sequence": partial(small_transformer, positions="sinusoidal", norm_first=True),
    "transformer with attention": partial(small_transformer, positions="learned", pooling=AttentionAggregator),
}
ANY_ORDER = ["attention", "gpo", "transformer"]
EMPTY_IS_NOT_ZERO = ["gru", "gru, both ways", "gru with gpo"]  # <bos> and <eos> have states
every = pytest.mark.parametrize("name", AGGREGATORS)


def made(name: str) -> nn.Module:
    """Random parameters, also where an aggregator starts from zero."""
    torch.manual_seed(0)
    aggregator = AGGREGATORS[name](WIDTH).double()
    for parameter in aggregator.parameters():
        nn.init.normal_(parameter, std=0.5)
    return aggregator


def padded(lengths: list[int], filling: float, extra: int = 0) -> tuple[Tensor, Tensor]:
    mask = torch.arange(max([1, *lengths]) + extra)[None, :] < torch.tensor(lengths)[:, None]
    vectors = torch.randn(*mask.shape, WIDTH, dtype=torch.float64)
    return vectors.masked_fill(~mask[:, :, None], filling), mask


def one_by_one(aggregator: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """Each set on its own, without gaps and padding."""
    sets = [vectors[exists] for vectors, exists in zip(x, mask, strict=True)]
    full = [(s[None], torch.ones(1, len(s), dtype=torch.bool)) for s in sets]
    empty = (torch.zeros(1, 1, WIDTH, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.bool))
    return torch.cat([aggregator(*(pair if pair[1].numel() else empty)) for pair in full])


@every
@pytest.mark.parametrize("training", [True, False])
@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    extra=st.integers(0, 2),
    filling=st.sampled_from([0.0, 7.0, math.nan, math.inf, -math.inf]),
)
def test_sets_of_a_batch_do_not_touch_each_other_whatever_the_padding_holds(
    name: str, training: bool, lengths: list[int], extra: int, filling: float
) -> None:
    aggregator = made(name).train(training)
    x, mask = padded(lengths, filling, extra)
    with torch.no_grad():
        found = aggregator(x, mask)
        torch.testing.assert_close(found, one_by_one(aggregator, x, mask))
    assert found.shape == (len(lengths), aggregator.output_dim)
    assert found.isfinite().all()


@every
def test_gaps_in_a_mask_are_closed(name: str) -> None:
    aggregator = made(name)
    x, _ = padded([5, 5, 5], 0.0)
    mask = torch.tensor([[True, False, True, False, True], [False, False, False, True, False], [False] * 5])
    x[~mask] = math.nan
    torch.testing.assert_close(aggregator(x, mask), one_by_one(aggregator, x, mask))


@every
def test_empty_set_is_the_zero_vector_unless_boundaries_have_states(name: str) -> None:
    x, mask = padded([0, 2], math.nan)
    empty, other = made(name)(x, mask)
    assert bool((empty == 0).all()) == (name not in EMPTY_IS_NOT_ZERO)
    assert empty.isfinite().all()
    assert other.any()


@every
def test_a_batch_of_empty_sets_alone(name: str) -> None:
    x, mask = padded([0, 0], math.nan)
    first, second = made(name)(x, mask)
    assert torch.equal(first, second)
    assert bool((first == 0).all()) == (name not in EMPTY_IS_NOT_ZERO)


@every
def test_order_of_a_set(name: str) -> None:
    aggregator = made(name)
    x, mask = padded([4, 5], 0.0)
    order = torch.tensor([3, 0, 4, 2, 1])
    found, expected = aggregator(x[:, order], mask[:, order]), aggregator(x, mask)
    assert torch.allclose(found, expected) == (name in ANY_ORDER)


@every
def test_gradients_are_finite_and_zero_at_padding(name: str) -> None:
    aggregator = made(name)
    x, mask = padded([0, 2, 4], math.nan)
    x.requires_grad_()
    aggregator(x, mask).square().sum().backward()
    assert x.grad is not None
    assert (x.grad[~mask] == 0).all()
    for parameter in [x, *aggregator.parameters()]:
        assert parameter.grad is not None  # distributed training waits for all of them
        assert parameter.grad.isfinite().all()


@every
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    aggregator = made(name)
    x, mask = padded([0, 3, 1], 0.0)
    assert torch.autograd.gradcheck(lambda vectors: aggregator(vectors, mask), (x.requires_grad_(),))


@every
def test_nan_in_the_set_itself_is_not_hidden(name: str) -> None:
    x, mask = padded([2, 2], 0.0)
    x[0, 1, 2] = math.nan
    assert made(name)(x, mask).isnan().any(dim=1).tolist() == [True, False]


@every
def test_half_precision_of_mixed_training(name: str) -> None:
    aggregator = made(name).float()
    x, mask = padded([0, 2, 4], math.nan)
    expected = aggregator(x.float(), mask)
    with torch.autocast("cpu", torch.bfloat16):
        found = aggregator(x.bfloat16(), mask)
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.1)
