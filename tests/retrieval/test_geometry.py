"""Geometry of embeddings against loops over pairs, and against what is known of points and spheres."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xmodal.retrieval.geometry import alignment, effective_rank, mean_similarity, sample, uniformity


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(row: torch.Tensor) -> np.ndarray:
    plain = row.double().numpy()
    length = np.linalg.norm(plain)
    return plain / length if length else plain


def naive_pairs(rows: torch.Tensor) -> list[float]:
    """Squared distance of every pair of directions."""
    units = [unit(row) for row in rows]
    return [float(((units[i] - units[j]) ** 2).sum()) for i in range(len(units)) for j in range(i + 1, len(units))]


def with_zeros(rows: torch.Tensor) -> torch.Tensor:
    rows[[1, 3]] = 0.0
    return rows


CLOUDS = {
    "random": seeded(30, 7),
    "around a point": seeded(1, 7) + 0.1 * seeded(30, 7, seed=1),
    "of any length": seeded(30, 7) * torch.logspace(-6, 6, 30)[:, None],
    "more dimensions than rows": seeded(5, 40),
    "two rows": seeded(2, 3),
    "with zero vectors": with_zeros(seeded(9, 4)),
}
clouds = pytest.mark.parametrize("rows", CLOUDS.values(), ids=CLOUDS.keys())


@clouds
@pytest.mark.parametrize("t", [0.5, 2.0])
def test_uniformity_is_the_loop_over_pairs(rows, t):
    expected = math.log(np.mean([math.exp(-t * squared) for squared in naive_pairs(rows)]))
    assert uniformity(rows, t) == pytest.approx(expected, abs=1e-5)


def test_uniformity_in_blocks_is_that_of_all_pairs():
    rows = seeded(1100, 5)
    units = rows.double() / rows.double().norm(dim=1, keepdim=True)
    expected = torch.pdist(units).pow(2).mul(-2).exp().mean().log()  # as the paper's figure 5 has it
    assert uniformity(rows) == pytest.approx(float(expected), abs=1e-5)


@clouds
def test_mean_similarity_is_the_loop_over_pairs(rows):
    assert mean_similarity(rows) == pytest.approx(np.mean([1 - squared / 2 for squared in naive_pairs(rows)]), abs=1e-6)


def test_mean_similarity_is_the_mean_cosine():
    rows = seeded(20, 6)
    cosines = [float(torch.cosine_similarity(rows[i], rows[j], dim=0)) for i in range(20) for j in range(20) if i != j]
    assert mean_similarity(rows) == pytest.approx(np.mean(cosines), abs=1e-6)


@clouds
def test_effective_rank_is_that_of_the_singular_values(rows):
    units = np.stack([unit(row) for row in rows])
    singular = [s for s in np.linalg.svd(units - units.mean(axis=0), compute_uv=False) if s > 1e-6]
    shares = [s / sum(singular) for s in singular]
    assert effective_rank(rows) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-4)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_alignment_is_the_loop_over_texts(alpha):
    image, text, owners = seeded(4, 6), seeded(11, 6, seed=1), [0, 2, 2, 3, 0, 0, 2, 2, 2, 3, 0]  # image 1 has no text
    expected = np.mean(
        [np.linalg.norm(unit(row) - unit(image[own])) ** alpha for row, own in zip(text, owners, strict=True)]
    )
    assert alignment(image, text, torch.tensor(owners), alpha) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("noise", [0.0, 1e-8])
@pytest.mark.parametrize("point", [seeded(1, 16), torch.zeros(1, 16)], ids=["point", "zero vector"])
def test_one_point(point, noise):
    rows = point.repeat(40, 1) + noise * seeded(40, 16) * point.abs().amax()
    assert mean_similarity(rows) == pytest.approx(1.0, abs=1e-6)
    assert effective_rank(rows) == 1.0
    assert uniformity(rows) == pytest.approx(0.0, abs=1e-5)
    assert alignment(rows, rows, torch.arange(40)) == pytest.approx(0.0, abs=1e-6)


def test_two_points_differ_in_one_direction():
    rows = seeded(2, 16).repeat(20, 1)
    assert effective_rank(rows) == pytest.approx(1.0)
    assert mean_similarity(rows) < 0.9


def test_evenly_spread():
    """Orthogonal axes, both ways: each in as many directions as there are."""
    rows = torch.cat([torch.eye(8), -torch.eye(8)])
    assert effective_rank(rows) == pytest.approx(8.0)
    assert mean_similarity(rows) == pytest.approx(-1 / 15)
    assert uniformity(seeded(1500, 512)) == pytest.approx(-4.0, abs=0.05)


@given(st.integers(2, 40), st.integers(1, 12), st.integers(0, 10_000))
def test_bounds_and_invariance(count, width, seed):
    rows = seeded(count, width, seed=seed)
    turned = rows[torch.randperm(count, generator=torch.Generator().manual_seed(seed))]
    turned = 3.0 * turned @ torch.linalg.qr(seeded(width, width, seed=seed + 1))[0]
    rank = effective_rank(rows)
    assert 1.0 <= rank <= min(count - 1, width) + 1e-6
    assert effective_rank(turned) == pytest.approx(rank, rel=1e-3)
    assert -8.0 - 1e-6 <= uniformity(rows) <= 1e-6
    assert uniformity(turned) == pytest.approx(uniformity(rows), abs=1e-4)
    assert -1.0 - 1e-6 <= mean_similarity(rows) <= 1.0
    assert mean_similarity(turned) == pytest.approx(mean_similarity(rows), abs=1e-5)


def test_one_row_has_no_pairs():
    assert math.isnan(mean_similarity(seeded(1, 4)))
    assert math.isnan(uniformity(seeded(1, 4)))
    assert effective_rank(seeded(1, 4)) == 1.0


def test_a_sample_is_of_different_rows_and_the_same_each_time():
    rows = torch.arange(50.0)[:, None]
    drawn = sample(rows, 20, seed=3)
    assert len(set(drawn[:, 0].tolist())) == 20
    assert torch.equal(drawn, sample(rows, 20, seed=3))
    assert not torch.equal(drawn, sample(rows, 20, seed=4))
    assert sample(rows, 50) is rows


def test_a_sample_tells_nearly_what_all_do():
    rows = seeded(3000, 64) + 0.5
    drawn = sample(rows, 1000)
    assert uniformity(drawn) == pytest.approx(uniformity(rows), abs=0.02)
    assert effective_rank(drawn) == pytest.approx(effective_rank(rows), rel=0.05)
