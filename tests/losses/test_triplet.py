"""The triplet loss against a naive loop over (anchor, positive, negative)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmodal.errors import ConfigError
from xmodal.losses.triplet import TripletLoss

ANCHORS = ("image", "text", "both")
DISTANCES = ("euclidean", "squared_euclidean", "cosine")
NEGATIVES = ("all", "semihard", "hardest")


def distance_of(a: list[float], b: list[float], distance: str) -> float:
    if distance == "cosine":
        lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
        return 1.0 - (sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0)
    squared = sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    return squared if distance == "squared_euclidean" else math.sqrt(squared)


def candidates(
    anchor: int, items: list[list[float]], anchors: list[list[float]], ids: list[int], distance: str
) -> list:
    return [distance_of(anchors[anchor], items[n], distance) for n in range(len(ids)) if ids[n] != ids[anchor]]


def naive_loss(
    image: Tensor, text: Tensor, ids: Tensor, margin: float, anchor: str, distance: str, negatives: str
) -> float:
    active = []
    for side in ("image", "text"):
        if anchor not in (side, "both"):
            continue
        anchors, items = (image, text) if side == "image" else (text, image)
        for a in range(len(ids)):
            positive = distance_of(anchors[a].tolist(), items[a].tolist(), distance)
            others = candidates(a, items.tolist(), anchors.tolist(), ids.tolist(), distance)
            if negatives == "semihard":
                others = [d for d in others if positive < d < positive + margin]
            if negatives == "hardest":
                others = sorted(others)[:1]
            active += [margin + positive - d for d in others if margin + positive - d > 0]
    return sum(active) / len(active) if active else 0.0


def random_batch(size: int, images: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, size, 4, generator=generator, dtype=torch.float64)
    return image, text, torch.randint(images, (size,), generator=generator)


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("negatives", NEGATIVES)
@settings(max_examples=15, deadline=None)
@given(
    size=st.integers(1, 9),
    images=st.integers(1, 9),
    margin=st.sampled_from([0.05, 0.2, 1.0, 5.0]),
    seed=st.integers(0, 9999),
)
def test_agrees_with_naive_triplets(
    anchor: str, distance: str, negatives: str, size: int, images: int, margin: float, seed: int
) -> None:
    image, text, ids = random_batch(size, images, seed)
    loss = TripletLoss(margin, anchor, distance, negatives)(image, text, ids)
    expected = naive_loss(image, text, ids, margin, anchor, distance, negatives)
    assert float(loss) == pytest.approx(expected, rel=1e-9, abs=1e-12)


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


@pytest.mark.parametrize("distance", DISTANCES)
def test_half_precision_and_autocast_are_computed_in_float32(distance: str) -> None:
    image, text = (torch.randn(8, 16).bfloat16() for _ in range(2))
    ids, loss = torch.arange(8), TripletLoss(0.2, "both", distance, "all")
    expected = loss(image.float(), text.float(), ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [loss(image, text, ids), loss(image.float(), text.float(), ids)]
    for value in found:
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        TripletLoss(-0.2, "imge", "manhattan", "hard")
    assert caught.value.faults == (
        "loss.anchor must be one of image, text, both; found 'imge'",
        "loss.distance must be one of euclidean, squared_euclidean, cosine; found 'manhattan'",
        "loss.negatives must be one of all, random, semihard, hardest; found 'hard'",
        "loss.margin must be positive and finite, found -0.2",
    )


@pytest.mark.parametrize("margin", [0.0, math.nan, math.inf])
def test_margin_must_be_positive_and_finite(margin: float) -> None:
    with pytest.raises(ConfigError, match=f"positive and finite, found {margin}"):
        TripletLoss(margin)
