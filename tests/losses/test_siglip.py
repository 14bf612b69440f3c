"""The sigmoid loss against a loop over pairs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from xmodal.errors import ConfigError
from xmodal.losses.siglip import SigLIPLoss


def minus_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x)) if x > -30 else -x


@pytest.mark.parametrize("siblings", ["mask", "positive"])
@settings(max_examples=40, deadline=None)
@given(data=st.data(), temperature=st.sampled_from([0.01, 0.1, 1.0]), bias=st.sampled_from([-10.0, 0.0, 3.0]))
def test_agrees_with_a_loop_over_pairs(batches, relations, cosine, siblings, data, temperature, bias):
    batch = data.draw(batches)
    sums = []
    for side in ("image", "text"):
        pairs = [
            (z, cosine(found.anchor, item) / temperature + bias)
            for found in relations(batch, side, siblings)
            for z, items in ((1, found.matches), (-1, found.negatives))
            for item in items
        ]
        sums.append(sum(minus_log_sigmoid(z * logit) for z, logit in pairs) / len(batch.image))
    if batch.memory is None:
        assert sums[0] == pytest.approx(sums[1])
    loss = SigLIPLoss(temperature, bias, learn_temperature=False, siblings=siblings).double()
    assert loss(*batch).item() == pytest.approx(sum(sums) / 2, rel=1e-9)


def test_is_the_algorithm_of_the_paper():
    torch.manual_seed(0)
    image, text = torch.randn(2, 6, 5)
    logits = F.normalize(image) @ F.normalize(text).T * math.exp(math.log(10)) - 10
    expected = -F.logsigmoid((2 * torch.eye(6) - 1) * logits).sum() / 6
    torch.testing.assert_close(SigLIPLoss()(image, text, torch.arange(6)), expected)


def test_temperature_and_bias_are_learned_unless_they_are_to_stay():
    image = torch.eye(3)
    loss = SigLIPLoss()
    loss(image, image, torch.arange(3)).backward()
    assert {name for name, p in loss.named_parameters() if p.grad} == {"inverse_temperature.log", "bias"}
    assert [p for p in SigLIPLoss(learn_temperature=False, learn_bias=False).parameters() if p.requires_grad] == []
    assert {name: round(float(value), 5) for name, value in loss.figures().items()} == {"temperature": 0.1, "bias": -10}


def test_all_faults_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        SigLIPLoss(temperature=2.0, bias=math.nan, siblings="drop")
    assert caught.value.faults == (
        "loss.siblings must be one of mask, positive; found 'drop'",
        "loss.temperature, where it is learned, must lie between loss.min_temperature and loss.max_temperature, "
        "both positive; found 2.0, 0.005 and 1.0",
        "loss.bias must be finite, found nan",
    )


def test_the_bias_learns_in_a_model_of_half_precision():
    loss, image = SigLIPLoss().to(torch.bfloat16), torch.eye(3, dtype=torch.bfloat16)
    assert loss.bias.dtype == loss.inverse_temperature.log.dtype == torch.float32
    assert SigLIPLoss().double().bias.dtype == torch.float64
    loss(image, image, torch.arange(3)).backward()
    torch.optim.SGD(loss.parameters(), lr=1e-3).step()  # bfloat16 has no number between -10 and -9.9375
    assert 0 < abs(loss.bias.item() + 10) < 0.01
