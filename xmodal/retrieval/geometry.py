"""How embeddings lie in their space: whether matches are close, and whether the whole is spread out or has collapsed.

All figures are about directions: every embedding is brought to length 1 first, whatever the model does; a zero vector
stays zero. U is the number of embeddings of one side.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from xmodal.retrieval.similarity import full_precision, unit_length

_BLOCK = 512  # rows whose similarities to all are in memory at once
_SMALLEST = 1e-6  # a deviation that float32 vectors of length 1 have by rounding alone


def alignment(
    image: Float[Tensor, "N E"], text: Float[Tensor, "M E"], image_of_text: Int[Tensor, "M"], alpha: float = 2.0
) -> float:
    """``E ‖x − y‖^α`` over all pairs of a text and its image: 0 where matches coincide, 2 where they are unrelated.

    Wang and Isola, Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere, ICML 2020, section 4.1.1 (2 is for α = 2).

    Args:
        image_of_text: row of ``image`` that each text belongs to.
    """
    images = unit_length(image)
    total = torch.zeros((), dtype=torch.float64, device=image.device)
    for texts, rows in zip(text.split(4096), image_of_text.to(image.device).split(4096), strict=True):
        distance = torch.linalg.vector_norm(unit_length(texts) - images[rows], dim=1)
        total += distance.pow(alpha).sum(dtype=torch.float64)
    return float(total) / len(text)


def uniformity(embeddings: Float[Tensor, "U E"], t: float = 2.0) -> float:
    """``log E exp(−t ‖x − y‖²)`` over all pairs of different rows: 0 for one point, lower the more evenly they spread.

    Wang and Isola, ICML 2020, section 4.1.2. For t = 2, evenly spread over a sphere of many dimensions: nearly −4.
    Undefined (NaN) for fewer than two rows. It takes U²E operations: of many embeddings, give a ``sample``.
    """
    rows = unit_length(embeddings)
    squares = rows.square().sum(dim=1)
    total = torch.zeros((), dtype=torch.float64, device=rows.device)
    with full_precision(rows.device):
        for start in range(0, len(rows), _BLOCK):
            own = slice(start, start + _BLOCK)
            # with themselves and those after them: each pair once
            squared = squares[own, None] + squares[None, start:] - 2 * rows[own] @ rows[start:].T
            kernel = squared.clamp_(min=0.0).mul_(-t).exp_()
            total += kernel.triu_(diagonal=1).sum(dtype=torch.float64)
    pairs = len(rows) * (len(rows) - 1) / 2
    return math.log(float(total) / pairs) if pairs else math.nan


def mean_similarity(embeddings: Float[Tensor, "U E"]) -> float:
    """Mean over all pairs of different rows of ``1 − ‖x − y‖²/2``: their cosine similarity, 1 where all are one point.

    It is exact, and takes U·E operations: the mean of ``‖x − y‖²/2`` over pairs is the sum over dimensions of the
    variance (with U − 1). Zero vectors count as one point, too: 1 with each other, 1/2 with any other vector.
    Undefined (NaN) for fewer than two rows.
    """
    if len(embeddings) < 2:
        return math.nan
    rows = unit_length(embeddings)
    return 1.0 - float((rows - rows.mean(dim=0)).square().sum(dtype=torch.float64)) / (len(rows) - 1)


def effective_rank(embeddings: Float[Tensor, "U E"]) -> float:
    """In how many directions embeddings differ: ``exp(−Σ p_k log p_k)``, ``p_k = σ_k / Σ σ``, from 1 to min(U − 1, E).

    Roy and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007, equations 2 to 4. σ are
    the singular values of the centred matrix: what all embeddings have in common tells none from another, and is what
    ``mean_similarity`` shows. (Uncentred, a cloud around one point would count as one dimension and all of its noise.)
    One point has the effective rank 1. The σ are the roots of the eigenvalues of the smaller Gram matrix, in float64.
    """
    rows = unit_length(embeddings).double()
    rows = rows - rows.mean(dim=0)
    gram = rows.T @ rows if rows.shape[0] > rows.shape[1] else rows @ rows.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0.0).sqrt()
    singular = singular[singular > _SMALLEST * math.sqrt(len(rows))]
    if not len(singular):
        return 1.0
    shares = singular / singular.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))


def sample(embeddings: Float[Tensor, "U E"], size: int, seed: int = 0) -> Float[Tensor, "S E"]:
    """``size`` different rows, the same for the same seed and number of rows; all where there are no more."""
    if len(embeddings) <= size:
        return embeddings
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(embeddings), generator=generator)[:size]
    return embeddings[rows.sort().values.to(embeddings.device)]
