"""Sets of vectors, ragged and padded, and the legend of shapes used in every signature.

B pairs in a batch · L length of a set (tokens or regions) · D width of a feature · E embedding size ·
N gallery items (images) · M captions · Q queries · K cut-off · T vectors of all sets together.
Masks are True where a vector exists.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FeatureSet = Float[Tensor, "n D"]  # one item: its set of n vectors


class FeatureBatch(NamedTuple):
    """B sets padded to the longest, with the row of the image that each belongs to.

    Where ``pooled``, standardisation and aggregator have been applied already: a set is its one vector.
    """

    x: Float[Tensor, "B L D"]
    mask: Bool[Tensor, "B L"]
    image_ids: Int[Tensor, "B"]
    pooled: bool = False

    def to(self, device: torch.device | str, **options: Any) -> "FeatureBatch":
        """The same batch on a device."""
        x, mask, image_ids = (part.to(device, **options) for part in (self.x, self.mask, self.image_ids))
        return FeatureBatch(x, mask, image_ids, self.pooled)


class PairBatch(NamedTuple):
    """B matching pairs: row b of both sides belongs to the same image."""

    image: FeatureBatch
    text: FeatureBatch


@runtime_checkable
class FeatureSource(Protocol):
    """N sets of vectors, wherever they are: in memory, in a file that is read piece by piece, or made from photos."""

    def __len__(self) -> int: ...

    @property
    def feature_dim(self) -> int:
        """Width D."""
        ...

    @property
    def lengths(self) -> np.ndarray:
        """Number of vectors of each set: (N,) int64."""
        ...

    def select(self, rows: np.ndarray) -> "RaggedFeatures":
        """The sets of ``rows``, in that order, in memory."""
        ...


@dataclass(frozen=True)
class RaggedFeatures:
    """N sets of different lengths, stored end to end: set i is the vectors from ``offsets[i]`` to ``offsets[i + 1]``.

    Vector t is row t of ``values``; or, where there are ``codes``, row ``codes[t]``: words that occur often are kept
    once.
    """

    values: np.ndarray  # (T, D) float16 or float32; (V, D) where there are codes
    offsets: np.ndarray  # (N + 1,) int64, offsets[0] = 0, offsets[N] = T
    codes: np.ndarray | None = None  # (T,) of any integer type, each below V

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
        return self._vectors(slice(self.offsets[row], self.offsets[row + 1]))

    @property
    def feature_dim(self) -> int:
        return self.values.shape[1]

    @property
    def lengths(self) -> np.ndarray:
        """Number of vectors of each set: (N,) int64."""
        return np.diff(self.offsets)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.values.nbytes + self.offsets.nbytes + (0 if self.codes is None else self.codes.nbytes)

    def select(self, rows: np.ndarray) -> "RaggedFeatures":
        """The sets of ``rows``, in that order; a table of words is shared, not copied."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        source = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        if self.codes is not None:
            return RaggedFeatures(self.values, offsets, self.codes[source])
        return RaggedFeatures(self.values[source], offsets)

    def vectors(self) -> np.ndarray:
        """All vectors end to end, (T, D), each as often as it occurs."""
        return self._vectors(slice(None))

    def pad(self, rows: np.ndarray, image_ids: np.ndarray) -> FeatureBatch:
        """The sets of ``rows`` padded with zeros to the longest of them (L ≥ 1), as float32."""
        chosen = self.select(np.asarray(rows))
        lengths = chosen.lengths
        mask = np.arange(max(1, lengths.max(initial=1)))[None, :] < lengths[:, None]
        x = np.zeros((*mask.shape, self.feature_dim), dtype=np.float32)
        x[mask] = chosen.vectors()
        return FeatureBatch(torch.from_numpy(x), torch.from_numpy(mask), torch.as_tensor(image_ids, dtype=torch.int64))

    def _vectors(self, part: slice) -> np.ndarray:
        return self.values[part] if self.codes is None else self.values[self.codes[part]]
