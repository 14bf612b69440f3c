"""InfoNCE against loops over anchors, matches and negatives."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from xmodal.errors import ConfigError
from xmodal.losses.infonce import InfoNCELoss


@pytest.mark.parametrize("anchor", ["image", "text", "both"])
@pytest.mark.parametrize("siblings", ["mask", "positive"])
@settings(max_examples=25, deadline=None)
@given(data=st.data(), temperature=st.sampled_from([0.02, 0.07, 1.0]), learned=st.booleans())
def test_agrees_with_loops(batches, relations, cosine, anchor, siblings, data, temperature, learned):
    batch = data.draw(batches)
    losses = []
    for side in ("image", "text") if anchor == "both" else (anchor,):
        for found in relations(batch, side, siblings):
            below = sum(math.exp(cosine(found.anchor, n) / temperature) for n in found.negatives)
            tops = [math.exp(cosine(found.anchor, p) / temperature) for p in found.matches]
            losses.append(sum(-math.log(top / (top + below)) for top in tops) / len(tops))
    loss = InfoNCELoss(temperature, learned, anchor=anchor, siblings=siblings).double()
    tolerance = 1e-5 if learned else 1e-9  # log(1/τ) was rounded to float32
    expected = sum(losses) / len(losses)
    assert loss(*batch).item() == pytest.approx(expected, rel=tolerance, abs=1e-12)


def test_of_different_images_it_is_the_symmetric_cross_entropy_of_clip():
    torch.manual_seed(0)
    image, text = torch.randn(2, 9, 5)
    logits = F.normalize(image) @ F.normalize(text).T / 0.07
    target = torch.arange(9)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(InfoNCELoss(0.07)(image, text, target), expected)


def test_matches_do_not_push_one_another_away(batch_of):
    """Unlike the supervised contrastive loss, a perfect arrangement of several matches costs nothing."""
    ids = torch.tensor([0, 0, 1, 1])
    image = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])
    assert InfoNCELoss(0.02, siblings="positive")(image, image, ids) < 1e-6


@pytest.mark.parametrize("temperature", [1e-30, 0.001])
def test_no_similarity_overflows(temperature):
    image, text = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    image.requires_grad_()
    loss = InfoNCELoss(temperature, learn_temperature=False)(image, text, torch.arange(2))
    loss.backward()
    assert loss.item() == pytest.approx(2 / temperature)
    assert image.grad.isfinite().all()


def test_the_temperature_is_learned_within_its_bounds_and_leaves_them_again():
    image = torch.eye(4)
    loss = InfoNCELoss(0.011, min_temperature=0.01, max_temperature=0.5)
    optimizer = torch.optim.SGD(loss.parameters(), lr=1e3)
    told = []
    for text in [image] * 10 + [image.roll(1, 0)] * 3:  # perfect pairs want it lower, wrong ones higher
        optimizer.zero_grad()
        loss(0.9 * image + 0.1, text, torch.arange(4)).backward()
        optimizer.step()
        told.append(float(loss.figures()["temperature"]))
    assert min(told) >= 0.01 * (1 - 1e-6)
    assert max(told) <= 0.5 * (1 + 1e-6)
    assert told[-1] > told[0]
    with torch.no_grad():
        loss.inverse_temperature.log.fill_(99.0)
    loss(image, image, torch.arange(4)).backward()
    assert float(loss.figures()["temperature"]) == pytest.approx(0.01)
    optimizer.zero_grad()
    loss(image, image.roll(1, 0), torch.arange(4)).backward()
    assert float(loss.inverse_temperature.log.grad) > 0  # at its bound, but not stuck there


def test_a_fixed_temperature_is_no_parameter():
    assert list(InfoNCELoss(learn_temperature=False).parameters()) == []
    (parameter,) = InfoNCELoss(0.05).parameters()
    assert parameter.item() == pytest.approx(math.log(20))


def test_a_learned_temperature_stays_in_float32():
    loss = InfoNCELoss(0.07).to(torch.bfloat16)
    assert loss.inverse_temperature.log.dtype == torch.float32
    assert loss.inverse_temperature.log.item() == pytest.approx(-math.log(0.07), rel=1e-7)
    assert InfoNCELoss(0.07).double().inverse_temperature.log.dtype == torch.float64


def test_gradient_of_the_temperature_agrees_with_finite_differences(batch_of):
    loss, batch = InfoNCELoss(0.3).double(), batch_of(6, 4, False, 3, seed=2)
    loss(*batch).backward()
    found, step = float(loss.inverse_temperature.log.grad), 1e-6
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            loss.inverse_temperature.log.add_(sign * step)
            values.append(float(loss(*batch)))
            loss.inverse_temperature.log.sub_(sign * step)
    assert found == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)


def test_all_faults_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        InfoNCELoss(temperature=0.0, anchor="imge", siblings="drop")
    assert caught.value.faults == (
        "loss.anchor must be one of image, text, both; found 'imge'",
        "loss.siblings must be one of mask, positive; found 'drop'",
        "loss.temperature must be positive and finite, found 0.0",
    )


@pytest.mark.parametrize("bounds", [(0.1, 1.0), (0.01, 0.05), (0.0, 1.0), (0.01, math.inf)])
def test_a_learned_temperature_lies_between_its_bounds(bounds):
    with pytest.raises(ConfigError, match=f"both positive; found 0.07, {bounds[0]} and {bounds[1]}"):
        InfoNCELoss(0.07, True, *bounds)
    assert list(InfoNCELoss(0.07, False, *bounds).parameters()) == []
