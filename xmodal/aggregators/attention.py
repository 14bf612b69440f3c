"""Attention of one learned query to the vectors of a set."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from xmodal.aggregators.masked_softmax import masked_softmax


class AttentionAggregator(nn.Module):
    """Weighted mean: ``y[b] = Σ_l a[b,l]·x[b,l]`` with ``a[b] = softmax over l of q·x[b,l] / √D``.

    The query q (D,) is learned. It starts at zero, which is the mean of the set. An empty set maps to the zero vector.
    Sources: a learned query over the words of a sentence, Yang et al., Hierarchical Attention Networks, NAACL 2016,
    equation 6; scaled dot products, Vaswani et al., Attention Is All You Need, NeurIPS 2017, equation 1.
    """

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.output_dim = feature_dim
        self.query = nn.Parameter(torch.zeros(feature_dim))

    def forward(self, x: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        kept = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # padding may hold NaN
        weights = masked_softmax(kept @ self.query / math.sqrt(len(self.query)), mask)
        return torch.einsum("bl,bld->bd", weights, kept)
