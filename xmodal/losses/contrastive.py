"""Contrastive loss of Siamese networks: matches are drawn together, others pushed apart up to a margin."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from xmodal.losses.comparison import Comparison, EmbeddedPairs, across, choice_faults, require
from xmodal.losses.triplet import pairwise_distance

CHOICES = {"distance": ("euclidean", "cosine"), "siblings": ("mask", "positive")}


class ContrastiveLoss(nn.Module):
    """Mean over matches of ``d²/2`` plus mean over negatives of ``max(0, m − d)²/2``; m is the margin.

    Hadsell, Chopra and LeCun, Dimensionality Reduction by Learning an Invariant Mapping, CVPR 2006, equation 4. They
    add up over pairs; here matches and negatives have a mean each, as B pairs make B matches and B(B − 1) negatives,
    which would drown the former. Each image is compared with all texts of the batch, and images and texts of the
    memory, where there is one, with the other side.

    Where there are no negatives (or no matches), their part is 0; NaN in an embedding gives NaN.

    Args:
        margin: in units of the distance; negatives that are further apart cost nothing. Embeddings of length 1 at right
            angles are √2 apart.
        distance: ``euclidean`` (of embeddings of length 1, from 0 to 2), or ``cosine``, which is 1 − cosine similarity.
        siblings: other items of the same image (or label): ``mask`` leaves them out, ``positive`` makes them matches.

    Distances are computed in float32 at least, also under autocast. The Euclidean distance of equal vectors has the
    gradient 0.

    Raises:
        ConfigError: a margin that is not positive, or an unknown choice; all faults at once.
    """

    def __init__(self, margin: float = 1.4, distance: str = "euclidean", siblings: str = "mask") -> None:
        super().__init__()
        faults = choice_faults({"distance": distance, "siblings": siblings}, CHOICES)
        if not 0 < margin < math.inf:
            faults.append(f"loss.margin must be positive and finite, found {margin}")
        require(faults)
        self.margin = margin
        self.distance = distance
        self.siblings = siblings
        self._active = torch.tensor(math.nan)

    def figures(self) -> dict[str, Tensor]:
        """Of the last batch: the share of its negatives, from 0 to 1, that are closer than the margin."""
        return {"active_negatives": self._active}

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

    def compare(self, comparisons: Sequence[Comparison]) -> Float[Tensor, ""]:
        """Both means over the pairs of all these comparisons together."""
        distances = [pairwise_distance(c.anchors, c.candidates, self.distance) for c in comparisons]
        matched = [d[c.positives] for c, d in zip(comparisons, distances, strict=True)]
        others = [(self.margin - d[c.negatives]).clamp(min=0) for c, d in zip(comparisons, distances, strict=True)]
        self._active = _mean([(~(gap <= 0)).to(gap.dtype) for gap in others]).detach()
        return (_mean([d.square() for d in matched]) + _mean([gap.square() for gap in others])) / 2


def _mean(parts: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, ""]:
    """Of all values together; 0 where there are none."""
    total = torch.stack([part.sum() for part in parts]).sum()
    return total / max(1, sum(part.numel() for part in parts))
