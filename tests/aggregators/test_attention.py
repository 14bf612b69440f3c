"""Attention of a learned query against a loop."""

import math

import torch

from xmodal.aggregators.attention import AttentionAggregator
from xmodal.aggregators.mean import MeanAggregator


def test_agrees_with_a_loop() -> None:
    aggregator = AttentionAggregator(3)
    torch.nn.init.normal_(aggregator.query, std=2.0)
    x, mask = torch.randn(5, 4, 3), torch.rand(5, 4) > 0.4
    for vectors, exists, found in zip(x.tolist(), mask.tolist(), aggregator(x, mask), strict=True):
        kept = [vector for vector, e in zip(vectors, exists, strict=True) if e]
        products = [
            math.exp(sum(a * b for a, b in zip(aggregator.query.tolist(), v, strict=True)) / math.sqrt(3)) for v in kept
        ]
        expected = [
            sum(p * v[d] for p, v in zip(products, kept, strict=True)) / sum(products or [1.0]) for d in range(3)
        ]
        torch.testing.assert_close(found, torch.tensor(expected))


def test_starts_as_the_mean() -> None:
    x, mask = torch.randn(5, 4, 3), torch.rand(5, 4) > 0.4
    torch.testing.assert_close(AttentionAggregator(3)(x, mask), MeanAggregator(3)(x, mask))


def test_large_scores_do_not_overflow() -> None:
    aggregator = AttentionAggregator(2)
    torch.nn.init.constant_(aggregator.query, 1e4)
    x = torch.tensor([[[1.0, 1.0], [2.0, 2.0]]])
    assert aggregator(x, torch.ones(1, 2, dtype=torch.bool)).tolist() == [[2.0, 2.0]]
