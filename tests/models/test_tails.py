"""Trainable layers of encoders in front of towers, and the statistics behind them."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xmodal.aggregators.mean import MeanAggregator
from xmodal.encoders.fasttext import FastTextEncoder
from xmodal.features.precomputed import PrecomputedFeatures
from xmodal.models import tails
from xmodal.models.projection import Projection
from xmodal.models.tails import fit_statistics, tails_of, trainable_layers
from xmodal.models.tower import Tower
from xmodal.types import RaggedFeatures


class Halving(nn.Module):
    """Widens vectors, leaves every second one out, and has drop-out that must be off for statistics."""

    output_dim = 5

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5).requires_grad_(False)
        self.dropout = nn.Dropout(0.9)
        self.largest_batch = 0

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        assert not torch.is_grad_enabled() or self.training
        self.largest_batch = max(self.largest_batch, len(x))
        kept = mask.clone()
        kept[:, 1::2] = False
        return self.dropout(self.layer(x)).masked_fill(~kept.unsqueeze(-1), float("nan")), kept


def tower(**options: Any) -> Tower:
    torch.manual_seed(0)
    return Tower(5, MeanAggregator(5), partial(Projection, output_dim=4, num_layers=1), **options)


def sets(count: int, most: int = 4) -> RaggedFeatures:
    rng = np.random.default_rng(0)
    return RaggedFeatures.from_sets([rng.normal(size=(rng.integers(0, most + 1), 3)) for _ in range(count)])


def naive(tail: Halving, features: RaggedFeatures, rows: np.ndarray) -> np.ndarray:
    """Vectors behind the tail, one set after the other."""
    vectors = []
    for row in rows:
        for place, vector in enumerate(torch.tensor(features[int(row)])):
            if place % 2 == 0:
                vectors.append(tail.layer(vector).detach().double().numpy())
    return np.stack(vectors)


def test_statistics_are_taken_behind_the_tail_without_padding_and_drop_out() -> None:
    made, features, rows = tower(), sets(20), np.array([1, 3, 4, 8, 9, 15, 19])
    made.attach(Halving())
    fit_statistics(made.train(), features, rows, seed=0, batch_size=3)
    expected = naive(made.tail, features, rows)
    np.testing.assert_allclose(made.standardizer.mean, expected.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(made.standardizer.deviation, expected.std(axis=0), rtol=1e-5)
    assert made.training
    assert made.tail.training
    assert made.tail.largest_batch == 3
    assert made.tail.layer.weight.grad is None


def test_a_large_training_set_is_sampled_with_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tails.SAMPLE == 2048
    monkeypatch.setattr(tails, "SAMPLE", 10)
    features, rows, found = sets(60), np.arange(5, 60), []
    for seed in (0, 0, 1):
        made = tower()
        made.attach(Halving())
        fit_statistics(made, features, rows, seed, batch_size=4)
        found.append(made.standardizer.mean.clone())
        drawn = np.random.default_rng(seed).permutation(55)[:10]
        np.testing.assert_allclose(
            found[-1], naive(made.tail, features, rows[drawn]).mean(axis=0), rtol=1e-4, atol=1e-6
        )
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_without_a_tail_they_are_those_of_the_rows() -> None:
    features = RaggedFeatures(np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32), np.arange(9))
    made = tower()
    fit_statistics(made, features, np.array([0, 2, 3]), seed=0, batch_size=2)
    np.testing.assert_allclose(made.standardizer.mean, features.values[[0, 2, 3]].mean(axis=0), rtol=1e-5, atol=1e-6)
    plain = tower(standardize=False)
    fit_statistics(plain, features, np.array([0]), seed=0, batch_size=2)
    assert plain.standardizer is None


def test_an_attached_tail_is_part_of_the_tower_and_learns() -> None:
    made = tower()
    assert "tail.layer.weight" not in made.state_dict()
    x, mask = torch.randn(2, 3, 3), torch.tensor([[True, True, True], [True, False, False]])
    made.attach(Halving())
    assert {"tail.layer.weight", "tail.layer.bias"} <= set(made.state_dict())
    assert all(parameter.requires_grad for parameter in made.parameters())  # given out frozen
    made(x, mask).sum().backward()
    assert float(made.tail.layer.weight.grad.abs().sum()) > 0
    made.eval()
    with torch.no_grad():
        kept = [made.tail.layer(x[0, [0, 2]]), made.tail.layer(x[1, :1])]
        expected = torch.stack([vectors.mean(dim=0) for vectors in kept])
        torch.testing.assert_close(made.pool(x, mask), expected)
        torch.testing.assert_close(made(x, mask), made.embed(expected))


def test_only_encoders_with_trainable_layers_have_tails(tmp_path: Any) -> None:
    frozen, tuned = FastTextEncoder(vector_size=4), FastTextEncoder(vector_size=4, trainable_layers=1)
    given = PrecomputedFeatures("image", str(tmp_path / "features.npy"))
    assert [trainable_layers(encoder) for encoder in (frozen, tuned, given)] == [0, 1, 0]
    for encoder in (frozen, tuned):
        encoder.prepare(["a dog runs", "a cat sits"], tmp_path)
    assert tails_of({"image": given, "text": frozen}) == {}
    found = tails_of({"image": given, "text": tuned})
    assert list(found) == ["text"]
    assert found["text"].output_dim == 4
