import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from xmodal.models import standardizer
from xmodal.models.standardizer import Standardizer


@given(arrays(np.float32, (9, 3), elements=st.floats(-100, 100, width=32)))
def test_statistics_equal_numpy_over_all_rows(values):
    module = Standardizer(3)
    module.fit(values)
    deviation = values.astype(np.float64).std(axis=0)
    constant = deviation <= 1e-6 * np.abs(values.astype(np.float64).mean(axis=0))
    np.testing.assert_allclose(module.mean, values.astype(np.float64).mean(axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(module.deviation, np.where(constant, 1, deviation), rtol=1e-4, atol=1e-6)


def test_blocks_do_not_change_the_statistics(monkeypatch):
    values = np.random.default_rng(0).normal(5, 2, (1000, 4)).astype(np.float16)
    whole, blocked = Standardizer(4), Standardizer(4)
    whole.fit(values)
    monkeypatch.setattr(standardizer, "_ROWS_AT_ONCE", 7)
    blocked.fit(values)
    torch.testing.assert_close(whole.mean, blocked.mean)
    torch.testing.assert_close(whole.deviation, blocked.deviation)


def test_nearly_parallel_features_spread_out():
    """What standardisation is for: random-weight features with cosine above 0.9 among each other."""
    rng = np.random.default_rng(0)
    values = (rng.uniform(5, 10, 64) + rng.normal(0, 1, (200, 64))).astype(np.float32)
    module = Standardizer(64)
    module.fit(values)
    raw = torch.tensor(values)
    before, after = (torch.nn.functional.normalize(x, dim=1) for x in (raw, module(raw)))
    off_diagonal = ~torch.eye(200, dtype=torch.bool)
    assert (before @ before.T)[off_diagonal].mean() > 0.9
    assert (after @ after.T)[off_diagonal].mean().abs() < 0.05


def test_a_constant_dimension_becomes_zero_not_nan():
    module = Standardizer(2)
    module.fit(np.array([[3.0, 1.0], [3.0, 2.0]], dtype=np.float32))
    result = module(torch.tensor([[3.0, 1.5]]))
    torch.testing.assert_close(result, torch.zeros(1, 2))


def test_without_rows_nothing_changes():
    module = Standardizer(2)
    module.fit(np.zeros((0, 2), dtype=np.float32))
    x = torch.randn(4, 2)
    assert torch.equal(module(x), x)


@pytest.mark.parametrize("name", ["mean", "deviation"])
def test_statistics_travel_in_the_state(name):
    module = Standardizer(2)
    module.fit(np.array([[1.0, 5.0], [2.0, 9.0]], dtype=np.float32))
    other = Standardizer(2)
    other.load_state_dict(module.state_dict())
    assert torch.equal(getattr(other, name), getattr(module, name))
