import math

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
    ({"num_layers": -1}, "num_layers must be at least 0, found -1"),
    ({"num_layers": 0}, r"num_layers=0 .* 4 wide, but embeddings are to be 3 wide .*Set projection.num_layers=1"),
    ({"num_layers": 0, "output_dim": 4, "residual": True}, "residual=true is added to layers, but .*num_layers=0"),
    ({"hidden_dim": 0}, "hidden_dim must be at least 1"),
    ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), found 1.0"),
])  # fmt: skip
def test_values_out_of_range_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Projection(**({"input_dim": 4, "output_dim": 3} | wrong))


def test_all_faults_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        Projection(4, -1, num_layers=-1, dropout=2.0)
    assert len(caught.value.faults) == 3


def test_no_layers_leave_vectors_as_they_are():
    projection, x = Projection(4, 4, num_layers=0), torch.randn(5, 4)
    assert projection(x) is x
    assert list(projection.parameters()) == []


@pytest.mark.parametrize("num_layers", [1, 2])
def test_residual_adds_a_linear_layer(num_layers):
    projection, x = Projection(4, 3, num_layers, residual=True).eval(), torch.randn(5, 4)
    straight = x @ projection.shortcut.weight.T + projection.shortcut.bias
    torch.testing.assert_close(projection(x), projection.layers(x) + straight)


def test_hidden_layers_are_normalised_over_the_batch():
    projection, x = Projection(4, 3, num_layers=3, hidden_dim=6, batch_norm=True), torch.randn(50, 4) * 9
    hidden = x
    for start in (0, 4):  # linear, norm, ReLU, drop-out
        hidden = hidden @ projection.layers[start].weight.T + projection.layers[start].bias
        hidden = (hidden - hidden.mean(dim=0)) / (hidden.var(dim=0, unbiased=False) + 1e-5).sqrt()
        hidden = hidden.clamp(min=0)
    expected = hidden @ projection.layers[8].weight.T + projection.layers[8].bias
    torch.testing.assert_close(projection(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("count", [0, 1])
def test_a_batch_without_deviation_is_normalised_by_the_running_statistics(count):
    projection = Projection(4, 3, batch_norm=True)
    projection(torch.randn(20, 4) * 5)
    state = {name: value.clone() for name, value in projection.state_dict().items()}
    x = torch.randn(count, 4)
    found = projection.train()(x)
    assert all(torch.equal(value, state[name]) for name, value in projection.state_dict().items())
    torch.testing.assert_close(found, projection.eval()(x))
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in projection.parameters())


def test_old_parameters_fit_where_nothing_new_is_on():
    assert set(Projection(4, 3).state_dict()) == {
        "layers.0.weight",
        "layers.0.bias",
        "layers.3.weight",
        "layers.3.bias",
    }


def test_xavier_begins_with_the_weights_of_its_paper():
    torch.manual_seed(0)
    projection = Projection(400, 100, num_layers=2, hidden_dim=300, residual=True, init="xavier")
    for layer in [module for module in projection.modules() if isinstance(module, nn.Linear)]:
        bound = math.sqrt(6 / sum(layer.weight.shape))
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert not layer.bias.any()
