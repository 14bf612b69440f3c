import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from xmodal.models import standardizer
from xmodal.models.standardizer import Standardizer
from xmodal.types import RaggedFeatures


def _fit(module: Standardizer, values: np.ndarray) -> None:
    """From sets of one vector each."""
    module.fit(RaggedFeatures(values, np.arange(len(values) + 1)), np.arange(len(values)))


@given(arrays(np.float32, (9, 3), elements=st.floats(-100, 100, width=32)))
def test_statistics_equal_numpy_over_all_rows(values):
    module = Standardizer(3)
    _fit(module, values)
    deviation = values.astype(np.float64).std(axis=0)
    constant = deviation <= 1e-6 * np.abs(values.astype(np.float64).mean(axis=0))
    np.testing.assert_allclose(module.mean, values.astype(np.float64).mean(axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(module.deviation, np.where(constant, 1, deviation), rtol=1e-4, atol=1e-6)


def test_blocks_do_not_change_the_statistics(monkeypatch):
    values = np.random.default_rng(0).normal(5, 2, (1000, 4)).astype(np.float16)
    whole, blocked = Standardizer(4), Standardizer(4)
    _fit(whole, values)
    monkeypatch.setattr(standardizer, "_BLOCK_BYTES", 7 * 4 * 8)
    _fit(blocked, values)
    torch.testing.assert_close(whole.mean, blocked.mean)
    torch.testing.assert_close(whole.deviation, blocked.deviation)


def test_nearly_parallel_features_spread_out():
    """What standardisation is for: random-weight features with cosine above 0.9 among each other."""
    rng = np.random.default_rng(0)
    values = (rng.uniform(5, 10, 64) + rng.normal(0, 1, (200, 64))).astype(np.float32)
    module = Standardizer(64)
    _fit(module, values)
    raw = torch.tensor(values)
    before, after = (torch.nn.functional.normalize(x, dim=1) for x in (raw, module(raw)))
    off_diagonal = ~torch.eye(200, dtype=torch.bool)
    assert (before @ before.T)[off_diagonal].mean() > 0.9
    assert (after @ after.T)[off_diagonal].mean().abs() < 0.05


def test_a_constant_dimension_becomes_zero_not_nan():
    module = Standardizer(2)
    _fit(module, np.array([[3.0, 1.0], [3.0, 2.0]], dtype=np.float32))
    result = module(torch.tensor([[3.0, 1.5]]))
    torch.testing.assert_close(result, torch.zeros(1, 2))


def test_without_rows_nothing_changes():
    module = Standardizer(2)
    _fit(module, np.zeros((0, 2), dtype=np.float32))
    x = torch.randn(4, 2)
    assert torch.equal(module(x), x)


@pytest.mark.parametrize("name", ["mean", "deviation"])
def test_statistics_travel_in_the_state(name):
    module = Standardizer(2)
    _fit(module, np.array([[1.0, 5.0], [2.0, 9.0]], dtype=np.float32))
    other = Standardizer(2)
    other.load_state_dict(module.state_dict())
    assert torch.equal(getattr(other, name), getattr(module, name))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), coded=st.booleans(), block=st.sampled_from([1, 100, 2**22]))
def test_any_sets_and_codes_count_as_if_they_were_expanded(data, coded, block):
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    lengths = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=9))
    total = sum(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    table = random.normal(3, 2, (5 if coded else total, 3)).astype(np.float32)
    codes = random.integers(0, 5, total).astype(np.uint8) if coded else None
    features = RaggedFeatures(table, offsets, codes)
    rows = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1)))
    module, before = Standardizer(3), standardizer._BLOCK_BYTES
    standardizer._BLOCK_BYTES = block
    try:
        module.fit(features, rows)
    finally:
        standardizer._BLOCK_BYTES = before
    expanded = np.concatenate([features[row] for row in rows.tolist()]).astype(np.float64)
    if len(expanded):
        deviation = expanded.std(axis=0)
        deviation[deviation <= 1e-6 * np.abs(expanded.mean(axis=0))] = 1
        np.testing.assert_allclose(module.mean, expanded.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(module.deviation, deviation, rtol=1e-6)
    else:
        assert module.mean.tolist() == [0, 0, 0]


def test_a_large_common_part_does_not_cancel_the_spread():
    values = (1000 + np.random.default_rng(0).normal(0, 1e-2, (5000, 2))).astype(np.float32)
    module = Standardizer(2)
    _fit(module, values)
    np.testing.assert_allclose(module.deviation, values.astype(np.float64).std(axis=0), rtol=1e-6)


def test_memory_is_bounded_whatever_the_width():
    features = RaggedFeatures(np.ones((4000, 4096), dtype=np.float16), np.arange(4001))
    tracemalloc.start()
    Standardizer(4096).fit(features, np.arange(4000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * standardizer._BLOCK_BYTES  # cast at once they would take 131 MB
