"""Triplet loss over the pairs of a batch, with the usual choices of anchor, distance and negatives."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xmodal.losses.comparison import (
    Comparison,
    EmbeddedPairs,
    across,
    at_least_float32,
    choice_faults,
    cosine_similarity,
    require,
    zero_of,
)

CHOICES = {
    "anchor": ("image", "text", "both"),
    "distance": ("euclidean", "squared_euclidean", "cosine"),
    "negatives": ("all", "random", "semihard", "hardest"),
    "siblings": ("mask", "positive"),
    "reduction": ("active_mean", "mean", "sum"),
}


class TripletLoss(nn.Module):
    """Over triplets (a, p, n): ``max(0, margin + d(a, p) − d(a, n))``; a triplet is active where that is above zero.

    Each of the B pairs gives one positive: an image anchor has its own caption, a text anchor its own image.
    Negatives come from the other modality and never share the anchor's image id (or label), so that two captions of one
    image are not each other's negatives. With ``anchor="both"`` the triplets of both directions share one mean.
    The loss is 0, with a gradient of 0, where no triplet is active; NaN in an embedding gives NaN.

    Args:
        margin: in units of the distance.
        anchor: ``image`` (negatives are captions), ``text`` (negatives are images) or ``both``.
        distance: ``euclidean``, ``squared_euclidean``, or ``cosine``, which is 1 − cosine similarity.
        negatives: of an anchor and its match,
            ``all``: every one there is;
            ``random``: one, drawn uniformly; in training, drawn alike in all processes;
            ``semihard``: all with ``d(a, p) < d(a, n) < d(a, p) + margin``, none where there is no such negative
            (Schroff et al., FaceNet, CVPR 2015, equation 4);
            ``hardest``: the closest one (Faghri et al., VSE++, BMVC 2018, equation 6).
        siblings: other items of the same image (or label): ``mask`` leaves them out, ``positive`` makes each of them
            the p of triplets of its own.
        reduction: ``active_mean`` over the active triplets, ``mean`` over all, or ``sum``, as VSE++ and VSE∞ have it.
        warmup_steps: in optimizer step s of the first n, the loss is ``(1 − s/n)`` times that of all negatives plus
            ``s/n`` times that of the chosen ones. For the former, ``max(0, …)`` of an anchor and its match is the mean
            over their active negatives, so that it does not outweigh the latter in a large batch or a sum. From random
            parameters, the hardest negatives alone often draw everything into one point (Wu et al., Sampling Matters
            in Deep Embedding Learning, ICCV 2017).

    Distances are computed in float32 at least, also under autocast. The Euclidean distance of equal vectors has
    the gradient 0; a zero vector has the cosine distance 1 to everything.

    Raises:
        ConfigError: a margin that is not positive, steps that are negative or lead nowhere, or an unknown choice; all
            faults at once.
    """

    def __init__(
        self,
        margin: float = 0.2,
        anchor: str = "both",
        distance: str = "cosine",
        negatives: str = "all",
        siblings: str = "mask",
        reduction: str = "active_mean",
        warmup_steps: int = 0,
    ) -> None:
        super().__init__()
        chosen = {
            "anchor": anchor,
            "distance": distance,
            "negatives": negatives,
            "siblings": siblings,
            "reduction": reduction,
        }
        faults = choice_faults(chosen, CHOICES)
        if not 0 < margin < math.inf:
            faults.append(f"loss.margin must be positive and finite, found {margin}")
        if warmup_steps < 0:
            faults.append(f"loss.warmup_steps must be at least 0, found {warmup_steps}")
        if warmup_steps > 0 and negatives == "all":
            faults.append(
                f"loss.warmup_steps={warmup_steps} leads from all negatives to those chosen, but loss.negatives=all "
                "chooses all. Set loss.warmup_steps=0, or loss.negatives=hardest, semihard or random"
            )
        require(faults)
        self.margin = margin
        self.anchor = anchor
        self.distance = distance
        self.negatives = negatives
        self.siblings = siblings
        self.reduction = reduction
        self.warmup_steps = warmup_steps
        self._step = 0
        self._draws: torch.Generator | None = None  # None: torch's own, until a step is known
        self._active = torch.tensor(math.nan)

    def at_step(self, step: int, seed: int) -> None:
        """Say which optimizer step comes next: for the warm-up, and so that all processes draw the same negatives."""
        self._step = step
        self._draws = torch.Generator().manual_seed(seed)

    def figures(self) -> dict[str, Tensor]:
        """Of the last batch: the share of its triplets, from 0 to 1, that were active."""
        return {"active_triplets": self._active}

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
        """The loss of all triplets of these comparisons together."""
        distances = [pairwise_distance(c.anchors, c.candidates, self.distance) for c in comparisons]
        both = list(zip(comparisons, distances, strict=True))
        draws = self._draws if self.training else None
        chosen = [_hinges(c, d, self.margin, self.negatives, draws) for c, d in both]
        loss, self._active = self._reduced(chosen)
        loss = loss + zero_of(*(side for c in comparisons for side in (c.anchors, c.candidates)))  # no NaN is missed
        if not self.training or self._step >= self.warmup_steps:
            return loss
        share = self._step / self.warmup_steps
        everything, _ = self._reduced([_mean_of_active(*_hinges(c, d, self.margin, "all", None)) for c, d in both])
        return share * loss + (1 - share) * everything

    def _reduced(
        self, pieces: Sequence[tuple[Float[Tensor, "..."], Bool[Tensor, "..."]]]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """One number of all hinges, and the share of the chosen ones that is active."""
        total = torch.stack([hinges.sum() for hinges, _ in pieces]).sum()
        active = torch.stack([(~(hinges <= 0)).sum() for hinges, _ in pieces]).sum()  # not `> 0`, which would hide NaN
        number = torch.stack([chosen.sum() for _, chosen in pieces]).sum()
        share = (active / number.clamp(min=1)).detach()
        if self.reduction == "sum":
            return total, share
        return total / (active if self.reduction == "active_mean" else number).clamp(min=1), share


def pairwise_distance(
    anchors: Float[Tensor, "A E"], candidates: Float[Tensor, "C E"], distance: str
) -> Float[Tensor, "A C"]:
    """Distance of each anchor (row) to each candidate (column): Euclidean, its square, or ``1 − cosine similarity``."""
    if distance == "cosine":
        return 1.0 - cosine_similarity(anchors, candidates)
    with torch.autocast(device_type=anchors.device.type, enabled=False):
        a, b = at_least_float32(anchors), at_least_float32(candidates)
        # Differences, not |a|² + |b|² − 2ab: no cancellation, and a gradient of 0 where vectors are equal.
        euclidean = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
        return euclidean if distance == "euclidean" else euclidean.square()


def _hinges(
    comparison: Comparison,
    distances: Float[Tensor, "A C"],
    margin: float,
    negatives: str,
    draws: torch.Generator | None,
) -> tuple[Float[Tensor, "T C"], Bool[Tensor, "T C"]]:
    """Of every match (row) and candidate (column): ``max(0, margin + d(a, p) − d(a, n))``, and whether n was chosen.

    It is 0 where n was not.
    """
    anchors, matches = comparison.positives.nonzero(as_tuple=True)
    matched = distances[anchors, matches][:, None]
    rows, allowed = distances.index_select(0, anchors), comparison.negatives.index_select(0, anchors)
    hinges = margin + matched - rows
    if negatives == "hardest":
        allowed = allowed & _one_per_row(rows.detach().masked_fill(~allowed, math.inf).argmin(dim=1), rows.shape[1])
    elif negatives == "random":
        allowed = allowed & _drawn(allowed, draws)
    elif negatives == "semihard":
        allowed = allowed & ~((rows <= matched) | (hinges <= 0))  # NaN stays in
    active = allowed & ~(hinges <= 0)
    return hinges.masked_fill(~active, 0.0), allowed


def _mean_of_active(
    hinges: Float[Tensor, "T C"], allowed: Bool[Tensor, "T C"]
) -> tuple[Float[Tensor, "T 1"], Bool[Tensor, "T 1"]]:
    """Of every match, the mean hinge over its active negatives, as if they were one; and whether it has negatives."""
    active = (~(hinges <= 0)).sum(dim=1, keepdim=True)
    return hinges.sum(dim=1, keepdim=True) / active.clamp(min=1), allowed.any(dim=1, keepdim=True)


def _drawn(allowed: Bool[Tensor, "T C"], draws: torch.Generator | None) -> Bool[Tensor, "T C"]:
    """One of the allowed columns of each row, drawn uniformly, on the CPU where processes share a generator."""
    if draws is None:
        values = torch.rand(allowed.shape, device=allowed.device)
    else:
        values = torch.rand(allowed.shape, generator=draws).to(allowed.device)
    return _one_per_row(values.masked_fill(~allowed, -1.0).argmax(dim=1), allowed.shape[1])


def _one_per_row(columns: Int[Tensor, "T"], width: int) -> Bool[Tensor, "T C"]:
    return torch.arange(width, device=columns.device)[None, :] == columns[:, None]
