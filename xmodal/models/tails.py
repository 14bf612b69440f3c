"""The trainable layers of encoders, put in front of a model's towers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from xmodal.encoders.protocol import FineTuned, TrainableLayers
from xmodal.models.dual_encoder import DualEncoder
from xmodal.models.tower import Tower
from xmodal.types import FeatureSource, RaggedFeatures

SAMPLE = 2048  # training sets that the statistics behind a tail are taken from


def trainable_layers(encoder: object) -> TrainableLayers:
    """The setting of an encoder; 0 for one that is always frozen, and for features given in a file."""
    return encoder.trainable_layers if isinstance(encoder, FineTuned) else 0


def tails_of(encoders: Mapping[str, Any]) -> dict[str, nn.Module]:
    """New tails of those encoders, by modality, that have trainable layers; the encoders are prepared."""
    return {side: encoder.tail() for side, encoder in encoders.items() if trainable_layers(encoder) != 0}


def attach(model: DualEncoder, tails: Mapping[str, nn.Module]) -> None:
    """Put tails in front of the towers of their modalities."""
    towers = {"image": model.image_tower, "text": model.text_tower}
    for side, tail in tails.items():
        towers[side].attach(tail)


def fit_statistics(
    tower: Tower,
    features: FeatureSource,
    rows: Int[np.ndarray, "n"],
    seed: int,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> None:
    """Set the standardisation of a tower, if it has one, from the training sets ``rows``.

    Behind a tail the vectors are those that its initial weights give for up to 2,048 of the sets, drawn with ``seed``;
    as training goes on they drift from these statistics, as those of any network do from its initial ones.

    Args:
        tower: on the CPU, and there again in the end.
        batch_size: sets that go through the tail together.
        device: where the tail computes.
    """
    if tower.standardizer is None:
        return
    if tower.tail is None:
        tower.standardizer.fit(features, rows)
        return
    drawn = np.random.default_rng(seed).permutation(len(rows))[:SAMPLE]
    sample = _through_tail(tower, features, np.sort(rows[drawn]), batch_size, device)
    tower.standardizer.fit(sample, np.arange(len(sample)))


@torch.no_grad()
def _through_tail(
    tower: Tower, features: FeatureSource, rows: Int[np.ndarray, "n"], batch_size: int, device: torch.device | str
) -> RaggedFeatures:
    """What the tail makes of sets, in evaluation mode, without padding."""
    was_training = tower.training
    tower.eval().to(device)
    sets: list[np.ndarray] = []
    for start in range(0, len(rows), batch_size):
        chosen = features.select(rows[start : start + batch_size])
        batch = chosen.pad(np.arange(len(chosen)), np.arange(len(chosen))).to(device)
        x, mask = tower.vectors(batch.x, batch.mask)
        sets += [vectors[kept].float().cpu().numpy() for vectors, kept in zip(x, mask, strict=True)]
    tower.to("cpu").train(was_training)
    return RaggedFeatures.from_sets(sets)
