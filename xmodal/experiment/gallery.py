"""Which images and captions of a data set are searched in an evaluation, and which of them are queries."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from xmodal.config.evaluation import ROLES, EvaluationOptions
from xmodal.data.items import Items
from xmodal.errors import DataError
from xmodal.experiment.embedded import counted
from xmodal.experiment.embeddings_file import bank_rows

log = logging.getLogger(__name__)


def split_of(items: Items, options: EvaluationOptions) -> str:
    """The split that is evaluated; the user is told where nobody named it.

    Raises:
        DataError: a split that does not exist.
    """
    if options.gallery == "train":
        log.info("--gallery train: queries and gallery are those of train, the same as --split train.")
        return "train"
    if options.split is not None:
        if not items.has_split(options.split):
            there = [role for role in ROLES if items.has_split(role)]
            raise DataError(f"{items.name} has no split {options.split}. Type --split {' or '.join(there)}.")
        return options.split
    if items.has_split("test"):
        log.info("Evaluating test, which %s has (--split train or val for another).", items.name)
        return "test"
    log.info("Evaluating val: %s has no test split.", items.name)
    return "val"


@dataclass(frozen=True)
class Gallery:
    """Rows of the images and captions of a gallery, and which of them are queries (None: all)."""

    images: Int[np.ndarray, "N"]
    captions: Int[np.ndarray, "M"]
    image_queries: np.ndarray | None
    text_queries: np.ndarray | None

    @classmethod
    def of(cls, items: Items, split: str, is_of_all_splits: bool) -> "Gallery":
        images, captions = items.image_rows(split), items.caption_rows(split)
        if not is_of_all_splits:
            return cls(images, captions, None, None)
        every_image, every_caption = np.arange(len(items.images)), np.arange(len(items.captions))
        return cls(every_image, every_caption, np.isin(every_image, images), np.isin(every_caption, captions))

    def description(self, data_name: str, split: str) -> str:
        gallery = counted(len(self.images), len(self.captions))
        if self.image_queries is None or self.text_queries is None:
            return f"{split} of {data_name}, {gallery}"
        queries = counted(int(self.image_queries.sum()), int(self.text_queries.sum()))
        return f"queries: {split} of {data_name}, {queries}; gallery: all splits, {gallery}"

    def labels(self, items: Items) -> dict[str, Any]:
        """Classes of both sides; a caption has that of its image."""
        of_captions = items.caption_images[self.captions]
        return {"image_labels": items.labels[self.images], "text_labels": items.labels[of_captions]}


def rows_of_bank(items: Items, options: EvaluationOptions) -> tuple[Int[np.ndarray, "A"], Int[np.ndarray, "B"]]:
    """Rows of the training images and captions that are the bank of a hubness correction."""
    draw = np.random.default_rng(options.seed)
    images, captions = items.image_rows("train"), items.caption_rows("train")
    return (
        images[bank_rows(len(images), options.bank_size, draw)],
        captions[bank_rows(len(captions), options.bank_size, draw)],
    )
