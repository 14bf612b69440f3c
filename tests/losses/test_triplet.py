"""The triplet loss against a naive loop over (anchor, positive, negative)."""

import itertools
import math

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from xmodal.config.command_line import compose
from xmodal.errors import ConfigError
from xmodal.losses.comparison import EmbeddedPairs, across
from xmodal.losses.triplet import TripletLoss

ANCHORS = ("image", "text", "both")
DISTANCES = ("euclidean", "squared_euclidean", "cosine")
NEGATIVES = ("all", "semihard", "hardest")


REDUCTIONS = ("active_mean", "mean", "sum")


def hinges_of(found, distance_between, margin: float, distance: str, negatives: str) -> list[list[float]]:
    """Of each match of one anchor: ``max(0, margin + d(a, p) − d(a, n))`` over the chosen negatives."""
    rows = []
    for match in found.matches:
        positive = distance_between(found.anchor, match, distance)
        others = [distance_between(found.anchor, negative, distance) for negative in found.negatives]
        if negatives == "semihard":
            others = [d for d in others if positive < d < positive + margin]
        if negatives == "hardest":
            others = sorted(others)[:1]
        rows.append([max(0.0, margin + positive - d) for d in others])
    return rows


def reduced(rows: list[list[float]], reduction: str) -> float:
    values = [value for row in rows for value in row]
    if reduction == "sum":
        return sum(values)
    count = sum(value > 0 for value in values) if reduction == "active_mean" else len(values)
    return sum(values) / count if count else 0.0


def random_batch(size: int, images: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, size, 4, generator=generator, dtype=torch.float64)
    return image, text, torch.randint(images, (size,), generator=generator)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("negatives", NEGATIVES)
@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    anchor=st.sampled_from(ANCHORS),
    siblings=st.sampled_from(["mask", "positive"]),
    reduction=st.sampled_from(REDUCTIONS),
    margin=st.sampled_from([0.05, 0.2, 1.0, 5.0]),
    progress=st.sampled_from([None, 0, 3, 4, 9]),
)
def test_agrees_with_naive_triplets(
    batches, relations, distance_between, distance, negatives, data, anchor, siblings, reduction, margin, progress
):
    """Also in step 0, 3 and 4 (the first behind it) of a warm-up of 4 steps."""
    batch = data.draw(batches)
    warmup = 0 if progress is None or negatives == "all" else 4
    sides = ("image", "text") if anchor == "both" else (anchor,)
    found = [relation for side in sides for relation in relations(batch, side, siblings)]
    rows = [row for f in found for row in hinges_of(f, distance_between, margin, distance, negatives)]
    every = [row for f in found for row in hinges_of(f, distance_between, margin, distance, "all")]
    means = [[sum(row) / max(1, sum(value > 0 for value in row))] for row in every if row]
    share = min(1.0, progress / 4) if warmup else 1.0
    loss = TripletLoss(margin, anchor, distance, negatives, siblings, reduction, warmup)
    loss.at_step(progress or 0, 0)
    expected = share * reduced(rows, reduction) + (1 - share) * reduced(means, reduction)
    assert loss(*batch).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    values = [value > 0 for row in rows for value in row]
    assert loss.figures()["active_triplets"].item() == pytest.approx(sum(values) / max(1, len(values)))
    assert loss.eval()(*batch).item() == pytest.approx(reduced(rows, reduction), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("name", "summed"), [("sum_of_hinges", True), ("max_of_hinges", False)])
def test_the_presets_are_the_equations_of_vse(name, summed):
    """Equations 5 and 6, term by term; every caption and image of the batch belongs to another pair."""
    loss = instantiate(compose([f"loss={name}"]).loss).eval()
    image, text, _ = random_batch(6, 6, 3)
    scores = (F.normalize(image) @ F.normalize(text).T).tolist()
    total = 0.0
    for i in range(6):
        others = [j for j in range(6) if j != i]
        for hinges in (
            [max(0.0, 0.2 - scores[i][i] + scores[i][j]) for j in others],
            [max(0.0, 0.2 - scores[i][i] + scores[j][i]) for j in others],
        ):
            total += sum(hinges) if summed else max(hinges)
    assert loss(image, text, torch.arange(6)).item() == pytest.approx(total)


