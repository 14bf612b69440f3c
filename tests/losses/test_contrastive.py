"""The contrastive loss against a loop over pairs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.errors import ConfigError
from xmodal.losses.contrastive import ContrastiveLoss


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("siblings", ["mask", "positive"])
@settings(max_examples=40, deadline=None)
@given(data=st.data(), margin=st.sampled_from([0.3, 1.0, 3.0]))
def test_agrees_with_a_loop_over_pairs(batches, relations, distance_between, distance, siblings, data, margin):
    batch = data.draw(batches)
    sides = ("image",) if batch.memory is None else ("image", "text")
    found = [relation for side in sides for relation in relations(batch, side, siblings)]
    near = [distance_between(f.anchor, p, distance) ** 2 / 2 for f in found for p in f.matches]
    far = [max(0.0, margin - distance_between(f.anchor, n, distance)) ** 2 / 2 for f in found for n in f.negatives]
    loss = ContrastiveLoss(margin, distance, siblings)
    assert float(loss(*batch)) == pytest.approx(mean(near) + mean(far), rel=1e-9, abs=1e-12)
    assert float(loss.figures()["active_negatives"]) == pytest.approx(mean([float(value > 0) for value in far]))


def test_many_negatives_do_not_drown_the_matches():
    """A batch twice as large, of the same items again, costs the same."""
    torch.manual_seed(0)
    image, text = torch.randn(2, 5, 4)
    loss, ids = ContrastiveLoss(3.0), torch.arange(5)
    twice = loss(image.repeat(2, 1), text.repeat(2, 1), ids.repeat(2))
    torch.testing.assert_close(twice, loss(image, text, ids))


def test_all_faults_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        ContrastiveLoss(0.0, "squared_euclidean", "drop")
    assert caught.value.faults == (
        "loss.distance must be one of euclidean, cosine; found 'squared_euclidean'",
        "loss.siblings must be one of mask, positive; found 'drop'",
        "loss.margin must be positive and finite, found 0.0",
    )
