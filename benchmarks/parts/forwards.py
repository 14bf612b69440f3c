"""The bare forward passes of a network: recorded while xmodal encodes, and run again without anything around them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class ForwardPass:
    """What a module was given, ready on its device, and the precision that it ran in."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    device: str
    autocast: torch.dtype | None


@contextmanager
def recorded(module: nn.Module) -> Iterator[list[ForwardPass]]:
    """Every forward pass of the module, in order."""
    passes: list[ForwardPass] = []

    def keep(called: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        device = next(module.parameters(), torch.empty(0)).device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        passes.append(ForwardPass(arguments, keywords, device, autocast))

    hook = module.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield passes
    finally:
        hook.remove()
    if not passes:
        raise SystemExit(f"xmodal's encoder doesn't call its {type(module).__name__}, so there is nothing to compare.")


@torch.inference_mode()
def replay(network: Callable[..., object], passes: Sequence[ForwardPass]) -> None:
    """The same passes once more; what comes out is dropped."""
    for step in passes:
        with torch.autocast(step.device, step.autocast, enabled=step.autocast is not None):
            network(*step.arguments, **step.keywords)


class TokenCount:
    """Of all token ids that went into a module of word embeddings: how many, and how many of them were padding."""

    def __init__(self, embeddings: nn.Module, padding_id: int) -> None:
        self._padding_id = padding_id
        self._slots = 0
        self._padded: list[torch.Tensor] = []
        self.stop = embeddings.register_forward_pre_hook(self._count).remove

    @property
    def padding(self) -> float:
        """Share of padding among the tokens since the last look; NaN where nothing was seen."""
        share = int(sum(self._padded)) / self._slots if self._slots else float("nan")
        self._slots, self._padded = 0, []
        return share

    def _count(self, module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        self._slots += arguments[0].numel()
        self._padded.append((arguments[0] == self._padding_id).sum())  # read later: the card need not wait
