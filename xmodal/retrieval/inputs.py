"""What an evaluation is given, checked and brought to one form."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from xmodal.errors import ConfigError, DataError, FeatureError
from xmodal.retrieval.similarity import check_similarity

Ids = Tensor | np.ndarray | Sequence[int] | Sequence[str]


def check_options(similarity: str, ks: Sequence[int], bootstrap: int, block_size: int) -> None:
    check_similarity(similarity)
    if any(k < 1 for k in ks):
        raise ConfigError(f"ks must be cut-offs of at least 1, found {list(ks)}")
    if bootstrap < 0:
        raise ConfigError(f"bootstrap must be a number of resamples, or 0 for none; found {bootstrap}")
    if block_size < 1:
        raise ConfigError(f"block_size must be at least 1, found {block_size}")


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


def as_ids(image_ids: Ids, text_image_ids: Ids, images: int, texts: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of both sides as arrays of one kind, int64 or strings; raises DataError."""
    of_images, of_texts = _as_keys(image_ids, "image_ids", images), _as_keys(text_image_ids, "text_image_ids", texts)
    _require_one_kind(of_images, of_texts, "image_ids", "text_image_ids")
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
    of_images = _as_keys(image_labels, "image_labels", len(image_ids))
    if text_labels is None:
        return of_images, _labels_of_captions(of_images, image_ids, text_image_ids)
    of_texts = _as_keys(text_labels, "text_labels", len(text_image_ids))
    _require_one_kind(of_images, of_texts, "image_labels", "text_labels")
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


def _require_one_kind(of_images: np.ndarray, of_texts: np.ndarray, *names: str) -> None:
    if of_images.dtype.kind != of_texts.dtype.kind:
        kinds = " and ".join("integers" if keys.dtype.kind == "i" else "strings" for keys in (of_images, of_texts))
        raise DataError(f"{' and '.join(names)} must be of one kind, found {kinds}")


def _as_keys(ids: object, name: str, count: int) -> np.ndarray:
    found = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if found.dtype.kind == "O" and all(isinstance(one, str) for one in found.flat):
        found = found.astype(str)
    if found.dtype.kind == "u" and (found <= np.iinfo(np.int64).max).all():
        found = found.astype(np.int64)  # joined with int64, uint64 would turn into float64
    if found.dtype.kind not in "iU":
        raise DataError(f"{name} must be integers (within int64) or strings, found {found.dtype}")
    if found.shape != (count,):
        raise DataError(f"{name} must have one entry per embedding, shape ({count},), found {found.shape}")
    return found
