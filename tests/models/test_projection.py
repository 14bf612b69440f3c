import pytest
import torch
from torch import nn

from xmodal.errors import ConfigError
from xmodal.models.projection import Projection


@pytest.mark.parametrize(("num_layers", "hidden_dim", "widths"), [
    (1, None, [(7, 5)]),
    (2, None, [(7, 5), (5, 5)]),
    (3, 11, [(7, 11), (11, 11), (11, 5)]),
])  # fmt: skip
def test_layers_have_the_stated_widths(num_layers, hidden_dim, widths):
    linear = [layer for layer in Projection(7, 5, num_layers, hidden_dim).layers if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == widths


def test_result_is_relu_between_linear_layers():
    projection = Projection(4, 3, num_layers=2, hidden_dim=6).eval()
    first, last = projection.layers[0], projection.layers[-1]
    x = torch.randn(5, 4)
    expected = (x @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias
    torch.testing.assert_close(projection(x), expected)


@pytest.mark.parametrize(("wrong", "message"), [
    ({"output_dim": 0}, "embedding_dim must be at least 1, found 0"),
    ({"num_layers": 0}, "num_layers must be at least 1, found 0"),
    ({"hidden_dim": 0}, "hidden_dim must be at least 1"),
    ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), found 1.0"),
])  # fmt: skip
def test_values_out_of_range_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Projection(**({"input_dim": 4, "output_dim": 3} | wrong))


def test_all_faults_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        Projection(4, -1, num_layers=0, dropout=2.0)
    assert len(caught.value.faults) == 3
