"""What an evaluation is given, checked and brought to one form."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from xmodal.config.evaluation import FEWEST_RESAMPLES
from xmodal.errors import ConfigError, DataError, FeatureError
from xmodal.retrieval.ids import as_keys, is_whole, require_one_kind
from xmodal.retrieval.similarity import as_tensor, check_similarity, count_zero_rows

Ids = Tensor | np.ndarray | Sequence[int] | Sequence[str]


@dataclass(frozen=True)
class Given:
    """What an evaluation was given, checked: N images, M captions, and which of them are queries."""

    image: Float[Tensor, "N E"]
    text: Float[Tensor, "M E"]
    image_ids: Shaped[np.ndarray, "N"]
    text_image_ids: Shaped[np.ndarray, "M"]
    image_queries: Bool[np.ndarray, "N"]
    text_queries: Bool[np.ndarray, "M"]
    zero_images: int
    zero_texts: int

    @classmethod
    def checked(
        cls,
        image_embeddings: Tensor | np.ndarray,
        text_embeddings: Tensor | np.ndarray,
        image_ids: Ids,
        text_image_ids: Ids,
        image_queries: Bool[np.ndarray, "N"] | None,
        text_queries: Bool[np.ndarray, "M"] | None,
    ) -> "Given":
        """Raises DataError or FeatureError."""
        image, text = as_tensor(image_embeddings), as_tensor(text_embeddings)
        check_shapes(image, text)
        zeros = count_zero_rows(image, "image_embeddings"), count_zero_rows(text, "text_embeddings")
        ids = as_ids(image_ids, text_image_ids, len(image), len(text))
        of_images = as_query_mask(image_queries, "image_queries", len(image))
        of_texts = as_query_mask(text_queries, "text_queries", len(text))
        return cls(image, text, *ids, of_images, of_texts, *zeros)


def check_options(similarity: str, ks: object, bootstrap: object, block_size: object) -> None:
    """Raises ConfigError for an unknown similarity, and for numbers of the wrong kind or out of range."""
    check_similarity(similarity)
    cutoffs = list(ks) if isinstance(ks, Iterable) and not isinstance(ks, str) else [ks]
    if isinstance(ks, str) or not isinstance(ks, Iterable) or not all(is_whole(k) and k >= 1 for k in cutoffs):
        raise ConfigError(f"ks must be a sequence of whole cut-offs of at least 1, such as (1, 5, 10); found {ks!r}")
    check_bootstrap(bootstrap)
    if not (is_whole(block_size) and block_size >= 1):
        raise ConfigError(f"block_size must be a whole number of at least 1, found {block_size!r}")


def check_bootstrap(resamples: object) -> None:
    """Raises ConfigError unless there are enough resamples for the ends of a 95 % interval, or none."""
    if not (is_whole(resamples) and (resamples == 0 or resamples >= FEWEST_RESAMPLES)):
        raise ConfigError(
            f"bootstrap must be a whole number of resamples, at least {FEWEST_RESAMPLES} for a 95 % interval, or 0 for "
            f"none; found {resamples!r}"
        )


def check_shapes(image: Tensor, text: Tensor) -> None:
    for name, side in (("image_embeddings", image), ("text_embeddings", text)):
        if side.ndim != 2 or 0 in side.shape or side.is_complex():
            raise FeatureError(
                f"{name} must be numbers of shape (count, width), found {side.dtype} {tuple(side.shape)}"
            )
    if image.shape[1] != text.shape[1]:
        raise FeatureError(
            f"image and text embeddings must have the same width, found {image.shape[1]} and {text.shape[1]}"
        )


def as_ids(image_ids: object, text_image_ids: object, images: int, texts: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of both sides as arrays of one kind, int64 or strings; raises DataError."""
    of_images, of_texts = (
        as_keys(_array(ids), name, count)
        for ids, name, count in ((image_ids, "image_ids", images), (text_image_ids, "text_image_ids", texts))
    )
    require_one_kind(of_images, of_texts, "image_ids", "text_image_ids")
    return of_images, of_texts


def as_labels(
    image_labels: Ids | None, text_labels: Ids | None, image_ids: np.ndarray, text_image_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Classes of both sides as arrays of one kind; captions take those of their images where they have none of their
    own. None where no class was given; raises DataError."""
    if image_labels is None:
        if text_labels is not None:
            raise DataError("text_labels were given without image_labels: relevance by class needs the classes of both")
        return None
    of_images = as_keys(_array(image_labels), "image_labels", len(image_ids))
    if text_labels is None:
        return of_images, _labels_of_captions(of_images, image_ids, text_image_ids)
    of_texts = as_keys(_array(text_labels), "text_labels", len(text_image_ids))
    require_one_kind(of_images, of_texts, "image_labels", "text_labels")
    return of_images, of_texts


def as_query_mask(asked: Bool[np.ndarray, "Q"] | None, name: str, count: int) -> Bool[np.ndarray, "Q"]:
    """Which items are queries, all where ``asked`` is None; raises DataError for another shape or no query at all."""
    if asked is None:
        return np.ones(count, dtype=bool)
    mask = np.asarray(asked)
    if mask.shape != (count,) or mask.dtype != bool:
        raise DataError(f"{name} must be True or False for each of {count} items, found {mask.dtype} {mask.shape}")
    if not mask.any():
        raise DataError(f"{name} holds not one query, so there is nothing to evaluate")
    return mask


def _labels_of_captions(labels: np.ndarray, image_ids: np.ndarray, text_image_ids: np.ndarray) -> np.ndarray:
    ids, first = np.unique(image_ids, return_index=True)
    place = np.searchsorted(ids, text_image_ids).clip(max=len(ids) - 1)
    unknown = np.flatnonzero(ids[place] != text_image_ids)
    if len(unknown):
        raise DataError(
            f"text_labels must be given where captions belong to no image of image_ids: {len(unknown)} do, the first "
            f"to image {text_image_ids[unknown[0]].item()!r}"
        )
    return labels[first[place]]


def _array(ids: object) -> object:
    return ids.detach().cpu().numpy() if isinstance(ids, Tensor) else ids
