"""Similarity of embeddings, in blocks whose scores do not depend on where in a block a vector stands."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from xmodal.errors import ConfigError, FeatureError

SIMILARITIES = ("cosine", "dot", "euclidean")

# A matrix product sends the rows and columns that do not fill a register tile through another kernel, which adds
# up in another order: equal vectors then score differently (seen with MKL for every width above 2 in blocks of 2
# to 257 rows, never where rows and columns are multiples of 16). Blocks are therefore padded, all to one shape.
ROWS_MULTIPLE = 64
WIDTH_MULTIPLE = 16


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is not below ``number``."""
    return -(-number // multiple) * multiple


def check_similarity(similarity: str) -> None:
    """Raises ConfigError unless ``similarity`` is one of ``SIMILARITIES``."""
    if similarity not in SIMILARITIES:
        raise ConfigError(f"similarity must be one of {', '.join(SIMILARITIES)}; found {similarity!r}")


def unit_length(rows: Float[Tensor, "n E"]) -> Float[Tensor, "n E"]:
    """Rows divided by their Euclidean length; a zero row stays zero."""
    largest = rows.abs().amax(dim=1, keepdim=True)
    scaled = rows / largest.masked_fill(largest == 0, 1.0)  # squares of 1e30 or 1e-30 would leave float32
    length = scaled.norm(dim=1, keepdim=True)
    return scaled / length.masked_fill(length == 0, 1.0)


def count_zero_rows(embeddings: Float[Tensor, "N E"], name: str, block_size: int = 4096) -> int:
    """How many rows are the zero vector.

    Raises:
        FeatureError: rows with NaN or infinity, the first ones named.
    """
    zero, broken = 0, []
    for start in range(0, len(embeddings), block_size):
        block = embeddings[start : start + block_size]
        finite = block.isfinite().all(dim=1)
        broken.extend((start + (~finite).nonzero().flatten()).tolist())
        zero += int((block == 0).all(dim=1).sum())
    if broken:
        first = ", ".join(map(str, broken[:5])) + (", …" if len(broken) > 5 else "")
        raise FeatureError(
            f"{name} must be finite numbers, but {len(broken)} of {len(embeddings)} rows hold NaN or infinity: "
            f"rows {first}. The model that made them has diverged (lower the learning rate?) or its input is damaged"
        )
    return zero


class Blocks:
    """The rows of an embedding matrix in a chosen order, as blocks of one shape, prepared for ``score``.

    Each block is gathered, converted, brought to unit length under cosine and padded with zeros when it is asked for,
    so that no second copy of the matrix is ever held.
    """

    def __init__(
        self,
        embeddings: Float[Tensor, "N E"],
        order: Int[Tensor, "N"],
        block_size: int,
        similarity: str,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.block_size = round_up(min(block_size, len(embeddings)), ROWS_MULTIPLE)
        self._embeddings = embeddings
        self._order = order.to(embeddings.device)
        self._similarity = similarity
        self._shape = (self.block_size, round_up(embeddings.shape[1], WIDTH_MULTIPLE))
        self._device = device
        self._dtype = dtype

    def __len__(self) -> int:
        return -(-len(self._order) // self.block_size)

    def rows_in(self, block: int) -> int:
        """Number of true rows of a block, without its padding."""
        return min(self.block_size, len(self._order) - block * self.block_size)

    def __getitem__(self, block: int) -> Float[Tensor, "block width"]:
        start = block * self.block_size
        rows = self._embeddings[self._order[start : start + self.block_size]]
        padded = torch.zeros(self._shape, dtype=self._dtype, device=self._device)
        padded[: rows.shape[0], : rows.shape[1]] = rows
        return unit_length(padded) if self._similarity == "cosine" else padded


def score(
    image: Float[Tensor, "b width"], text: Float[Tensor, "c width"], similarity: str, out: Float[Tensor, "b c"]
) -> Float[Tensor, "b c"]:
    """Similarity of each image to each text, greater is closer: ``i·t``, or ``−|i − t|²`` for ``euclidean``."""
    torch.mm(image, text.T, out=out)
    if similarity == "euclidean":
        out.mul_(2).sub_(image.square().sum(dim=1)[:, None]).sub_(text.square().sum(dim=1)[None, :])
    return out


def as_tensor(embeddings: Tensor | np.ndarray) -> Tensor:
    """The embeddings as a tensor without gradient, sharing memory where that is possible."""
    if isinstance(embeddings, Tensor):
        return embeddings.detach()
    writable = embeddings if embeddings.flags.writeable and embeddings.dtype.isnative else embeddings.copy()
    return torch.as_tensor(np.ascontiguousarray(writable))
