"""Image ↔ text retrieval figures of two sets of embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from torch import Tensor

from xmodal.errors import ConfigError, DataError, FeatureError
from xmodal.retrieval import metrics
from xmodal.retrieval.ranks import Matches, count_ahead
from xmodal.retrieval.similarity import as_tensor, check_similarity, count_zero_rows


@dataclass(frozen=True)
class RetrievalResult:
    """Figures, ranks and what took no part in them.

    Attributes:
        metrics: ``i2t_R1`` …, ``i2t_medR``, ``i2t_meanR``, ``i2t_mAP``, ``i2t_mAP@R``, ``i2t_RPrecision``,
            ``i2t_nDCG@10``, the same with ``t2i``, and ``rsum``; percent but for the two ranks.
        ranks: ``"i2t"`` (N,) and ``"t2i"`` (M,), 1-based rank of the best true match; 0 where there is none.
        images_without_caption: such images stay in the text→image gallery and out of the i2t figures.
        texts_without_image: such captions stay in the image→text gallery and out of the t2i figures.
        zero_images, zero_texts: embeddings that are the zero vector; under cosine they score 0 with everything.
    """

    metrics: dict[str, float]
    ranks: dict[str, Int[np.ndarray, "..."]]
    images_without_caption: int
    texts_without_image: int
    zero_images: int
    zero_texts: int


def evaluate_retrieval(
    image_embeddings: Tensor | np.ndarray,
    text_embeddings: Tensor | np.ndarray,
    image_ids: Tensor | np.ndarray | Sequence[int] | Sequence[str],
    text_image_ids: Tensor | np.ndarray | Sequence[int] | Sequence[str],
    similarity: str = "cosine",
    ks: Sequence[int] = (1, 5, 10),
    block_size: int = 512,
) -> RetrievalResult:
    """Exact retrieval in both directions: every image against all captions, every caption against all images.

    ``rank = 1 +`` number of non-matching items that score at least as high as the best true match: ties count
    against the model. Runs where ``image_embeddings`` lie, in float32 (float64 where given), one tile of the
    similarity matrix at a time.

    Args:
        image_embeddings: (N, E).
        text_embeddings: (M, E).
        image_ids: (N,) ints or strings.
        text_image_ids: (M,) the image each caption belongs to; any number of captions per image.
        similarity: ``cosine``, ``dot`` or ``euclidean`` (the closer the better).
        ks: cut-offs of recall@K.
        block_size: images per tile (rounded up to a multiple of 64); a tile has up to eight times as many captions.

    Raises:
        ConfigError: unknown similarity; a cut-off or block size below 1.
        DataError: ids of the wrong kind or number, or no caption belongs to any image.
        FeatureError: embeddings of wrong shape, or with NaN or infinity.
    """
    _check_options(similarity, ks, block_size)
    image, text = as_tensor(image_embeddings), as_tensor(text_embeddings)
    _check_shapes(image, text)
    matches = Matches.from_ids(*_checked_ids(image_ids, text_image_ids, len(image), len(text)))
    zero_images, zero_texts = count_zero_rows(image, "image_embeddings"), count_zero_rows(text, "text_embeddings")
    ahead = count_ahead(image, text, matches, similarity, block_size)
    ranks = {
        "i2t": metrics.best_ranks(matches.image, ahead.captions, len(image)),
        "t2i": metrics.best_ranks(matches.text, ahead.images, len(text)),
    }
    relevant = {
        "i2t": metrics.Relevant.from_pairs(matches.image, ahead.captions),
        "t2i": metrics.Relevant.from_pairs(matches.text, ahead.images),
    }
    figures = {
        f"{way}_{name}": value
        for way in ranks
        for name, value in direction_metrics(ranks[way], relevant[way], ks).items()
    }
    return RetrievalResult(
        metrics=figures | {"rsum": metrics.rsum(ranks["i2t"], ranks["t2i"])},
        ranks=ranks,
        images_without_caption=int((ranks["i2t"] == 0).sum()),
        texts_without_image=int((ranks["t2i"] == 0).sum()),
        zero_images=zero_images,
        zero_texts=zero_texts,
    )


def direction_metrics(
    ranks: Int[np.ndarray, "Q"], relevant: metrics.Relevant, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """All figures of one direction, by their names without the direction."""
    return {f"R{k}": metrics.recall(ranks, k) for k in ks} | {
        "medR": metrics.median_rank(ranks),
        "meanR": metrics.mean_rank(ranks),
        "mAP": metrics.mean_average_precision(relevant),
        "mAP@R": metrics.map_at_r(relevant),
        "RPrecision": metrics.r_precision(relevant),
        "nDCG@10": metrics.ndcg(relevant, 10),
    }


def _check_options(similarity: str, ks: Sequence[int], block_size: int) -> None:
    check_similarity(similarity)
    if any(k < 1 for k in ks):
        raise ConfigError(f"ks must be cut-offs of at least 1, found {list(ks)}")
    if block_size < 1:
        raise ConfigError(f"block_size must be at least 1, found {block_size}")


def _check_shapes(image: Tensor, text: Tensor) -> None:
    for name, side in (("image_embeddings", image), ("text_embeddings", text)):
        if side.ndim != 2 or 0 in side.shape or side.is_complex():
            raise FeatureError(
                f"{name} must be numbers of shape (count, width), found {side.dtype} {tuple(side.shape)}"
            )
    if image.shape[1] != text.shape[1]:
        raise FeatureError(
            f"image and text embeddings must have the same width, found {image.shape[1]} and {text.shape[1]}"
        )


def _checked_ids(image_ids: object, text_image_ids: object, images: int, texts: int) -> tuple[np.ndarray, np.ndarray]:
    of_images, of_texts = _as_ids(image_ids, "image_ids", images), _as_ids(text_image_ids, "text_image_ids", texts)
    if of_images.dtype.kind != of_texts.dtype.kind:
        kinds = " and ".join("integers" if ids.dtype.kind == "i" else "strings" for ids in (of_images, of_texts))
        raise DataError(f"image_ids and text_image_ids must be of one kind, found {kinds}")
    if not np.isin(of_texts, of_images).any():
        raise DataError(
            f"none of the {texts} captions belongs to one of the {images} images, so there is nothing to evaluate: "
            f"text_image_ids begin with {of_texts[:3].tolist()}, image_ids with {of_images[:3].tolist()}"
        )
    return of_images, of_texts


def _as_ids(ids: object, name: str, count: int) -> np.ndarray:
    found = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if found.dtype.kind == "O" and all(isinstance(one, str) for one in found.flat):
        found = found.astype(str)
    if found.dtype.kind == "u" and (found <= np.iinfo(np.int64).max).all():
        found = found.astype(np.int64)  # joined with int64, uint64 would turn into float64
    if found.dtype.kind not in "iU":
        raise DataError(f"{name} must be integers (within int64) or strings, found {found.dtype}")
    if found.shape != (count,):
        raise DataError(f"{name} must have one id per embedding, shape ({count},), found {found.shape}")
    return found
