from functools import partial

import pytest
import torch

from xmodal.aggregators.lstm import LSTMAggregator
from xmodal.aggregators.max import MaxAggregator
from xmodal.aggregators.mean import MeanAggregator
from xmodal.aggregators.sum import SumAggregator
from xmodal.models.projection import Projection
from xmodal.models.tower import Tower


def tower(aggregator, **options):
    return Tower(6, aggregator, partial(Projection, output_dim=5, num_layers=2), **options).eval()


@pytest.mark.parametrize("kind", [SumAggregator, MeanAggregator, MaxAggregator, LSTMAggregator])
def test_padding_never_changes_an_embedding(kind):
    torch.manual_seed(0)
    model = tower(kind(6))
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
