"""From sets of vectors to padded batches, the hot path of training."""

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from xmodal.types import FeatureBatch, FeatureSource, RaggedFeatures


@runtime_checkable
class Reader(Protocol):
    """What makes batches of sets that are named by their rows."""

    def batch(self, rows: Tensor, image_ids: Tensor) -> FeatureBatch:
        """The sets of ``rows``, padded with zeros to the longest of them (L ≥ 1), as float32."""
        ...


class SetReader:
    """Sets of a ``RaggedFeatures`` as padded float32 batches; tensors throughout.

    Args:
        features: N sets; their arrays are shared where ``device`` is the CPU.
        device: where vectors are kept and batches made. ``offsets`` stay on the CPU: the length of a batch has to be
            known here, and asking an accelerator for it would mean waiting for all of its work.
        pooled: whether the sets are single vectors that an aggregator has made, which the batches then say.
    """

    def __init__(self, features: RaggedFeatures, device: torch.device | str = "cpu", pooled: bool = False) -> None:
        self.device = torch.device(device)
        self.pooled = pooled
        self.values = torch.from_numpy(features.values).to(self.device)
        self.codes = None if features.codes is None else _as_index(features.codes).to(self.device)
        self.offsets = torch.from_numpy(features.offsets)
        lengths = features.lengths
        one_length = len(lengths) > 0 and lengths[0] > 0 and bool((lengths == lengths[0]).all())
        self.uniform_length = int(lengths[0]) if one_length else None

    def batch(self, rows: Tensor, image_ids: Tensor) -> FeatureBatch:
        """The sets of ``rows``, padded with zeros to the longest of them (L ≥ 1)."""
        x, mask = self._padded(rows) if self.uniform_length is None else self._uniform(rows, self.uniform_length)
        return FeatureBatch(x, mask, image_ids.to(self.device), self.pooled)

    def _uniform(self, rows: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Sets of one length need no padding: they are rows of one array."""
        rows = rows.to(self.device)
        mask = torch.ones(len(rows), length, dtype=torch.bool, device=self.device)
        if self.codes is not None:
            chosen = self.codes.view(-1, length).index_select(0, rows)
            return self._vectors(chosen.flatten()).view(len(rows), length, -1), mask
        sets = self.values.reshape(-1, length, self.values.shape[1])
        return sets.index_select(0, rows).float(), mask

    def _padded(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        steps = torch.arange(max(1, int(lengths.max())), device=self.device)
        mask = steps < lengths[:, None].to(self.device)
        total = int(self.offsets[-1])
        if total == 0:  # no set has any vector
            return torch.zeros(*mask.shape, self.values.shape[1], device=self.device), mask
        # padding reads some vector that exists and is then set to zero: one gather, no loop over sets
        source = (starts[:, None].to(self.device) + steps).clamp_(max=total - 1).flatten()
        wanted = source if self.codes is None else self.codes.index_select(0, source)
        x = self._vectors(wanted).view(*mask.shape, -1)
        return x.masked_fill_(~mask.unsqueeze(-1), 0.0), mask

    def _vectors(self, wanted: Tensor) -> Tensor:
        return self.values.index_select(0, wanted).float()


class SourceReader:
    """Batches of a `FeatureSource` that isn't in memory, each read or made when it is asked for."""

    def __init__(self, source: FeatureSource) -> None:
        self.source = source

    def batch(self, rows: Tensor, image_ids: Tensor) -> FeatureBatch:
        """The sets of ``rows``, padded with zeros to the longest of them (L ≥ 1)."""
        chosen = self.source.select(rows.numpy())
        return SetReader(chosen).batch(torch.arange(len(chosen)), image_ids)


class PartReader:
    """Batches of some sets of a source, which are in memory, under the rows that they have there.

    Args:
        rows: strictly rising.
        features: the sets of these rows.
    """

    def __init__(self, rows: np.ndarray, features: RaggedFeatures) -> None:
        self._rows = torch.from_numpy(rows)
        self._sets = SetReader(features)

    def batch(self, rows: Tensor, image_ids: Tensor) -> FeatureBatch:
        """The sets of ``rows``, padded with zeros to the longest of them (L ≥ 1)."""
        return self._sets.batch(torch.searchsorted(self._rows, rows), image_ids)


def _as_index(codes: np.ndarray) -> Tensor:
    """Codes in a type that torch looks up by; unsigned ones beyond 8 bits it does not."""
    return torch.from_numpy(codes.astype(np.int32 if codes.dtype.itemsize < 4 else np.int64))
