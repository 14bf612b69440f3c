"""Padded sets as the sequences that a recurrent network reads."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def without_gaps(
    x: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"], before: int = 0, behind: int = 0
) -> Float[Tensor, "B M D"]:
    """The vectors of each set side by side in their order, M = before + L + behind.

    They start at place ``before``; all other places are zero, whatever the padding held.
    """
    joined = x.new_zeros(x.shape[0], before + x.shape[1] + behind, x.shape[2])
    sets, _ = mask.nonzero(as_tuple=True)
    joined[sets, mask.cumsum(dim=1)[mask] - 1 + before] = x[mask]
    return joined


def between(
    first: Float[Tensor, "D"], last: Float[Tensor, "D"], x: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]
) -> tuple[Float[Tensor, "B M D"], Int[Tensor, "B"]]:
    """``first, x[b,0], …, x[b,n-1], last`` of each set, zeros behind it (M = L + 2), and the lengths n + 2."""
    counts = mask.sum(dim=1)
    sequence = without_gaps(x.to(first.dtype), mask, before=1, behind=1)
    sequence[:, 0] = first
    sequence[torch.arange(x.shape[0], device=x.device), counts + 1] = last
    return sequence, counts + 2
