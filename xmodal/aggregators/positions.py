"""Positions in a sequence as vectors of sines and cosines."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def sinusoids(count: int | torch.SymInt, width: int, like: Tensor) -> Float[Tensor, "N W"]:
    """Encodings of the positions 0 … count − 1, of the type and on the device of ``like``.

    ``p[k, 2i] = sin(k / 10000^(2i/W))`` and ``p[k, 2i + 1] = cos(k / 10000^(2i/W))``.
    Source: Vaswani et al., Attention Is All You Need, NeurIPS 2017, section 3.5.
    """
    even = torch.arange(0, width, 2, device=like.device, dtype=torch.float64)
    places = torch.arange(count, device=like.device, dtype=torch.float64)
    angles = places[:, None] * torch.exp(even * (-math.log(10000.0) / width))
    return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1)[:, :width].to(like.dtype)