def test_max_of_hinges_starts_from_all_negatives():
    loss = instantiate(compose(["loss=max_of_hinges"]).loss)
    image, text, ids = random_batch(6, 6, 3)
    at_first = loss(image, text, ids)
    loss.at_step(loss.warmup_steps, 0)
    assert loss(image, text, ids) > at_first > 0
    assert instantiate(compose(["loss=max_of_hinges", "loss.warmup_steps=0"]).loss)(image, text, ids) == loss.eval()(
        image, text, ids
    )


def test_negatives_of_a_step_are_drawn_alike_everywhere_and_others_in_the_next():
    image, text, ids = random_batch(8, 8, 0)
    values = []
    for noise, seed in ((1, 5), (2, 5), (3, 6)):
        torch.manual_seed(noise)  # as in another process
        loss = TripletLoss(negatives="random", margin=3.0)
        loss.at_step(0, seed)
        state = torch.get_rng_state()
        values.append(loss(image, text, ids).item())
        assert torch.equal(torch.get_rng_state(), state)
    assert values[0] == values[1] != values[2]


def test_random_negatives_of_siblings_and_memory_are_drawn_uniformly():
    """Anchor 0 has three matches and three negatives, one each remembered: each is drawn a third of the time."""
    image, text = torch.zeros(4, 1), torch.tensor([[0.0], [0.0], [1.0], [10.0]])
    ids, remembered = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 9])
    memory = EmbeddedPairs(torch.zeros(2, 1), torch.tensor([[0.0], [100.0]]), remembered)
    loss = TripletLoss(1000.0, "image", "euclidean", "random", "positive", "sum")
    anchors = across(image, text, ids, None, memory, "positive")[0]
    first = anchors._replace(anchors=image[:1], positives=anchors.positives[:1], negatives=anchors.negatives[:1])
    drawn = []
    for seed in range(400):
        loss.at_step(0, seed)
        drawn.append(round(3000 - loss.compare([first]).item()))
    assert set(drawn) == {sum(three) for three in itertools.product((1, 10, 100), repeat=3)}
    assert sum(drawn) / 400 == pytest.approx(3 * 37, rel=0.15)


@pytest.mark.parametrize("anchor", ["image", "text"])
def test_random_draws_every_negative_and_none_of_the_same_image(anchor: str) -> None:
    torch.manual_seed(0)
    ids = torch.tensor([7, 7, 1, 2])
    anchors = torch.tensor([[0.0], [0.0], [100.0], [200.0]])
    items = torch.tensor([[0.0], [0.5], [1.0], [3.0]])  # of the first anchor: margin + 0 − 1 or − 3; never − 0.5
    image, text = (anchors, items) if anchor == "image" else (items, anchors)
    loss = TripletLoss(margin=10.0, anchor=anchor, distance="euclidean", negatives="random")
    hinges = [10 + p - n for p, ns in [(0, (1, 3)), (0.5, (1, 3))] for n in ns]
    # anchors 100 and 200: positives at 99 and 197, negatives at 100, 99.5, 97 and 200, 199.5, 199
    drawn = {round(float(loss(image, text, ids)) * 4, 3) for _ in range(600)}
    others = [[10 + 99 - n for n in (100, 99.5, 97)], [10 + 197 - n for n in (200, 199.5, 199)]]
    expected = {round(a + b + c + d, 3) for a in hinges[:2] for b in hinges[2:] for c in others[0] for d in others[1]}
    assert drawn == expected


