"""Drop-out of whole vectors: in training, a set is seen without some of its vectors."""

import torch
from jaxtyping import Bool
from torch import Tensor, nn


class ElementDropout(nn.Module):
    """In training, each vector of a set is left out with probability ``p``; at least one of a set that has any stays.

    Works on the mask; out of training it gives the mask as it is. VSE∞ calls it size augmentation, with p = 0.2 (Chen
    et al., Learning the Best Pooling Strategy for Visual Semantic Embedding, CVPR 2021).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, mask: Bool[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
        if not self.training or self.p == 0:
            return mask
        drawn = torch.rand(mask.shape, device=mask.device).masked_fill(~mask, -1.0)
        luckiest = drawn == drawn.amax(dim=1, keepdim=True)
        return mask & ((drawn >= self.p) | luckiest)
