"""A tower of the same embeddings whose parts can all be said in ONNX, for sets of any number and length."""

from copy import deepcopy

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from xmodal.aggregators.gpo import GPOAggregator
from xmodal.export.recurrent import OnnxRecurrent
from xmodal.models.projection import BatchNorm


def exportable(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode, in which those parts are replaced that choose their steps by the values they see.

    Recurrent networks become nodes that exist in ONNX alone, so the copy is for `torch.onnx.export`: what it computes
    in torch means nothing.
    """
    copied = deepcopy(module).cpu().eval()
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            setattr(parent, name, _replaced(child))
    return copied


def _replaced(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.GRU | nn.LSTM):
        return OnnxRecurrent(module)
    if isinstance(module, GPOAggregator):
        return _EveryLength(module)
    return _Affine(module) if isinstance(module, BatchNorm) else module


class _EveryLength(nn.Module):
    """Generalised pooling whose weights are made for every set, not once for each length that occurs in the batch."""

    def __init__(self, aggregator: GPOAggregator) -> None:
        super().__init__()
        self.aggregator = aggregator

    def forward(self, x: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        weights = self.aggregator.weights(mask.sum(dim=1), mask.shape[1])
        return self.aggregator.weighted(x, mask, weights)


class _Affine(nn.Module):
    """What a batch normalisation is after training; torch's own asks whether its batch, here unknown, is empty."""

    scale: Tensor
    shift: Tensor

    def __init__(self, normalisation: BatchNorm) -> None:
        super().__init__()
        norm = normalisation.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        self.register_buffer("scale", scale.detach())
        self.register_buffer("shift", (norm.bias - norm.running_mean * scale).detach())

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return x * self.scale + self.shift