def test_random_negatives_follow_the_seed() -> None:
    image, text, ids = random_batch(8, 8, 0)
    loss = TripletLoss(negatives="random", margin=3.0)
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(float(loss(image, text, ids)))
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("negatives", [*NEGATIVES, "random"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_captions_of_one_image_are_never_negatives(distance: str, negatives: str) -> None:
    image, text, _ = random_batch(5, 5, 1)
    image.requires_grad_()
    loss = TripletLoss(10.0, "both", distance, negatives)(image, text, torch.zeros(5, dtype=torch.int64))
    assert loss.item() == 0.0
    loss.backward()
    assert image.grad is not None
    assert image.grad.abs().sum() == 0


@pytest.mark.parametrize("negatives", ["all", "hardest", "semihard"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_gradient_agrees_with_finite_differences(distance: str, negatives: str) -> None:
    image, text, ids = random_batch(6, 4, 3)
    loss = TripletLoss(2.0, "both", distance, negatives)
    assert float(loss(image, text, ids)) > 0
    assert torch.autograd.gradcheck(
        lambda i, t: loss(i, t, ids), (image.requires_grad_(), text.requires_grad_()), eps=1e-7, atol=1e-5
    )


@pytest.mark.parametrize("negatives", ["all", "hardest", "semihard", "random"])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gradient_of_collapsed_embeddings_is_finite(distance: str, negatives: str, value: float) -> None:
    image, text = torch.full((4, 3), value, requires_grad=True), torch.full((4, 3), value, requires_grad=True)
    TripletLoss(0.2, "both", distance, negatives)(image, text, torch.arange(4)).backward()
    assert image.grad is not None
    assert text.grad is not None
    assert image.grad.isfinite().all()
    assert text.grad.isfinite().all()


@pytest.mark.parametrize("negatives", [*NEGATIVES, "random"])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("side", [0, 1])
def test_nan_is_not_hidden(anchor: str, distance: str, negatives: str, side: int) -> None:
    image, text, _ = random_batch(4, 4, 0)
    (image, text)[side][2, 1] = math.nan
    assert TripletLoss(0.2, anchor, distance, negatives)(image, text, torch.arange(4)).isnan()


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        TripletLoss(-0.2, "imge", "manhattan", "hard", "drop", "max", -1)
    assert caught.value.faults == (
        "loss.anchor must be one of image, text, both; found 'imge'",
        "loss.distance must be one of euclidean, squared_euclidean, cosine; found 'manhattan'",
        "loss.negatives must be one of all, random, semihard, hardest; found 'hard'",
        "loss.siblings must be one of mask, positive; found 'drop'",
        "loss.reduction must be one of active_mean, mean, sum; found 'max'",
        "loss.margin must be positive and finite, found -0.2",
        "loss.warmup_steps must be at least 0, found -1",
    )


def test_a_warm_up_has_to_lead_somewhere():
    with pytest.raises(ConfigError, match=r"loss\.warmup_steps=5 .* loss\.negatives=all chooses all"):
        TripletLoss(warmup_steps=5)


@pytest.mark.parametrize("margin", [0.0, math.nan, math.inf])
def test_margin_must_be_positive_and_finite(margin: float) -> None:
    with pytest.raises(ConfigError, match=f"positive and finite, found {margin}"):
        TripletLoss(margin)


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_is_not_hidden_where_there_are_no_negatives(anchor: str, negatives: str, side: int, value: float) -> None:
    image, text, _ = random_batch(4, 4, 0)
    sides, ids = (image.requires_grad_(), text.requires_grad_()), torch.zeros(4, dtype=torch.int64)
    loss = TripletLoss(0.2, anchor, negatives=negatives)
    fine = loss(image, text, ids)
    fine.backward()
    assert fine.item() == 0
    assert all(part.grad.abs().sum() == 0 for part in sides)
    with torch.no_grad():
        sides[side][2, 1] = value
    assert loss(image, text, ids).isnan()


def test_large_numbers_are_no_nan() -> None:
    image, text = torch.full((2, 4, 3), 3e38)
    assert TripletLoss()(image, text, torch.zeros(4, dtype=torch.int64)).item() == 0
