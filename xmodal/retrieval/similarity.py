"""Similarity of embeddings, in blocks whose scores do not depend on where in a block a vector stands."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xmodal.config.evaluation import SIMILARITIES
from xmodal.errors import ConfigError, FeatureError

# A matrix product sends the rows and columns that do not fill a register tile through another kernel, which adds
# up in another order: equal vectors then score differently (seen with MKL for every width above 2 in blocks of 2
# to 257 rows, never where rows and columns are multiples of 16). Blocks are therefore padded, all to one shape.
ROWS_MULTIPLE = 64
WIDTH_MULTIPLE = 16

_EXPECTED = (
    "embeddings must be a torch tensor or a NumPy array of integers or of float16, float32 or float64 (a tensor: also "
    "bfloat16)"
)
_FAR = 1e15  # rows whose largest element is farther from 1 are scaled before they are squared


@dataclass(frozen=True)
class Offsets:
    """What a hubness correction adds to the scores of one direction: ``s'(q, g) = s(q, g) + queries[q] · gallery[g]``.

    Attributes:
        gallery: for each item of the gallery; items of equal embedding must have equal offsets.
        queries: whether the query's scores are corrected.
    """

    gallery: Float[Tensor, "G"]
    queries: Bool[Tensor, "Q"]


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is not below ``number``."""
    return -(-number // multiple) * multiple


def check_similarity(similarity: str) -> None:
    """Raises ConfigError unless ``similarity`` is one of ``SIMILARITIES``."""
    if similarity not in SIMILARITIES:
        raise ConfigError(f"similarity must be one of {', '.join(SIMILARITIES)}; found {similarity!r}")


def unit_length(rows: Float[Tensor, "n E"]) -> Float[Tensor, "n E"]:
    """Rows divided by their Euclidean length; a zero row stays zero."""
    return _divide(rows.clone(), *_divisors(rows))


def _divisors(rows: Float[Tensor, "n E"]) -> tuple[Float[Tensor, "n 1"] | None, Float[Tensor, "n 1"]]:
    """What brings rows to unit length: their largest elements, where squares would overflow, then their lengths."""
    largest = _largest(rows)[:, None]
    extreme = (largest > _FAR) | ((largest < 1 / _FAR) & (largest > 0))
    first = largest.where(extreme, 1.0) if extreme.any() else None
    length = torch.linalg.vector_norm(rows if first is None else rows / first, dim=1, keepdim=True)
    return first, length.masked_fill_(length == 0, 1.0)


def _divide(rows: Float[Tensor, "n E"], *divisors: Float[Tensor, "n 1"] | None) -> Float[Tensor, "n E"]:
    """The rows after each division, in the same memory."""
    for divisor in divisors:
        if divisor is not None:
            rows.div_(divisor)
    return rows


def _largest(rows: Float[Tensor, "n E"]) -> Float[Tensor, "n"]:
    """The largest magnitude in each row; NaN where there is one. Ten times as fast as anything element by element."""
    return torch.maximum(rows.amax(dim=1), -rows.amin(dim=1))


def count_zero_rows(embeddings: Float[Tensor, "N E"], name: str, block_size: int = 4096) -> int:
    """How many rows are the zero vector.

    Raises:
        FeatureError: rows with NaN or infinity, the first ones named.
    """
    zero, broken = 0, []
    for start in range(0, len(embeddings), block_size):
        block = embeddings[start : start + block_size]
        largest = _largest(block if block.is_floating_point() else block.double())
        broken.extend((start + (~largest.isfinite()).nonzero().flatten()).tolist())
        zero += int((largest == 0).sum())
    if broken:
        first = ", ".join(map(str, broken[:5])) + (", …" if len(broken) > 5 else "")
        raise FeatureError(
            f"{name} must be finite numbers, but {len(broken)} of {len(embeddings)} rows hold NaN or infinity: "
            f"rows {first}. The model that made them has diverged (lower the learning rate?) or its input is damaged"
        )
    return zero


def common_centre(
    *sides: Float[Tensor, "_ E"], similarity: str = "euclidean", block_size: int = 256
) -> Float[Tensor, "E"] | None:
    """What to take off every row before squared distances are computed: the mean of all rows of all sides, rounded.

    ``score`` subtracts squared lengths from a product; where all vectors are far from the origin, a small difference of
    large numbers is left. Distances do not change when every vector is moved alike. In each dimension the mean is
    rounded to a multiple of a power of two, of two to four standard deviations: then the subtraction does not round
    (vectors that tie still do), and far vectors, as long as they are fewer than half, move nothing: they spread more
    widely than they pull the mean.

    Returns:
        None where nothing is to be taken off: no euclidean distances, or a mean that rounds to zero.
    """
    if similarity != "euclidean":
        return None
    count, width = sum(map(len, sides)), sides[0].shape[1]
    mean, square = torch.zeros(2, width, dtype=torch.float64)
    for side in sides:
        for block in side.split(block_size):
            rows = block.double() if block.dtype != torch.float64 else block.clone()
            mean += rows.sum(dim=0).cpu() / count
            square += rows.square_().sum(dim=0).cpu() / count
    variance = (square - mean.square()).clamp(min=0.0)
    if not variance.isfinite().all():  # the scores will overflow too
        return None
    spread = torch.maximum(variance, variance.mean()).sqrt()
    spread = torch.maximum(spread, mean.abs().max() * 2**-24).clamp(min=torch.finfo(torch.float64).tiny)
    step = torch.ldexp(torch.ones_like(spread), torch.frexp(spread).exponent + 1)
    centre = (mean / step).round() * step
    return centre if centre.any() else None


class Blocks:
    """Chosen rows of an embedding matrix, in a chosen order, as blocks of one shape, prepared for ``score``.

    Each block is gathered, converted, moved by ``centre`` (which all blocks that meet in a score must share), brought
    to unit length under cosine and padded with zeros when it is asked for, always into the same memory: it is
    overwritten by the next one. No second copy of the matrix is ever held.
    """

    def __init__(
        self,
        embeddings: Float[Tensor, "N E"],
        order: Int[Tensor, "n"],
        block_size: int,
        similarity: str,
        device: torch.device,
        dtype: torch.dtype,
        centre: Float[Tensor, "E"] | None = None,
    ) -> None:
        self.block_size = round_up(min(block_size, len(order)), ROWS_MULTIPLE)
        self._embeddings = embeddings
        self._order = order.to(embeddings.device)
        self._similarity = similarity
        width = embeddings.shape[1]
        self._block = torch.zeros(self.block_size, round_up(width, WIDTH_MULTIPLE), dtype=dtype, device=device)
        ready = (embeddings.dtype, embeddings.device, width) == (dtype, self._block.device, self._block.shape[1])
        self._gathered = self._block if ready else embeddings.new_empty(self.block_size, width)
        self._centre = None if centre is None else centre.to(self._block)
        self._divisors: dict[int, tuple[Tensor | None, Tensor]] = {}  # of the blocks seen before

    def __len__(self) -> int:
        return -(-len(self._order) // self.block_size)

    def rows_in(self, block: int) -> int:
        """Number of true rows of a block, without its padding."""
        return min(self.block_size, len(self._order) - block * self.block_size)

    def __getitem__(self, block: int) -> Float[Tensor, "block width"]:
        order = self._order[block * self.block_size : (block + 1) * self.block_size]
        rows = self._gathered[: len(order)]
        torch.index_select(self._embeddings, 0, order, out=rows)
        if self._gathered is not self._block:
            self._block[: len(order), : rows.shape[1]] = rows
        self._block[len(order) :] = 0
        if self._centre is not None:
            self._block[: len(order), : rows.shape[1]].sub_(self._centre)
        if self._similarity == "cosine":
            if block not in self._divisors:
                self._divisors[block] = _divisors(self._block)
            _divide(self._block, *self._divisors[block])
        return self._block


def score(
    image: Float[Tensor, "b width"], text: Float[Tensor, "c width"], similarity: str, out: Float[Tensor, "b c"]
) -> Float[Tensor, "b c"]:
    """Similarity of each image to each text, greater is closer: ``i·t``, or ``−|i − t|²`` for ``euclidean``."""
    torch.mm(image, text.T, out=out)
    if similarity == "euclidean":
        out.mul_(2).sub_(image.square().sum(dim=1)[:, None]).sub_(text.square().sum(dim=1)[None, :])
    return out


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Neither autocast nor the shortened products (TF32, bfloat16) that a training loop may have allowed."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type=device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def as_tensor(embeddings: object) -> Tensor:
    """The embeddings as a tensor without gradient, never to be written into.

    Memory is shared, also that of a read-only or memory-mapped array, unless the rows of an array are not contiguous or
    its byte order is not the machine's: then it is copied.

    Raises:
        FeatureError: neither a tensor nor an array, or numbers of a type that has no arithmetic here.
    """
    if isinstance(embeddings, Tensor):
        if embeddings.layout != torch.strided or (embeddings.is_floating_point() and embeddings.element_size() == 1):
            raise FeatureError(f"{_EXPECTED}, found a tensor of {embeddings.dtype}, {embeddings.layout}")
        return embeddings.detach()
    if not isinstance(embeddings, np.ndarray):
        raise FeatureError(f"{_EXPECTED}, found {type(embeddings).__name__}: np.asarray makes an array of lists")
    if embeddings.dtype.kind not in "fiubc" or embeddings.dtype.itemsize > (16 if embeddings.dtype.kind == "c" else 8):
        raise FeatureError(f"{_EXPECTED}, found an array of {embeddings.dtype}")
    array = embeddings if embeddings.dtype.isnative else embeddings.astype(embeddings.dtype.newbyteorder("="))
    with warnings.catch_warnings():  # torch can't promise that nobody writes into a read-only array; nobody does
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(array if _rows_are_contiguous(array) else np.ascontiguousarray(array))


def _rows_are_contiguous(array: np.ndarray) -> bool:
    if array.ndim != 2 or array.flags.c_contiguous:
        return bool(array.flags.c_contiguous)
    down, along = array.strides
    return bool(along == array.itemsize and down >= 0 and down % array.itemsize == 0 and array.flags.aligned)
