"""Random pairs in the form of Flickr30k's: five captions per image."""

import numpy as np

from xmodal.data.items import Caption, ImageItem, Items
from xmodal.types import RaggedFeatures

CAPTIONS_PER_IMAGE = 5


def numbered_items(images: int) -> Items:
    """Training images 0 … n − 1 with their captions."""
    captions = (Caption(row, row // CAPTIONS_PER_IMAGE, f"caption {row}") for row in range(images * CAPTIONS_PER_IMAGE))
    return Items("random", tuple(ImageItem(row, "train") for row in range(images)), tuple(captions))


def random_features(random: np.random.Generator, lengths: np.ndarray, dim: int) -> RaggedFeatures:
    """Sets of these lengths, float16 as in the feature store."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return RaggedFeatures(random.standard_normal((offsets[-1], dim), np.float32).astype(np.float16), offsets)
