"""Several losses at once, each with a weight."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from xmodal.config.suggestions import did_you_mean
from xmodal.losses.comparison import EmbeddedPairs, evaluate, figures_of, require, takes_memory


class WeightedSum(nn.Module):
    """``Σ_k weights[k] · losses[k]``.

    Losses that take no labels get them in place of the image ids; those that take no memory compare the pairs of the
    batch alone. A term of weight 0 is computed and logged.

    Args:
        losses: name → loss; None leaves the term out.
        weights: name → its weight, at least 0; not all 0.

    Raises:
        ConfigError: names of losses and weights that differ, weights out of range, no term; all faults at once.
    """

    def __init__(self, losses: Mapping[str, nn.Module | None], weights: Mapping[str, Any]) -> None:
        super().__init__()
        require(_faults(losses, weights))
        kept = {name: loss for name, loss in losses.items() if loss is not None}
        self.losses = nn.ModuleDict(kept)
        self.weights = {name: float(weights[name]) for name in kept}
        self._values: dict[str, Tensor] = {}

    def takes_memory(self) -> bool:
        """Whether any term compares a batch with a memory."""
        return any(takes_memory(loss) for loss in self.losses.values())

    def figures(self) -> dict[str, Tensor]:
        """Of the last batch, of each term: ``<name>_loss`` without its weight, and ``<name>_<figure>``."""
        inner = {
            f"{name}_{key}": value for name, loss in self.losses.items() for key, value in figures_of(loss).items()
        }
        return {f"{name}_loss": value for name, value in self._values.items()} | inner

    def forward(
        self,
        image: Float[Tensor, "B E"],
        text: Float[Tensor, "B E"],
        image_ids: Int[Tensor, "B"],
        labels: Int[Tensor, "B"] | None = None,
        memory: EmbeddedPairs | None = None,
    ) -> Float[Tensor, ""]:
        pairs = EmbeddedPairs(image, text, image_ids, labels)
        values = {name: evaluate(loss, pairs, memory) for name, loss in self.losses.items()}
        self._values = {name: value.detach() for name, value in values.items()}
        return torch.stack([self.weights[name] * value for name, value in values.items()]).sum()


def _faults(losses: Mapping[str, nn.Module | None], weights: Mapping[str, Any]) -> list[str]:
    kept = [name for name, loss in losses.items() if loss is not None]
    faults = [f"loss.weights.{name}: this term of loss.losses has no weight" for name in kept if name not in weights]
    faults += [
        f"loss.weights.{name}: loss.losses has no such term.{did_you_mean(name, losses)} Terms: {', '.join(losses)}"
        for name in weights
        if name not in losses
    ]
    wrong = {name: weight for name, weight in weights.items() if name in kept and not _is_weight(weight)}
    faults += [f"loss.weights.{name} must be a number of at least 0, found {w!r}" for name, w in wrong.items()]
    if not faults and not any(weights[name] for name in kept):
        faults.append("loss.weights: at least one term with a weight above 0 is needed")
    return faults


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
