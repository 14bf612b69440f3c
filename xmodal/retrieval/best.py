"""The best of a gallery for a few queries, with their scores, in the order that exact ranks go by."""

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xmodal.retrieval.class_ranks import Strips


def scores_of(
    queries: Float[Tensor, "Q E"], gallery: Float[Tensor, "G E"], rows: Int[np.ndarray, "A"], similarity: str
) -> Float[np.ndarray, "A G"]:
    """Scores of some queries with the whole gallery: cosine, dot product or negative Euclidean distance.

    Equal vectors of the gallery get equal scores, wherever they stand.
    """
    order = np.arange(len(gallery))
    strips = Strips(queries.detach(), gallery.detach(), rows, order, similarity, None)
    scores = np.concatenate([strips[strip].float().cpu().numpy().copy() for strip in range(len(strips))])
    return -np.sqrt(np.maximum(-scores, 0.0)) if similarity == "euclidean" else scores


def best_first(scores: Float[np.ndarray, "G"], matches: Bool[np.ndarray, "G"]) -> Int[np.ndarray, "G"]:
    """Positions of a gallery, best first; of equal scores those without a match first, as ties count in a rank."""
    return np.lexsort((matches, -scores))
