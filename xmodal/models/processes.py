"""What the processes of one training have in common, and what they must not have in common."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor, distributed
from torch.nn import functional as F

from xmodal.losses.comparison import EmbeddedPairs


def are_several() -> bool:
    """Whether other processes train together with this one."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def gathered(pairs: EmbeddedPairs) -> EmbeddedPairs:
    """The pairs of all processes, rank after rank, the same in each; every process may bring another number of them.

    Every process then computes the whole loss. The backward pass adds up the gradients that the W processes have for
    an embedding, W times the true one, and DistributedDataParallel divides by W: what is left is the gradient of one
    process with the whole batch, for the loss's own parameters too.
    """
    sizes = _sizes(pairs.image_ids)
    sides = torch.cat([pairs.image, pairs.text], dim=1)  # one exchange, not two
    rows: Tensor = _Gather.apply(_padded(sides, max(sizes)))
    image, text = _trimmed(rows.unbind(), sizes).split(pairs.image.shape[1], dim=1)
    return EmbeddedPairs(image, text, _trimmed(_of_all(_padded(pairs.image_ids, max(sizes))), sizes))


def draw_apart(seed: int, epoch: int) -> None:
    """Give each of several processes random numbers of its own, a function of seed, epoch and rank.

    All were seeded alike to make equal weights, and would drop the same entries of their batches.
    """
    if are_several():
        state = np.random.SeedSequence([seed, epoch, distributed.get_rank()]).generate_state(1)
        torch.manual_seed(int(state[0]))


def share_buffers(module: torch.nn.Module) -> None:
    """Give all processes the buffers of rank 0, whose checkpoint is kept.

    Running statistics of batch normalisation are each process's own until the next training step.
    """
    if are_several():
        for buffer in module.buffers():
            distributed.broadcast(buffer, src=0)


class _Gather(torch.autograd.Function):
    """What all W processes hold, (W, …); the gradient is the sum of those that they have for this one's part."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return torch.stack(_of_all(own))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(summed)
        return summed[distributed.get_rank()]


def _of_all(own: Tensor) -> list[Tensor]:
    found = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(found, own)
    return found


def _sizes(own: Shaped[Tensor, "B"]) -> list[int]:
    return [int(size) for size in _of_all(torch.tensor([len(own)], device=own.device))]


def _padded(rows: Tensor, count: int) -> Tensor:
    return F.pad(rows, [0, 0] * (rows.ndim - 1) + [0, count - len(rows)]).contiguous()


def _trimmed(parts: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
