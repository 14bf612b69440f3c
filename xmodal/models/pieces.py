"""Batches beyond memory: a tower goes over the batch piece by piece, and the loss sees all of its pairs."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from xmodal.types import FeatureBatch


def embed_in_pieces(embed: Callable[[FeatureBatch], Tensor], batch: FeatureBatch, size: int) -> Float[Tensor, "B E"]:
    """Embeddings of a batch, of which the activations of one piece of ``size`` sets are in memory at a time.

    Those of a piece are computed again in the backward pass, with the random numbers of the first time, as soon as the
    gradient of the loss with respect to its embeddings is known: the gradient is that of the whole batch (Gao et al.,
    Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021, section 3.2). It costs one more
    forward pass.
    """
    outputs = [checkpoint(embed, piece, use_reentrant=False) for piece in _pieces(batch, size)]
    return torch.cat(outputs)


def _pieces(batch: FeatureBatch, size: int) -> list[FeatureBatch]:
    parts = zip(batch.x.split(size), batch.mask.split(size), batch.image_ids.split(size), strict=True)
    return [FeatureBatch(x, mask, image_ids, batch.pooled) for x, mask, image_ids in parts]


def batch_norms(model: nn.Module) -> list[str]:
    """Names of the layers whose output for one item depends on which others go through with it."""
    return [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
