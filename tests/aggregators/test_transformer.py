"""The transformer aggregator against the equations of self-attention, written out."""

import math

import pytest
import torch
from torch import Tensor, nn

from xmodal.aggregators.attention import AttentionAggregator
from xmodal.aggregators.positions import sinusoids
from xmodal.aggregators.transformer import TransformerAggregator
from xmodal.errors import ConfigError

SIZES = {"hidden_size": 6, "num_heads": 2, "feedforward_dim": 5, "dropout": 0.0}


def attended(layer: nn.TransformerEncoderLayer, x: Tensor) -> Tensor:
    """Vaswani et al. 2017, equation 1, head by head, vector by vector."""
    attention, width = layer.self_attn, x.shape[1]
    q, k, v = (x @ attention.in_proj_weight.T + attention.in_proj_bias).split(width, dim=1)
    size, heads = width // attention.num_heads, []
    for start in range(0, width, size):
        part = slice(start, start + size)
        rows = []
        for query in q[:, part]:
            weights = torch.stack([query @ key / math.sqrt(size) for key in k[:, part]]).softmax(dim=0)
            rows.append(sum(w * value for w, value in zip(weights, v[:, part], strict=True)))
        heads.append(torch.stack(rows))
    return torch.cat(heads, dim=1) @ attention.out_proj.weight.T + attention.out_proj.bias


def by_equations(aggregator: TransformerAggregator, vectors: Tensor) -> Tensor:
    x = aggregator.widen(vectors)
    x = (
        x
        + {"none": 0.0, "sinusoidal": sinusoids(*x.shape, like=x), "learned": aggregator.learned}[aggregator.positions]
    )
    for layer in aggregator.encoder.layers:
        feed = nn.Sequential(layer.linear1, nn.ReLU(), layer.linear2)
        if layer.norm_first:
            x = x + attended(layer, layer.norm1(x))
            x = x + feed(layer.norm2(x))
        else:
            x = layer.norm1(x + attended(layer, x))
            x = layer.norm2(x + feed(x))
    return (aggregator.encoder.norm(x) if aggregator.encoder.norm else x).mean(dim=0)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("positions", ["none", "sinusoidal", "learned"])
@pytest.mark.parametrize("feature_dim", [6, 4])
def test_agrees_with_the_equations(feature_dim: int, positions: str, norm_first: bool) -> None:
    torch.manual_seed(0)
    options = {"num_layers": 2, "norm_first": norm_first, "max_positions": 5}
    aggregator = TransformerAggregator(feature_dim, positions, **SIZES, **options)
    x, mask = (
        torch.randn(2, 7, feature_dim),
        torch.tensor([[True] * 5 + [False] * 2, [True, False] + [True] * 4 + [False]]),
    )
    expected = torch.stack([by_equations(aggregator, vectors[exists]) for vectors, exists in zip(x, mask, strict=True)])
    for training in (True, False):  # out of training, torch has a faster way of its own
        with torch.set_grad_enabled(training):
            found = aggregator.train(training)(x, mask)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_vectors_behind_the_learned_positions_share_the_last() -> None:
    aggregator = TransformerAggregator(6, "learned", max_positions=2, **SIZES)
    mask = torch.ones(1, 5, dtype=torch.bool)
    x = torch.randn(1, 5, 6)
    swapped = x[:, [0, 1, 4, 2, 3]]
    torch.testing.assert_close(aggregator(x, mask), aggregator(swapped, mask))
    assert not torch.allclose(aggregator(x, mask), aggregator(x[:, [1, 0, 2, 3, 4]], mask))


def test_encodings_of_positions() -> None:
    found = sinusoids(3, 5, like=torch.zeros(1))
    expected = [[(math.cos if d % 2 else math.sin)(k / 10000 ** ((d - d % 2) / 5)) for d in range(5)] for k in range(3)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_heads_need_not_divide_the_features() -> None:
    aggregator = TransformerAggregator(7, "none", hidden_size=8, num_heads=4, pooling=AttentionAggregator)
    assert aggregator(torch.randn(2, 3, 7), torch.ones(2, 3, dtype=torch.bool)).shape == (2, aggregator.output_dim)
    assert aggregator.output_dim == 8


@pytest.mark.parametrize(("wrong", "message"), [
    ({"hidden_size": 0}, "hidden_size must be at least 1, found 0"),
    ({"num_layers": 0}, "num_layers must be at least 1, found 0"),
    ({"num_heads": 0}, "num_heads must be at least 1, found 0"),
    ({"feedforward_dim": 0}, "feedforward_dim must be at least 1, found 0"),
    ({"max_positions": 0}, "max_positions must be at least 1, found 0"),
    ({"hidden_size": 12, "num_heads": 8}, "hidden_size=12 must be a multiple of num_heads=8"),
    ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), found 1.0"),
])  # fmt: skip
def test_impossible_values_are_named(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TransformerAggregator(6, "none", **wrong)


def test_layers_begin_with_weights_of_their_own():
    first, second = TransformerAggregator(8, "none", hidden_size=8, num_layers=2, num_heads=2).encoder.layers
    for name, weights in first.named_parameters():
        if weights.dim() > 1:
            assert not torch.equal(weights, second.get_parameter(name)), name
