"""The temperature by which similarities are divided, fixed or learned."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn


class InverseTemperature(nn.Module):
    """``1/τ``, what similarities are multiplied by; where it is learned, ``log(1/τ)`` is the parameter.

    Before each training forward the parameter is brought back between its bounds, as CLIP does with its logit scale
    (Radford et al., 2021, section 2.5): it can leave a bound again, which a bound within the formula would prevent. It
    stays in float32 when a model is turned to half precision, where a step of the optimizer would round to nothing.

    Args:
        temperature: τ, the first one where it is learned.
        learned: whether τ is trained with the model.
        least, most: bounds of a learned τ.
    """

    def __init__(self, temperature: float, learned: bool, least: float, most: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.bounds = (least, most)
        self.log: nn.Parameter | None = nn.Parameter(torch.tensor(-math.log(temperature))) if learned else None

    def forward(self) -> Float[Tensor, ""]:
        if self.log is None:
            return torch.tensor(1.0 / self.temperature, dtype=torch.float64)
        highest, lowest = (-math.log(bound) for bound in self.bounds)
        if not self.training:
            return self.log.clamp(lowest, highest).exp()
        with torch.no_grad():
            self.log.clamp_(lowest, highest)
        return self.log.exp()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "InverseTemperature":
        before = None if self.log is None else self.log.data
        super()._apply(fn, recurse)
        if self.log is not None and before is not None:
            keep_precision(self.log, before)
        return self


def keep_precision(parameter: nn.Parameter, before: Tensor) -> None:
    """Take back that a parameter was turned to half precision; where it was moved, it stays moved."""
    if parameter.dtype in (torch.float16, torch.bfloat16):
        parameter.data = before.to(parameter.device)


def temperature_faults(temperature: float, learned: bool, least: float, most: float) -> list[str]:
    """A sentence where the temperature is not positive, or a learned one does not lie between its bounds."""
    if not 0 < temperature < math.inf:
        return [f"loss.temperature must be positive and finite, found {temperature}"]
    if learned and not 0 < least <= temperature <= most < math.inf:
        return [
            "loss.temperature, where it is learned, must lie between loss.min_temperature and loss.max_temperature, "
            f"both positive; found {temperature}, {least} and {most}"
        ]
    return []
