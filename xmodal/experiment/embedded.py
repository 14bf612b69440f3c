"""The two sides of an evaluation as vectors, wherever they come from."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from xmodal.losses.comparison import unit


@dataclass(frozen=True)
class Embedded:
    """N images and M captions to be evaluated.

    Attributes:
        name: what the figures are called by: ``test``, ``test_folds5`` …
        data_name: of the data set; of a file of embeddings, ``embeddings``.
        description: of all this in one line, for the user.
        similarity: ``cosine``, ``dot`` or ``euclidean``.
        record: where the values of every query are kept by default; None where they would be mistaken for others.
        image_ids, text_image_ids: of each image, and of the image of each caption.
        names: where the ids are rows, what the data set calls the image of each row; None where they are its own ids.
        content: digest of the images and captions; None where they are not known.
        image_labels, text_labels: classes, where relevance is by class.
        image_queries, text_queries: which are queries; None for all.
        bank_images, bank_texts: training queries for a hubness correction; None without one.
        ks: cut-offs of recall@K, beside 1, 5 and 10.
        sizes: first dimensions that were trained to be embeddings of their own.
        normalize: embeddings of these sizes have length 1, as the whole ones.
    """

    name: str
    data_name: str
    description: str
    similarity: str
    record: Path | None
    image: Float[Tensor, "N E"]
    text: Float[Tensor, "M E"]
    image_ids: np.ndarray
    text_image_ids: np.ndarray
    names: np.ndarray | None = None
    content: str | None = None
    image_labels: np.ndarray | None = None
    text_labels: np.ndarray | None = None
    image_queries: Bool[np.ndarray, "N"] | None = None
    text_queries: Bool[np.ndarray, "M"] | None = None
    bank_images: Float[Tensor, "A E"] | None = None
    bank_texts: Float[Tensor, "B E"] | None = None
    ks: tuple[int, ...] = (1, 5, 10)
    sizes: tuple[int, ...] = ()
    normalize: bool = False

    def at_size(self, size: int) -> "Embedded":
        """The first dimensions alone, as embeddings of their own."""
        image, text = self.image[:, :size], self.text[:, :size]
        return (
            replace(self, image=unit(image), text=unit(text))
            if self.normalize
            else replace(self, image=image, text=text)
        )


def counted(images: int, captions: int) -> str:
    """``1 image, 2,000 captions``."""
    return ", ".join(
        f"{count:,} {word}{'' if count == 1 else 's'}" for count, word in ((images, "image"), (captions, "caption"))
    )
