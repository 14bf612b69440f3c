"""Hubness correction of a saved index, with the training queries that it holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from xmodal.errors import ConfigError, DataError
from xmodal.retrieval.hubness import chosen_inverse_temperature, gallery_offsets
from xmodal.retrieval.record import UNREADABLE
from xmodal.search.gallery import NumberedGallery, as_queries
from xmodal.search.manifest import Target

_AT_ONCE = 65536  # vectors whose offsets are computed together
_TIES = 16  # places behind the first that are looked at for items that tie with it
_FIRST = 100  # least number of candidates that are looked at


@dataclass(frozen=True)
class Correction:
    """QB-Norm (Bogolin et al., CVPR 2022) of the search in one side, see `xmodal.retrieval.hubness.QueryBank`.

    A query whose best item is that of a query of the bank has ``s'(q, g) = s(q, g) + offset[g]`` for its scores.

    Attributes:
        bank: (B, E) training queries.
        inverse_temperature: β.
        offsets: by number of the vector; 0 where there is none.
        activated: numbers of vectors that are the best of a query of the bank.
    """

    bank: Float[np.ndarray, "B E"]
    inverse_temperature: float
    offsets: Float[np.ndarray, "numbers"]
    activated: Bool[np.ndarray, "numbers"]

    @classmethod
    def of(
        cls, bank: Float[np.ndarray, "B E"], similarity: str, inverse_temperature: float | None = None
    ) -> "Correction":
        """That of an empty gallery.

        Raises:
            ConfigError: no β for another similarity than cosine; euclidean distances.
        """
        if similarity == "euclidean":
            raise ConfigError("A query bank corrects cosines and dot products: this model compares by distances.")
        beta = chosen_inverse_temperature(inverse_temperature, similarity)
        return cls(bank, beta, np.zeros(0, np.float32), np.zeros(0, bool))

    def with_vectors(
        self, vectors: Float[np.ndarray, "n E"], numbers: Int[np.ndarray, "n"], similarity: str
    ) -> "Correction":
        """With the offsets of more vectors; which are activated is found anew by ``activated_in``."""
        size = max(len(self.offsets), int(numbers.max(initial=-1)) + 1)
        offsets = np.zeros(size, np.float32)
        offsets[: len(self.offsets)] = self.offsets
        bank = torch.from_numpy(np.ascontiguousarray(self.bank))
        for start in range(0, len(vectors), _AT_ONCE):
            block = torch.from_numpy(np.array(vectors[start : start + _AT_ONCE], dtype=np.float32))
            found = gallery_offsets(bank, block, similarity, self.inverse_temperature)
            offsets[numbers[start : start + _AT_ONCE]] = found.numpy()
        return Correction(self.bank, self.inverse_temperature, offsets, np.zeros(size, bool))

    def activated_in(self, gallery: NumberedGallery) -> "Correction":
        """With the items of a gallery that are the best of a query of the bank, or tie for it."""
        queries = as_queries(self.bank, gallery.width, gallery.similarity)
        scores, numbers = gallery.search(queries[(queries != 0).any(axis=1)], _TIES)
        activated = np.zeros(len(self.offsets), bool)
        activated[numbers[(scores == scores[:, :1]) & (numbers >= 0)]] = True
        return Correction(self.bank, self.inverse_temperature, self.offsets, activated)

    def search(
        self, gallery: NumberedGallery, queries: Float[np.ndarray, "Q E"], k: int, among: np.ndarray | None = None
    ) -> tuple[Float[np.ndarray, "Q K"], Int[np.ndarray, "Q K"]]:
        """The best by corrected scores, which are what is returned; arguments are those of `NumberedGallery.search`.

        As many candidates are taken as it needs for the rest not to matter: an item behind the last candidate scores
        no more than that one plus the largest offset. So over an exact index the result is exact.
        """
        size = len(gallery) if among is None else len(among)
        scores, numbers = gallery.search(queries, min(size, max(_FIRST, 4 * k)), among)
        k = max(1, min(k, size))  # of an empty split: the number −1
        found_scores, found = np.empty((len(queries), k), scores.dtype), np.empty((len(queries), k), numbers.dtype)
        left = np.arange(len(queries))
        while True:
            corrected = np.where(numbers < 0, -np.inf, scores + self._added(numbers)).astype(scores.dtype)
            order = np.argsort(-corrected, axis=1, kind="stable")[:, :k]
            best = np.take_along_axis(corrected, order, axis=1)
            found_scores[left], found[left] = best, np.take_along_axis(numbers, order, axis=1)
            is_open = best[:, -1] < scores[:, -1] + self._largest(numbers)
            if numbers.shape[1] >= size or not is_open.any():
                return found_scores, found
            left = left[is_open]
            scores, numbers = gallery.search(queries[left], min(size, 4 * numbers.shape[1]), among)

    def _added(self, numbers: Int[np.ndarray, "Q C"]) -> Float[np.ndarray, "Q C"]:
        applies = self.activated[numbers[:, :1]] & (numbers[:, :1] >= 0)
        return np.where(applies, self.offsets[numbers], 0.0)

    def _largest(self, numbers: Int[np.ndarray, "Q C"]) -> Float[np.ndarray, "Q"]:
        applies = self.activated[numbers[:, 0]] & (numbers[:, 0] >= 0)
        return np.where(applies, self.offsets.max(initial=0.0 if not len(self.offsets) else -np.inf), 0.0)


def write_corrections(path: Path, corrections: Mapping[Target, Correction]) -> None:
    """An ``.npz`` without pickled objects."""
    arrays: dict[str, Any] = {}
    for target, one in corrections.items():
        arrays |= {
            f"{target}.bank": one.bank.astype(np.float32),
            f"{target}.beta": np.array(one.inverse_temperature),
            f"{target}.offsets": one.offsets,
            f"{target}.activated": one.activated,
        }
    with path.open("wb") as file:
        np.savez(file, **arrays)


def read_corrections(path: Path) -> dict[Target, Correction]:
    """What ``write_corrections`` wrote; raises DataError for anything else."""
    targets: tuple[Target, ...] = ("images", "captions")
    found: dict[Target, Correction] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for target in targets:
                if f"{target}.bank" in arrays:
                    bank, beta, offsets, activated = (
                        arrays[f"{target}.{name}"] for name in ("bank", "beta", "offsets", "activated")
                    )
                    found[target] = Correction(bank, float(beta), offsets, activated)
    except (*UNREADABLE, KeyError) as error:
        raise DataError(f"{path} can't be read ({error}). Build the index again.") from error
    return found
