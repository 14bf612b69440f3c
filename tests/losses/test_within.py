"""A loss among the items of one side, against loops."""

import math

import pytest
import torch
from torch import nn

from xmodal.errors import ConfigError
from xmodal.losses.comparison import EmbeddedPairs
from xmodal.losses.contrastive import ContrastiveLoss
from xmodal.losses.infonce import InfoNCELoss
from xmodal.losses.siglip import SigLIPLoss
from xmodal.losses.triplet import TripletLoss
from xmodal.losses.within import WithinModality

LOSSES = {
    "triplet": lambda: TripletLoss(0.7),
    "contrastive": lambda: ContrastiveLoss(2.0, "cosine"),
    "infonce": lambda: InfoNCELoss(0.5, learn_temperature=False),
    "siglip": lambda: SigLIPLoss(learn_temperature=False),
}


def pairs_within(batch, side, cosine):
    """Cosine to every match and every negative, of every item: an image (by its id) or caption is never its own."""
    items = (batch.image if side == "image" else batch.text).tolist()
    groups = (batch.image_ids if batch.labels is None else batch.labels).tolist()
    names = batch.image_ids.tolist() if side == "image" else [f"new {i}" for i in range(len(items))]
    others, found, theirs = list(items), list(groups), list(names)
    if batch.memory is not None:
        others += (batch.memory.image if side == "image" else batch.memory.text).tolist()
        found += (batch.memory.image_ids if batch.labels is None else batch.memory.labels).tolist()
        theirs += batch.memory.image_ids.tolist() if side == "image" else ["old"] * len(batch.memory.image_ids)
    for a, anchor in enumerate(items):
        matches, negatives = [], []
        for c, other in enumerate(others):
            if found[c] != groups[a]:
                negatives.append(cosine(anchor, other))
            elif theirs[c] != names[a]:
                matches.append(cosine(anchor, other))
        yield matches, negatives


def triplet(rows):
    hinges = [max(0.0, 0.7 - p + n) for matches, negatives in rows for p in matches for n in negatives]
    return sum(hinges) / max(1, sum(hinge > 0 for hinge in hinges))


def contrastive(rows):
    near = [(1 - p) ** 2 / 2 for matches, _ in rows for p in matches]
    far = [max(0.0, 2.0 - (1 - n)) ** 2 / 2 for _, negatives in rows for n in negatives]
    return sum(sum(part) / len(part) for part in (near, far) if part)


def infonce(rows):
    losses = []
    for matches, negatives in rows:
        below = sum(math.exp(n / 0.5) for n in negatives)
        if matches:
            losses.append(sum(math.log1p(below / math.exp(p / 0.5)) for p in matches) / len(matches))
    return sum(losses) / max(1, len(losses))


def siglip(rows):
    logits = [10 * p - 10 for matches, _ in rows for p in matches] + [10 - 10 * n for _, ns in rows for n in ns]
    return sum(math.log1p(math.exp(-logit)) for logit in logits) / len(rows)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("side", "labelled"), [("image", True), ("text", True), ("text", False)])
@pytest.mark.parametrize("remembered", [0, 4])
@pytest.mark.parametrize("size", [1, 7])
def test_agrees_with_loops(batch_of, cosine, name, side, labelled, remembered, size):
    for seed in range(5):
        batch = batch_of(size, 5, labelled, remembered, seed)
        expected = globals()[name](list(pairs_within(batch, side, cosine)))
        loss = WithinModality(LOSSES[name](), side).double()
        assert loss(*batch).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("side", ["image", "text"])
def test_gradient_agrees_with_finite_differences(batch_of, name, side):
    image, text, ids, labels, memory = batch_of(5, 5, True, 3, seed=1)
    loss = WithinModality(LOSSES[name](), side).double()
    assert torch.autograd.gradcheck(
        lambda i, t: loss(i, t, ids, labels, memory), (image.requires_grad_(), text.requires_grad_()), eps=1e-7
    )


@pytest.mark.parametrize(("side", "other"), [("image", 1), ("text", 0)])
def test_the_other_side_has_gradients_of_zero_and_not_none(batch_of, side, other):
    batch = batch_of(6, 6, True, 0, seed=0)
    sides = [part.requires_grad_() for part in batch[:2]]
    WithinModality(TripletLoss(), side)(*batch).backward()
    assert sides[other].grad.abs().sum() == 0
    assert sides[1 - other].grad.abs().sum() > 0
    with torch.no_grad():
        sides[other][0, 0] = math.nan
    assert WithinModality(TripletLoss(), side)(*batch).isnan()


def test_images_without_labels_are_refused(batch_of):
    batch = batch_of(4, 4, False, 0, seed=0)
    with pytest.raises(ConfigError, match=r"needs labels.*relevance=label"):
        WithinModality(TripletLoss(), "image")(*batch)


def test_figures_and_steps_reach_the_inner_loss(batch_of):
    loss = WithinModality(TripletLoss(negatives="hardest", warmup_steps=2), "text")
    loss.loss.at_step(2, 0)
    loss(*batch_of(6, 3, False, 0, seed=0))
    assert loss.figures() == loss.loss.figures()


def test_all_faults_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        WithinModality(nn.Identity(), "photo")
    assert caught.value.faults == (
        "loss.side must be one of image, text; found 'photo'",
        "loss.loss: Identity has no method compare(comparisons), so it compares images with texts only. Choose "
        "triplet, contrastive, infonce or siglip: loss@loss.loss=triplet",
    )


def test_one_memory_serves_both(batch_of):
    """Embeddings of both sides are remembered; each loss takes the side it needs."""
    memory = EmbeddedPairs(torch.ones(1, 4), -torch.ones(1, 4), torch.tensor([77]))
    image, text, ids, _, _ = batch_of(4, 4, False, 0, seed=0)
    with_memory = WithinModality(TripletLoss(), "text")(image.float(), text.float(), ids, None, memory)
    swapped = memory._replace(image=-memory.image)
    assert with_memory == WithinModality(TripletLoss(), "text")(image.float(), text.float(), ids, None, swapped)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("broken", [0, 1])
def test_nan_is_not_hidden_where_nothing_is_compared(name, side, broken):
    sides, ids = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([3])
    loss = WithinModality(LOSSES[name](), side)
    assert loss(*sides, ids, ids).isfinite()
    sides[broken, 0, 2] = math.nan
    assert loss(*sides, ids, ids).isnan()
