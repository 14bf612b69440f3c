"""Sets of vectors, ragged and padded, and the legend of shapes used in every signature.

B pairs in a batch · L length of a set (tokens or regions) · D width of a feature · E embedding size ·
N gallery items (images) · M captions · Q queries · K cut-off · T vectors of all sets together.
Masks are True where a vector exists.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FeatureSet = Float[Tensor, "n D"]  # one item: its set of n vectors


class FeatureBatch(NamedTuple):
    """B sets padded to the longest, with the row of the image that each belongs to."""

    x: Float[Tensor, "B L D"]
    mask: Bool[Tensor, "B L"]
    image_ids: Int[Tensor, "B"]


class PairBatch(NamedTuple):
    """B matching pairs: row b of both sides belongs to the same image."""

    image: FeatureBatch
    text: FeatureBatch


@dataclass(frozen=True)
class RaggedFeatures:
    """N sets of different lengths, stored end to end: set i is ``values[offsets[i]:offsets[i + 1]]``."""

    values: np.ndarray  # (T, D) float16 or float32
    offsets: np.ndarray  # (N + 1,) int64, offsets[0] = 0, offsets[N] = T

    @classmethod
    def from_sets(cls, sets: Sequence[FeatureSet | np.ndarray], dtype: str = "float32") -> "RaggedFeatures":
        """Join N sets (n_i, D) into one array; at least one set is needed to know D."""
        lengths = np.array([len(s) for s in sets], dtype=np.int64)
        values = np.concatenate([np.asarray(s, dtype=dtype) for s in sets])
        return cls(values, np.concatenate([[0], np.cumsum(lengths)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        """Set ``row``: (n, D)."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def feature_dim(self) -> int:
        return self.values.shape[1]

    @property
    def lengths(self) -> np.ndarray:
        """Number of vectors of each set: (N,) int64."""
        return np.diff(self.offsets)

    def select(self, rows: np.ndarray) -> "RaggedFeatures":
        """The sets of ``rows``, in that order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        source = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return RaggedFeatures(self.values[source], offsets)

    def pad(self, rows: np.ndarray, image_ids: np.ndarray) -> FeatureBatch:
        """The sets of ``rows`` padded with zeros to the longest of them (L ≥ 1), as float32."""
        chosen = self.select(np.asarray(rows))
        lengths = chosen.lengths
        mask = np.arange(max(1, lengths.max(initial=1)))[None, :] < lengths[:, None]
        x = np.zeros((*mask.shape, self.feature_dim), dtype=np.float32)
        x[mask] = chosen.values
        return FeatureBatch(torch.from_numpy(x), torch.from_numpy(mask), torch.as_tensor(image_ids, dtype=torch.int64))
