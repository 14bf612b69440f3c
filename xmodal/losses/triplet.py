"""Triplet loss over the pairs of a batch, with the usual choices of anchor, distance and negatives."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xmodal.errors import ConfigError

CHOICES = {
    "anchor": ("image", "text", "both"),
    "distance": ("euclidean", "squared_euclidean", "cosine"),
    "negatives": ("all", "random", "semihard", "hardest"),
}


class TripletLoss(nn.Module):
    """Mean over the active triplets (a, p, n) of ``max(0, margin + d(a, p) − d(a, n))``; active: greater than zero.

    Each of the B pairs gives one positive: an image anchor has its own caption, a text anchor its own image.
    Negatives come from the other modality and never share the anchor's image id, so that two captions of one
    image are not each other's negatives. With ``anchor="both"`` the triplets of both directions share one mean.
    The loss is 0, with a gradient of 0, where no triplet is active; NaN in an embedding gives NaN.

    Negatives of an anchor:
        all: every one in the batch.
        random: one, drawn uniformly with torch's generator of the device.
        semihard: all with ``d(a, p) < d(a, n) < d(a, p) + margin``, none where there is no such negative
            (Schroff et al., FaceNet, CVPR 2015).
        hardest: the closest one (Faghri et al., VSE++, BMVC 2018).

    Distances are computed in float32 at least, also under autocast. The Euclidean distance of equal vectors has
    the gradient 0; a zero vector has the cosine distance 1 to everything.

    Raises:
        ConfigError: a margin that is not positive, or an unknown choice; all faults at once.
    """

    def __init__(
        self, margin: float = 0.2, anchor: str = "both", distance: str = "cosine", negatives: str = "all"
    ) -> None:
        super().__init__()
        chosen = {"anchor": anchor, "distance": distance, "negatives": negatives}
        faults = [
            f"loss.{name} must be one of {', '.join(CHOICES[name])}; found {value!r}"
            for name, value in chosen.items()
            if value not in CHOICES[name]
        ]
        if not 0 < margin < math.inf:
            faults.append(f"loss.margin must be positive and finite, found {margin}")
        if faults:
            raise ConfigError(faults)
        self.margin = margin
        self.anchor = anchor
        self.distance = distance
        self.negatives = negatives

    def forward(
        self, image: Float[Tensor, "B E"], text: Float[Tensor, "B E"], image_ids: Int[Tensor, "B"]
    ) -> Float[Tensor, ""]:
        from_image = pairwise_distance(image, text, self.distance)
        allowed = image_ids[:, None] != image_ids[None, :]
        directions = {"image": [from_image], "text": [from_image.T], "both": [from_image, from_image.T]}[self.anchor]
        hinges = torch.stack([hinge_of_negatives(d, allowed, self.margin, self.negatives) for d in directions])
        active = ~(hinges <= 0)  # not `hinges > 0`, which would hide NaN
        return hinges.masked_fill(~active, 0.0).sum() / active.sum().clamp(min=1)


def pairwise_distance(image: Float[Tensor, "B E"], text: Float[Tensor, "B E"], distance: str) -> Float[Tensor, "B B"]:
    """Distance of each image (row) to each text (column): Euclidean, its square, or ``1 − cosine similarity``."""
    with torch.autocast(device_type=image.device.type, enabled=False):
        image, text = _at_least_float32(image), _at_least_float32(text)
        if distance == "cosine":
            return 1.0 - _unit(image) @ _unit(text).T
        # Differences, not |a|² + |b|² − 2ab: no cancellation, and a gradient of 0 where vectors are equal.
        euclidean = torch.cdist(image, text, compute_mode="donot_use_mm_for_euclid_dist")
        return euclidean if distance == "euclidean" else euclidean.square()


def hinge_of_negatives(
    distances: Float[Tensor, "B B"], allowed: Bool[Tensor, "B B"], margin: float, negatives: str
) -> Float[Tensor, "B B"]:
    """``margin + d(a, p) − d(a, n)`` of anchor a (row) and negative n (column), 0 where n is not chosen.

    Args:
        distances: of anchor (row) to item of the other modality (column); the match is on the diagonal.
        allowed: items that may be negatives of the anchor.
        negatives: one of ``CHOICES["negatives"]``.
    """
    hinges = margin + distances.diagonal()[:, None] - distances
    if negatives == "hardest":
        allowed = allowed & _one_per_row(distances.masked_fill(~allowed, math.inf).argmin(dim=1))
    elif negatives == "random":
        draws = torch.rand(distances.shape, device=distances.device)
        allowed = allowed & _one_per_row(draws.masked_fill(~allowed, -1.0).argmax(dim=1))
    elif negatives == "semihard":
        allowed = allowed & ~((distances <= distances.diagonal()[:, None]) | (hinges <= 0))  # NaN stays in
    return hinges.masked_fill(~allowed, 0.0)


def _one_per_row(columns: Int[Tensor, "B"]) -> Bool[Tensor, "B B"]:
    return torch.arange(len(columns), device=columns.device)[None, :] == columns[:, None]


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _unit(x: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
    """Rows of length 1; a zero row stays zero, with a bounded gradient."""
    norm = x.norm(dim=1, keepdim=True)
    return x / norm.masked_fill(norm == 0, 1.0)
