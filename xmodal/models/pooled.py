"""Pooling before training: where neither aggregator nor features change, every set is pooled once for all epochs."""

import logging

import numpy as np
import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from xmodal.features.memory import in_gb
from xmodal.features.readers import SetReader
from xmodal.models.tower import Tower
from xmodal.types import FeatureSource, RaggedFeatures

log = logging.getLogger(__name__)


@torch.no_grad()
def pool_once(tower: Tower, features: FeatureSource, batch_size: int, most_bytes: int) -> RaggedFeatures | None:
    """What ``tower.pool`` makes of every set: N sets of one vector (H,) float32; None where that would change training.

    It would where the aggregator has parameters, buffers or drop-out, where features or vectors are dropped
    (``feature_dropout``, ``element_dropout``), or where a trainable tail or a vector projection comes first.
    Also None where it is pointless, each set being one vector already, and where the vectors are too large.

    Args:
        tower: with its standardisation fitted; left in the mode that it was in.
        features: read in batches; a file is never held as a whole.
        batch_size: sets that are pooled together.
        most_bytes: memory for the pooled vectors, all of which exist before ``features`` can be dropped.
    """
    if not _is_fixed(tower) or (features.lengths == 1).all():
        return None
    width: int = tower.aggregator.output_dim  # type: ignore[assignment]  # of torch, an attribute may be anything
    needed = pooled_bytes(len(features), width)
    if needed > most_bytes:
        log.info(
            "%d sets are pooled anew in each epoch: pooled once, they would take %s GB, and features.memory_gb leaves "
            "%s GB for them.", len(features), in_gb(needed), in_gb(max(0, most_bytes)),
        )  # fmt: skip
        return None
    was_training = tower.training
    tower.eval()
    device = next(tower.parameters()).device
    values = np.empty((len(features), width), dtype=np.float32)
    for start in range(0, len(features), batch_size):
        rows = np.arange(start, min(start + batch_size, len(features)))
        places = torch.arange(len(rows))
        batch = SetReader(features.select(rows)).batch(places, places).to(device)
        values[rows] = tower.pool(batch.x, batch.mask).float().cpu().numpy()
    tower.train(was_training)
    log.info("%d sets were pooled once into vectors of width %d: %.1f MB", *values.shape, values.nbytes / 1e6)
    return RaggedFeatures(values, np.arange(len(values) + 1, dtype=np.int64))


def pooled_bytes(count: int, width: int) -> int:
    """Memory that so many pooled vectors take, float32, with their offsets."""
    return count * width * 4 + (count + 1) * 8


def _is_fixed(tower: Tower) -> bool:
    """Whether pooling a set gives the same vector in every epoch, in training and out of it."""
    aggregator = tower.aggregator
    learned = [*aggregator.parameters(), *aggregator.buffers()]
    comes_first = tower.tail is not None or tower.vector_projection is not None
    drops = tower.feature_dropout.p > 0 or tower.element_dropout.p > 0 or _drops(aggregator)
    return not (comes_first or learned or drops)


def _drops(module: nn.Module) -> bool:
    return any(isinstance(part, _DropoutNd) and part.p > 0 for part in module.modules())
