"""Widths that the features, vector projections and aggregators of a configuration hand to one another."""

import torch

from xmodal.config.command_line import compose
from xmodal.config.values import resolved
from xmodal.models.build import build_model, with_feature_widths

REGIONS = [
    "image_aggregator=gpo",
    "model/image_tower/vector_projection=mlp",
    "model.image_tower.projection.num_layers=0",
]
WORDS = ["text_aggregator=gru", "text_aggregator/pooling=attention", "text_aggregator.hidden_size=16"]


def test_an_aggregator_gets_the_width_that_a_vector_projection_gives() -> None:
    cfg = with_feature_widths(compose([*REGIONS, *WORDS, "embedding_dim=24"]), 5, 7)
    assert (cfg.model.image_tower.feature_dim, cfg.image_aggregator.feature_dim) == (5, 24)
    assert (cfg.model.text_tower.feature_dim, cfg.text_aggregator.feature_dim) == (7, 7)
    for config in (cfg, resolved(cfg)):  # as it is when training starts, and as a checkpoint holds it
        model = build_model(config)
        mask = torch.ones(2, 3, dtype=torch.bool)
        assert model.image_tower(torch.randn(2, 3, 5), mask).shape == (2, 24)
        assert model.text_tower(torch.randn(2, 3, 7), mask).shape == (2, 24)
        assert model.text_tower.aggregator.output_dim == 16


def test_configurations_of_earlier_versions_build_the_same_model() -> None:
    config = resolved(with_feature_widths(compose([]), 5, 7))
    new = build_model(config).state_dict()
    for side in ("image_tower", "text_tower"):
        del config["model"][side]["element_dropout"], config["model"][side]["vector_projection"]
        del config["model"][side]["projection"]["residual"], config["model"][side]["projection"]["batch_norm"]
    old = build_model(config).state_dict()
    assert {name: value.shape for name, value in old.items()} == {name: value.shape for name, value in new.items()}
