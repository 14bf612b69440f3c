"""Weights over the vectors that exist."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def masked_softmax(scores: Float[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """Softmax over the entries of a row where ``mask`` is True, 0 elsewhere; a row without any has weights of 0."""
    # the least finite number, not -inf: a row of -inf would give NaN, in the gradient too
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=1)
    return weights.masked_fill(~mask, 0.0)
