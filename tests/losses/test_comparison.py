"""What all losses have in common: who is compared with whom, precision, and the cases in which others go wrong."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from xmodal.config.command_line import compose
from xmodal.config.sources import ConfigSource
from xmodal.losses.comparison import EmbeddedPairs, across, cosine_similarity, within
from xmodal.losses.contrastive import ContrastiveLoss
from xmodal.losses.infonce import InfoNCELoss
from xmodal.losses.siglip import SigLIPLoss
from xmodal.losses.triplet import TripletLoss
from xmodal.models.objective import Objective

SIBLINGS = ("mask", "positive")
LOSSES: dict[str, Callable[[str], nn.Module]] = {
    "triplet": lambda siblings: TripletLoss(0.5, siblings=siblings),
    "sum_of_hinges": lambda siblings: TripletLoss(0.5, siblings=siblings, reduction="sum"),
    "max_of_hinges": lambda siblings: TripletLoss(0.5, negatives="hardest", siblings=siblings, reduction="sum"),
    "euclidean": lambda siblings: TripletLoss(3.0, "both", "euclidean", siblings=siblings, reduction="mean"),
    "squared_euclidean": lambda siblings: TripletLoss(3.0, "both", "squared_euclidean", siblings=siblings),
    "contrastive": lambda siblings: ContrastiveLoss(3.0, siblings=siblings),
    "contrastive_cosine": lambda siblings: ContrastiveLoss(3.0, "cosine", siblings),
    "infonce": lambda siblings: InfoNCELoss(siblings=siblings),
    "infonce_image": lambda siblings: InfoNCELoss(learn_temperature=False, anchor="image", siblings=siblings),
    "siglip": lambda siblings: SigLIPLoss(siblings=siblings),
}
EVERY = pytest.mark.parametrize("siblings", SIBLINGS)
ALL = pytest.mark.parametrize("name", LOSSES)


def listed(mask: Tensor) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for row in mask]


@pytest.mark.parametrize(("labels", "groups"), [(None, [7, 7, 1]), ([0, 1, 1], [0, 1, 1])])
def test_across_the_own_pair_matches_and_siblings_are_no_negatives(labels, groups):
    image, text, ids = torch.randn(3, 2), torch.randn(3, 2), torch.tensor([7, 7, 1])
    given = None if labels is None else torch.tensor(labels)
    old = EmbeddedPairs(torch.randn(2, 2), torch.randn(2, 2), torch.tensor([1, 8]), labels and torch.tensor([1, 5]))
    found = [*groups, *([1, 8] if labels is None else [1, 5])]
    for siblings in SIBLINGS:
        for side, c in zip((image, text), across(image, text, ids, given, old, siblings), strict=True):
            other, remembered = (text, old.text) if side is image else (image, old.image)
            assert c.anchors is side
            assert torch.equal(c.candidates, torch.cat([other, remembered]))
            same = [[j for j in range(5) if found[j] == groups[i]] for i in range(3)]
            assert listed(c.negatives) == [[j for j in range(5) if j not in row] for row in same]
            assert listed(c.positives) == (same if siblings == "positive" else [[0], [1], [2]])


def test_within_texts_other_captions_of_the_image_match_and_none_is_compared_with_itself():
    text, ids = torch.randn(4, 2), torch.tensor([7, 7, 1, 7])
    old = EmbeddedPairs(torch.randn(2, 2), torch.randn(2, 2), torch.tensor([1, 8]))
    c = within("text", torch.randn(4, 2), text, ids, None, old)
    assert torch.equal(c.candidates, torch.cat([text, old.text]))
    assert listed(c.positives) == [[1, 3], [0, 3], [4], [0, 1]]
    assert listed(c.negatives) == [[2, 4, 5], [2, 4, 5], [0, 1, 3, 5], [2, 4, 5]]


def test_within_images_an_image_is_not_compared_with_itself_in_another_pair():
    image, ids, labels = torch.randn(4, 2), torch.tensor([7, 7, 1, 2]), torch.tensor([0, 0, 0, 1])
    old = EmbeddedPairs(torch.randn(2, 2), torch.randn(2, 2), torch.tensor([7, 8]), torch.tensor([0, 1]))
    c = within("image", image, torch.randn(4, 2), ids, labels, old)
    assert torch.equal(c.candidates, torch.cat([image, old.image]))
    assert listed(c.positives) == [[2], [2], [0, 1, 4], [5]]
    assert listed(c.negatives) == [[3, 5], [3, 5], [3, 5], [0, 1, 2, 4]]


def test_a_zero_vector_has_the_cosine_zero_with_a_bounded_gradient():
    a = torch.zeros(1, 3, requires_grad=True)
    found = cosine_similarity(a, torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]]))
    assert found.tolist() == [[0.0, 0.0]]
    found.sum().backward()
    assert a.grad.isfinite().all()


@ALL
@EVERY
@pytest.mark.parametrize(("labelled", "remembered"), [(False, 0), (True, 3)])
def test_gradient_agrees_with_finite_differences(batch_of, name, siblings, labelled, remembered):
    image, text, ids, labels, memory = batch_of(5, 4, labelled, remembered, seed=3)
    loss = LOSSES[name](siblings).double()
    assert loss(image, text, ids, labels, memory).item() > 0
    assert torch.autograd.gradcheck(
        lambda i, t: loss(i, t, ids, labels, memory),
        (image.requires_grad_(), text.requires_grad_()),
        eps=1e-7,
        atol=1e-5,
    )


@ALL
@EVERY
@pytest.mark.parametrize("side", [0, 1])
def test_nan_is_not_hidden(batch_of, name, siblings, side):
    batch = batch_of(4, 4, False, 3, seed=0)
    batch[side][2, 1] = math.nan
    assert LOSSES[name](siblings)(*batch).isnan()


@ALL
@EVERY
def test_half_precision_and_autocast_are_computed_in_float32(name, siblings):
    torch.manual_seed(0)
    image, text = (torch.randn(8, 16).bfloat16() for _ in range(2))
    ids, loss = torch.arange(8) // 2, LOSSES[name](siblings)
    expected = loss(image.float(), text.float(), ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [loss(image, text, ids), loss(image.float(), text.float(), ids)]
    for value in found:
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)


@ALL
@EVERY
def test_the_order_of_the_pairs_does_not_matter(batch_of, name, siblings):
    image, text, ids, labels, memory = batch_of(7, 4, True, 4, seed=5)
    order, loss = torch.randperm(7), LOSSES[name](siblings)
    torch.testing.assert_close(
        loss(image[order], text[order], ids[order], labels[order], memory), loss(image, text, ids, labels, memory)
    )


@ALL
@EVERY
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_image_alone_and_collapsed_embeddings_have_finite_gradients(name, siblings, size, value):
    """Also of a batch of one pair, without any negative, and of zero vectors."""
    for ids in (torch.zeros(size, dtype=torch.int64), torch.arange(size)):
        image, text = torch.full((2, size, 3), value).unbind()
        loss = LOSSES[name](siblings)
        total = loss(image.requires_grad_(), text.requires_grad_(), ids)
        total.backward()
        gradients = [image.grad, text.grad, *(p.grad for p in loss.parameters())]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in [total, *gradients])
        assert all(figure.isfinite() and not figure.requires_grad for figure in loss.figures().values())


@pytest.mark.parametrize(
    "name", [name for name in LOSSES if name not in ("siglip", "contrastive", "contrastive_cosine")]
)
@EVERY
def test_without_negatives_there_is_nothing_to_learn(name, siblings):
    image, text = torch.randn(2, 5, 3).unbind()
    total = LOSSES[name](siblings)(image.requires_grad_(), text, torch.zeros(5, dtype=torch.int64))
    total.backward()
    assert total == 0
    assert image.grad.abs().sum() == 0


@ALL
def test_masked_siblings_leave_no_trace(name):
    """Two captions of one image: neither the other's image nor the other's text changes what a pair costs."""
    torch.manual_seed(1)
    image, text = torch.randn(2, 4, 3)
    losses = []
    for ids in ([0, 0, 1, 2], [0, 3, 1, 2]):
        loss, i = LOSSES[name]("mask"), image.clone().requires_grad_()
        c = across(i, text, torch.tensor(ids))[0]
        only = c._replace(anchors=c.anchors[:1], positives=c.positives[:1], negatives=c.negatives[:1])
        t = text.clone().requires_grad_()
        loss.compare([only._replace(candidates=t)]).backward()
        losses.append(t.grad[1].abs().sum())
    assert losses[0] == 0
    if "max" not in name:  # whose hardest negative may be another one
        assert losses[1] > 0


@ALL
@EVERY
def test_a_memory_adds_candidates(batch_of, name, siblings):
    image, text, ids, _, memory = batch_of(5, 5, False, 6, seed=4)
    loss = LOSSES[name](siblings)
    assert loss(image, text, ids, None, memory).item() != pytest.approx(loss(image, text, ids).item())


@pytest.mark.parametrize("option", ConfigSource().groups()["loss"])
def test_every_shipped_loss_learns_from_labels_with_a_memory_and_at_several_sizes(batch_of, option):
    objective = Objective(instantiate(compose([f"loss={option}"]).loss), "label", cross_batch_memory=8, matryoshka=[2])
    objective.use_labels(np.array(["sea", "sky", "sea", "art", "sky"]))
    for step in range(2):
        objective.at_step(step, (0, step))
        new = batch_of(8, 5, False, 0, seed=step)
        image, text = new.image.float().requires_grad_(), new.text.float().requires_grad_()
        total = objective(EmbeddedPairs(image, text, new.image_ids))
        total.backward()
        gradients = [image.grad, text.grad, *(p.grad for p in objective.parameters())]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
        assert image.grad.abs().sum() + text.grad.abs().sum() > 0
    assert all(figure.isfinite() for figure in objective.figures().values())
