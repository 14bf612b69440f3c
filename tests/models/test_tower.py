from functools import partial

import pytest
import torch

from xmodal.aggregators.gpo import GPOAggregator
from xmodal.aggregators.gru import GRUAggregator
from xmodal.aggregators.lstm import LSTMAggregator
from xmodal.aggregators.max import MaxAggregator
from xmodal.aggregators.mean import MeanAggregator
from xmodal.aggregators.sum import SumAggregator
from xmodal.errors import ConfigError
from xmodal.models.element_dropout import ElementDropout
from xmodal.models.projection import Projection
from xmodal.models.tower import Tower


def tower(aggregator, **options):
    return Tower(6, aggregator, partial(Projection, output_dim=5, num_layers=2), **options).eval()


def projected(width, **options):
    return partial(Projection, output_dim=width, **options)


POOLINGS = [SumAggregator, MeanAggregator, MaxAggregator, LSTMAggregator, GRUAggregator, GPOAggregator]


@pytest.mark.parametrize("vector_projection", [None, projected(6, residual=True)])
@pytest.mark.parametrize("kind", POOLINGS)
def test_padding_never_changes_an_embedding(kind, vector_projection):
    torch.manual_seed(0)
    model = tower(kind(6), vector_projection=vector_projection)
    x = torch.randn(3, 4, 6)
    mask = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])
    longer = torch.full((3, 7, 6), float("nan"))
    longer[:, :4][mask] = x[mask]
    wider_mask = torch.cat([mask, torch.zeros(3, 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(model(x, mask), model(longer, wider_mask))


def test_embeddings_have_length_one_unless_switched_off():
    x, mask = torch.randn(8, 3, 6), torch.ones(8, 3, dtype=torch.bool)
    torch.testing.assert_close(tower(MeanAggregator(6))(x, mask).norm(dim=1), torch.ones(8))
    assert not torch.allclose(tower(MeanAggregator(6), normalize=False)(x, mask).norm(dim=1), torch.ones(8))


def test_standardisation_can_be_left_out():
    assert tower(MeanAggregator(6), standardize=False).standardizer is None


def test_vectors_are_projected_one_by_one_before_they_are_pooled():
    torch.manual_seed(0)
    model = tower(MeanAggregator(4), vector_projection=projected(4))
    x, mask = torch.randn(3, 4, 6), torch.tensor([[True] * 4, [False, True, True, False], [False] * 4])
    x[~mask] = float("nan")
    means = [torch.stack([model.vector_projection(v[None])[0] for v in vectors[exists]]).mean(dim=0)
             for vectors, exists in zip(model.standardizer(x)[:2], mask[:2], strict=True)]  # fmt: skip
    torch.testing.assert_close(model.pool(x, mask), torch.stack([*means, torch.zeros(4)]))


def test_padding_is_not_in_the_statistics_of_a_batch_normalisation():
    torch.manual_seed(0)
    model = tower(MeanAggregator(4), vector_projection=projected(4, batch_norm=True)).train()
    x, mask = torch.randn(3, 4, 6), torch.rand(3, 4) > 0.4
    first, norm = model.vector_projection.layers[0], model.vector_projection.layers[1].norm
    model(x.masked_fill(~mask[:, :, None], 1e6), mask)
    expected = 0.1 * first(model.standardizer(x)[mask]).mean(dim=0)  # momentum 0.1, from zero
    torch.testing.assert_close(norm.running_mean, expected)


def test_training_goes_on_where_a_last_batch_has_one_vector_or_none():
    model = tower(MeanAggregator(4), vector_projection=projected(4, batch_norm=True)).train()
    for mask in (torch.tensor([[True, False]]), torch.tensor([[False, False]])):
        model(torch.randn(1, 2, 6), mask).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.vector_projection.parameters())


@pytest.mark.parametrize("p", [0.2, 0.9])
def test_a_share_of_the_vectors_is_dropped_and_one_at_least_stays(p):
    torch.manual_seed(0)
    mask = torch.arange(10)[None, :] < torch.randint(0, 11, (4000, 1))
    kept = ElementDropout(p)(mask)
    assert not (kept & ~mask).any()
    assert torch.equal(kept.any(dim=1), mask.any(dim=1))
    full = mask.all(dim=1)
    expected = 1 - p + p**10 / 10  # the one that stays where all ten would go
    assert kept[full].float().mean().item() == pytest.approx(expected, abs=0.03)
    torch.testing.assert_close(kept[full].float().mean(dim=0), torch.full((10,), expected), atol=0.08, rtol=0)


def test_vectors_are_dropped_in_training_alone():
    x, mask = torch.randn(50, 8, 6), torch.ones(50, 8, dtype=torch.bool)
    model = tower(SumAggregator(6), element_dropout=0.5)
    assert torch.equal(model(x, mask), model(x, mask))
    model.train()
    assert not torch.equal(model(x, mask), model(x, mask))
    model.element_dropout.p = 0.0
    before = torch.get_rng_state()
    model(x, mask)
    assert torch.equal(torch.get_rng_state(), before)  # runs without it draw the numbers that they drew before


def test_new_options_leave_parameters_of_old_checkpoints_as_they_are():
    assert {name.partition(".")[0] for name in tower(MeanAggregator(6)).state_dict()} == {"standardizer", "projection"}


def test_shares_that_are_none_are_reported_together():
    with pytest.raises(
        ConfigError, match=r"feature_dropout must lie in \[0, 1\), found 1.0.\nelement_dropout .* found -0.1"
    ):
        tower(MeanAggregator(6), feature_dropout=1.0, element_dropout=-0.1)
