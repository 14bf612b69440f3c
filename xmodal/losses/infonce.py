"""InfoNCE: a match has to be told from all negatives at once, by a softmax over similarities."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
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
from xmodal.losses.temperature import InverseTemperature, temperature_faults

CHOICES = {"anchor": ("image", "text", "both"), "siblings": ("mask", "positive")}
_LINEAR = 40.0  # from here on, softplus(x) is x to the last digit of float64


class InfoNCELoss(nn.Module):
    """Mean over anchors a of the mean over matches p of ``−log(exp(s_ap) / (exp(s_ap) + Σ_n exp(s_an)))``.

    ``s = cosine similarity / τ``; n are the negatives of the anchor. With one match per anchor this is InfoNCE (van den
    Oord et al., Representation Learning with Contrastive Predictive Coding, 2018, equation 4), and with
    ``anchor="both"`` the symmetric loss of CLIP (Radford et al., ICML 2021, figure 3). With several, each match has to
    be told from the negatives alone; the supervised contrastive loss (Khosla et al., NeurIPS 2020, equation 2) has the
    other matches below the line too, where they push one another away.

    An anchor without negatives adds 0, one without a match does not count; NaN in an embedding gives NaN.

    Args:
        temperature: τ, above 0; the first one where it is learned.
        learn_temperature: train τ with the model, as CLIP does.
        min_temperature: least τ where it is learned; CLIP's is 0.01.
        max_temperature: largest τ where it is learned.
        anchor: ``image`` (candidates are captions), ``text`` (candidates are images) or ``both``.
        siblings: other items of the same image (or label): ``mask`` leaves them out, ``positive`` makes them matches.

    Similarities are computed in float32 at least, also under autocast; a zero vector has similarity 0 to everything.

    Raises:
        ConfigError: a temperature out of its range, or an unknown choice; all faults at once.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        learn_temperature: bool = True,
        min_temperature: float = 0.01,
        max_temperature: float = 1.0,
        anchor: str = "both",
        siblings: str = "mask",
    ) -> None:
        super().__init__()
        faults = choice_faults({"anchor": anchor, "siblings": siblings}, CHOICES)
        require(faults + temperature_faults(temperature, learn_temperature, min_temperature, max_temperature))
        self.anchor = anchor
        self.siblings = siblings
        self.inverse_temperature = InverseTemperature(temperature, learn_temperature, min_temperature, max_temperature)
        self._temperature = torch.tensor(math.nan)

    def figures(self) -> dict[str, Tensor]:
        """The temperature of the last batch."""
        return {"temperature": self._temperature}

    def forward(
        self,
        image: Float[Tensor, "B E"],
        text: Float[Tensor, "B E"],
        image_ids: Int[Tensor, "B"],
        labels: Int[Tensor, "B"] | None = None,
        memory: EmbeddedPairs | None = None,
    ) -> Float[Tensor, ""]:
        from_image, from_text = across(image, text, image_ids, labels, memory, self.siblings)
        return self.compare({"image": [from_image], "text": [from_text], "both": [from_image, from_text]}[self.anchor])

    def compare(self, comparisons: Sequence[Comparison]) -> Float[Tensor, ""]:
        """The mean loss over all anchors of these comparisons that have a match."""
        scale = self.inverse_temperature()
        self._temperature = 1.0 / scale.detach()
        pieces = [_of_anchors(c, scale) for c in comparisons]
        number = torch.stack([counted.sum() for _, counted in pieces]).sum()
        return torch.stack([losses.sum() for losses, _ in pieces]).sum() / number.clamp(min=1)


def _of_anchors(comparison: Comparison, scale: Float[Tensor, ""]) -> tuple[Float[Tensor, "A"], Bool[Tensor, "A"]]:
    """The loss of each anchor, 0 where it has no match; and whether it has one."""
    logits = cosine_similarity(comparison.anchors, comparison.candidates) * scale
    # not −inf: without any negative, its gradient would be NaN
    lowest = torch.finfo(logits.dtype).min
    negatives = logits.masked_fill(~comparison.negatives, lowest).logsumexp(dim=1, keepdim=True)
    losses = F.softplus(negatives - logits, threshold=_LINEAR).masked_fill(~comparison.positives, 0.0)
    matches = comparison.positives.sum(dim=1)
    return losses.sum(dim=1) / matches.clamp(min=1), matches > 0
