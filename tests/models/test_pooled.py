import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from xmodal.aggregators.attention import AttentionAggregator
from xmodal.aggregators.concat import ConcatAggregator
from xmodal.aggregators.lstm import LSTMAggregator
from xmodal.aggregators.max import MaxAggregator
from xmodal.aggregators.mean import MeanAggregator
from xmodal.aggregators.sum import SumAggregator
from xmodal.features.store import FeatureFile, FeatureOrigin, finish_file
from xmodal.models.pooled import pool_once
from xmodal.models.projection import Projection
from xmodal.models.tower import Tower
from xmodal.types import FeatureSource, RaggedFeatures

ROOM = 10**6
KINDS = [SumAggregator, MeanAggregator, MaxAggregator, partial(ConcatAggregator, length=3)]


def _tower(aggregator: nn.Module, **options) -> Tower:
    return Tower(3, aggregator, partial(Projection, output_dim=2), **options)


def _features(lengths: list[int], coded: bool = False) -> RaggedFeatures:
    random, total = np.random.default_rng(0), sum(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = random.normal(2, 3, (4 if coded else total, 3)).astype(np.float32)
    return RaggedFeatures(values, offsets, random.integers(0, 4, total).astype(np.uint8) if coded else None)


def _on_disk(path: Path, features: RaggedFeatures) -> FeatureFile:
    with h5py.File(path, "w") as file:
        file["values"] = features.values
        if features.codes is not None:
            file["codes"] = features.codes
        finish_file(file, FeatureOrigin({}, "d", "float32"), list(range(len(features))), features.offsets)
    return FeatureFile(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=9).filter(lambda some: set(some) != {1}),
    kind=st.sampled_from(KINDS),
    standardize=st.booleans(),
    coded=st.booleans(),
    on_disk=st.booleans(),
    batch_size=st.integers(1, 10),
)
def test_pooled_once_equals_the_tower_that_pools(
    lengths: list[int],
    kind: Callable[..., nn.Module],
    standardize: bool,
    coded: bool,
    on_disk: bool,
    batch_size: int,
    tmp_path: Path,
) -> None:
    features = _features(lengths, coded)
    source: FeatureSource = _on_disk(tmp_path / "f.h5", features) if on_disk else features
    tower = _tower(kind(3), standardize=standardize).train()
    rows = np.arange(len(lengths))
    if standardize:
        tower.standardizer.fit(source, rows)
    pooled = pool_once(tower, source, batch_size, ROOM)
    assert tower.training
    assert pooled.lengths.tolist() == [1] * len(lengths)
    assert pooled.values.dtype == np.float32
    batch = features.pad(rows, rows)
    torch.testing.assert_close(torch.from_numpy(pooled.values), tower.pool(batch.x, batch.mask))
    torch.testing.assert_close(tower.embed(torch.from_numpy(pooled.values)), tower(batch.x, batch.mask))


class Dropping(nn.Module):
    """A mean with drop-out behind it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.output_dim, self.mean, self.dropout = 3, MeanAggregator(3), nn.Dropout(p)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.mean(x, mask))


class Normalising(nn.Module):
    """A mean behind which running statistics change in training, without any parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.output_dim, self.mean, self.norm = 3, MeanAggregator(3), nn.BatchNorm1d(3, affine=False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.norm(self.mean(x, mask))


def test_what_changes_from_epoch_to_epoch_is_not_pooled_once() -> None:
    features = _features([2, 0, 3])
    for changing in (LSTMAggregator(3, 4), AttentionAggregator(3), Dropping(0.1), Normalising()):
        assert pool_once(_tower(changing), features, 2, ROOM) is None
    projection = partial(Projection, output_dim=3)
    for changing in ({"feature_dropout": 0.1}, {"element_dropout": 0.1}, {"vector_projection": projection}):
        assert pool_once(_tower(MeanAggregator(3), **changing), features, 2, ROOM) is None
    cut = _tower(MeanAggregator(3))
    cut.attach(nn.Identity())
    assert pool_once(cut, features, 2, ROOM) is None
    assert pool_once(_tower(Dropping(0.0)), features, 2, ROOM) is not None


def test_sets_of_one_vector_are_left_as_they_are() -> None:
    assert pool_once(_tower(MeanAggregator(3)), _features([1, 1, 1]), 2, ROOM) is None


@pytest.mark.parametrize("was_training", [True, False])
def test_the_mode_stays(was_training: bool) -> None:
    tower = _tower(MeanAggregator(3)).train(was_training)
    pool_once(tower, _features([2, 1]), 2, ROOM)
    assert tower.training == was_training


def test_vectors_without_room_are_not_pooled_once(caplog: pytest.LogCaptureFixture) -> None:
    tower, features = _tower(MeanAggregator(3)), _features([2, 1])
    needed = pool_once(tower, features, 2, ROOM).nbytes
    assert pool_once(tower, features, 2, needed) is not None
    with caplog.at_level(logging.INFO):
        assert pool_once(tower, features, 2, needed - 1) is None
    assert "2 sets are pooled anew in each epoch: pooled once, they would take 0.000000048 GB" in caplog.text
