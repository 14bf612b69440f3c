"""Concatenation against lists."""

import pytest
import torch

from xmodal.aggregators.concat import ConcatAggregator
from xmodal.errors import ConfigError


@pytest.mark.parametrize("length", [1, 2, 4, 7])
def test_agrees_with_lists(length: int) -> None:
    x, mask = torch.randn(6, 4, 3), torch.rand(6, 4) > 0.4
    mask[0], mask[1] = False, True
    aggregator = ConcatAggregator(3, length)
    for vectors, exists, found in zip(x.tolist(), mask.tolist(), aggregator(x, mask).tolist(), strict=True):
        kept = [value for vector, e in zip(vectors, exists, strict=True) if e for value in vector]
        assert found == (kept + [0.0] * 3 * length)[: 3 * length]
    assert aggregator.output_dim == 3 * length


def test_no_length_is_refused() -> None:
    with pytest.raises(ConfigError, match="length must be at least 1, found 0"):
        ConcatAggregator(3, length=0)
