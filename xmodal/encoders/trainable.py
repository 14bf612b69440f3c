"""What encoders with trainable layers have in common: the range of the setting, its mark, copies that learn."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any, TypeVar

from torch import nn

from xmodal.encoders.protocol import TrainableLayers

Layers = TypeVar("Layers", bound=nn.Module)


def range_faults(trainable_layers: TrainableLayers, most: int | None, key: str) -> list[str]:
    """A sentence where ``trainable_layers`` is neither ``all`` nor a number from 0 to ``most`` (None: no limit)."""
    if trainable_layers == "all":
        return []
    if isinstance(trainable_layers, int) and trainable_layers >= 0 and (most is None or trainable_layers <= most):
        return []
    numbers = "a whole number of at least 0" if most is None else f"a whole number from 0 to {most}"
    return [f"{key}.trainable_layers must be {numbers}, or all; found {trainable_layers}."]


def marked(fingerprint: dict[str, Any], trainable_layers: TrainableLayers) -> dict[str, Any]:
    """The fingerprint with the place of the cut; without one where nothing is cut, as features always were."""
    return fingerprint if trainable_layers == 0 else {**fingerprint, "trainable_layers": trainable_layers}


def trainable(layers: Layers) -> Layers:
    """A copy on the CPU whose parameters learn."""
    return deepcopy(layers).cpu().requires_grad_(True)


def learns_with_heads(tail: nn.Module) -> bool:
    """Whether a tail learns as the heads do: at the optimizer's own rate, from the first epoch on.

    A tail says so by an attribute of this name. ``optimizer.tail_lr_factor`` and ``unfreeze_epoch`` spare what was
    learned before; a tail that starts from random numbers has nothing to be spared.
    """
    return bool(getattr(tail, "learns_with_heads", False))


def make_buffers(network: nn.Module, chosen: Iterable[nn.Parameter]) -> None:
    """Turn these parameters, which optimizers would look for gradients of, into part of the state, names unchanged."""
    fixed = {id(parameter) for parameter in chosen}
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in fixed:
                delattr(module, name)
                module.register_buffer(name, parameter.detach())
