"""Sigmoid loss: every pair by itself is told to match or not to."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from xmodal.losses.comparison import (
    Comparison,
    EmbeddedPairs,
    across,
    choice_faults,
    cosine_similarity,
    require,
)
from xmodal.losses.temperature import InverseTemperature, keep_precision, temperature_faults

CHOICES = {"siblings": ("mask", "positive")}
_LINEAR = 40.0  # from here on, softplus(x) is x to the last digit of float64


class SigLIPLoss(nn.Module):
    """``−(1/B) Σ_i Σ_j log σ(z_ij · (s_ij / τ + b))``, z = 1 for a match and −1 for a negative; s is the cosine.

    Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023, algorithm 1: 1/τ starts at 10 and b at −10, so
    that the many negatives weigh little at first; both are learned. The sum is divided by the number of anchors B, not
    of pairs. Images and texts are compared once; with a memory, which each side compares with the other side of, the
    loss is the mean of both directions. NaN in an embedding gives NaN.

    Args:
        temperature: τ, above 0; the first one where it is learned.
        bias: b, the first one where it is learned. Like τ it stays in float32 when a model is turned to half precision.
        learn_temperature: train τ with the model.
        learn_bias: train b with the model.
        min_temperature: least τ where it is learned. The paper has no bounds.
        max_temperature: largest τ where it is learned.
        siblings: other items of the same image (or label): ``mask`` leaves them out, ``positive`` makes them matches.

    Similarities are computed in float32 at least, also under autocast; a zero vector has similarity 0 to everything.

    Raises:
        ConfigError: a temperature out of its range, a bias that is not finite, an unknown choice; all faults at once.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        bias: float = -10.0,
        learn_temperature: bool = True,
        learn_bias: bool = True,
        min_temperature: float = 0.005,
        max_temperature: float = 1.0,
        siblings: str = "mask",
    ) -> None:
        super().__init__()
        faults = choice_faults({"siblings": siblings}, CHOICES)
        faults += temperature_faults(temperature, learn_temperature, min_temperature, max_temperature)
        if not math.isfinite(bias):
            faults.append(f"loss.bias must be finite, found {bias}")
        require(faults)
        self.siblings = siblings
        self.inverse_temperature = InverseTemperature(temperature, learn_temperature, min_temperature, max_temperature)
        self.bias = nn.Parameter(torch.tensor(bias), requires_grad=learn_bias)
        self._temperature = torch.tensor(math.nan)

    def figures(self) -> dict[str, Tensor]:
        """Temperature and bias of the last batch."""
        return {"temperature": self._temperature, "bias": self.bias.detach().clone()}

    def forward(
        self,
        image: Float[Tensor, "B E"],
        text: Float[Tensor, "B E"],
        image_ids: Int[Tensor, "B"],
        labels: Int[Tensor, "B"] | None = None,
        memory: EmbeddedPairs | None = None,
    ) -> Float[Tensor, ""]:
        comparisons = across(image, text, image_ids, labels, memory, self.siblings)
        return self.compare(comparisons if memory is not None else comparisons[:1])  # the other holds the same pairs

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SigLIPLoss":
        before = self.bias.data
        super()._apply(fn, recurse)
        keep_precision(self.bias, before)
        return self

    def compare(self, comparisons: Sequence[Comparison]) -> Float[Tensor, ""]:
        """The mean over comparisons of the sum over pairs, divided by the number of anchors."""
        scale = self.inverse_temperature()
        self._temperature = 1.0 / scale.detach()
        return torch.stack([_per_anchor(c, scale, self.bias) for c in comparisons]).mean()


def _per_anchor(comparison: Comparison, scale: Float[Tensor, ""], bias: Float[Tensor, ""]) -> Float[Tensor, ""]:
    logits = cosine_similarity(comparison.anchors, comparison.candidates) * scale + bias
    signed = torch.where(comparison.positives, -logits, logits)
    losses = F.softplus(signed, threshold=_LINEAR)  # −log σ(x) = softplus(−x)
    return losses.masked_fill(~(comparison.positives | comparison.negatives), 0.0).sum() / len(comparison.anchors)
