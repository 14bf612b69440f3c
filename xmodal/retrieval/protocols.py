"""Published ways of cutting a split before it is evaluated."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from xmodal.config.evaluation import fold_counts
from xmodal.errors import ConfigError, DataError, FeatureError
from xmodal.retrieval.evaluate import RetrievalResult, evaluate_retrieval, result_of
from xmodal.retrieval.hubness import QueryBank
from xmodal.retrieval.inputs import Given, Ids, as_labels, check_options
from xmodal.retrieval.metrics import Queries

NO_FOLD = -1


def evaluate_folds(
    image_embeddings: Tensor | np.ndarray,
    text_embeddings: Tensor | np.ndarray,
    image_ids: Ids,
    text_image_ids: Ids,
    folds: int,
    similarity: str = "cosine",
    ks: Sequence[int] = (1, 5, 10),
    image_labels: Ids | None = None,
    text_labels: Ids | None = None,
    bootstrap: int = 0,
    *,
    seed: int = 0,
    image_queries: Bool[np.ndarray, "N"] | None = None,
    text_queries: Bool[np.ndarray, "M"] | None = None,
    bank: QueryBank | None = None,
    block_size: int = 512,
) -> RetrievalResult:
    """Retrieval within each of ``folds`` parts of the split, figures averaged over the parts: COCO's "1K" test is
    ``folds=5`` on its 5,000 test images.

    The images, in the order given, are cut into consecutive runs of N / folds images; the captions of a run's images
    are ranked against these images alone, and the images against these captions. Queries of the result are in the
    order of the inputs, with the fold of each (−1: a caption whose image is not among ``image_ids``; it has rank 0 and
    is counted in ``texts_without_image``). Counts are summed; intervals resample images within each fold.

    Karpathy and Fei-Fei, Deep Visual-Semantic Alignments, CVPR 2015 (1,000 images); Faghri et al., VSE++, BMVC 2018
    (averaged over five folds of 1,000).

    Args:
        folds: number of parts, which must divide N: galleries of other sizes would not compare.

    The other arguments are those of ``evaluate_retrieval``.

    Raises:
        ConfigError: N can't be cut so, and as ``evaluate_retrieval``.
        DataError: an image id in two folds, a fold without any match, and as ``evaluate_retrieval``.
        FeatureError: as ``evaluate_retrieval``.
    """
    check_options(similarity, ks, bootstrap, block_size)
    given = Given.checked(image_embeddings, text_embeddings, image_ids, text_image_ids, image_queries, text_queries)
    ids = given.image_ids, given.text_image_ids
    cut, labels = _Cut.of(*ids, folds), _labels(image_labels, text_labels, *ids)

    def of_fold(fold: int) -> RetrievalResult:
        part = _part(given, *labels, *cut.rows(fold))
        return evaluate_retrieval(**part, similarity=similarity, ks=ks, bank=bank, block_size=block_size)

    def joined(results: list[RetrievalResult]) -> RetrievalResult:
        return result_of(given, cut.join([result.queries for result in results], *ids), bootstrap, seed)

    results = [cut.named(fold, of_fold) for fold in range(folds)]
    corrected = [result.reranked for result in results if result.reranked is not None]
    return replace(joined(results), reranked=joined(corrected) if corrected else None)


def _part(
    given: Given,
    image_labels: np.ndarray | None,
    text_labels: np.ndarray | None,
    images: slice,
    texts: Int[np.ndarray, "m"],
) -> dict[str, Any]:
    """What ``evaluate_retrieval`` is given of one fold."""
    return {
        "image_embeddings": given.image[images],
        "text_embeddings": given.text[texts],
        "image_ids": given.image_ids[images],
        "text_image_ids": given.text_image_ids[texts],
        "image_labels": None if image_labels is None else image_labels[images],
        "text_labels": None if text_labels is None else text_labels[texts],
        "image_queries": given.image_queries[images],
        "text_queries": given.text_queries[texts],
    }


@dataclass(frozen=True)
class _Cut:
    """The fold of every image and caption; ``NO_FOLD`` for a caption whose image is not there."""

    folds: int
    images: Int[np.ndarray, "N"]
    texts: Int[np.ndarray, "M"]

    @classmethod
    def of(cls, image_ids: np.ndarray, text_image_ids: np.ndarray, folds: int) -> "_Cut":
        check_folds(folds, len(image_ids))
        of_images = np.arange(len(image_ids)) // (len(image_ids) // folds)
        known, first, number = np.unique(image_ids, return_index=True, return_inverse=True)
        _require_one_fold_each(image_ids, of_images, of_images[first][number.reshape(-1)])
        place = np.searchsorted(known, text_image_ids).clip(max=len(known) - 1)
        of_texts = np.where(known[place] == text_image_ids, of_images[first][place], NO_FOLD)
        return cls(folds, of_images, of_texts)

    def rows(self, fold: int) -> tuple[slice, Int[np.ndarray, "m"]]:
        """The images (one run) and the captions of a fold."""
        size = len(self.images) // self.folds
        return slice(fold * size, (fold + 1) * size), np.flatnonzero(self.texts == fold)

    def named(self, fold: int, evaluate: Callable[[int], RetrievalResult]) -> RetrievalResult:
        """Evaluate one fold; what is wrong with it is said with its number."""
        images, texts = self.rows(fold)
        where = f"fold {fold + 1} of {self.folds} (images {images.start} to {images.stop - 1})"
        if not len(texts):
            raise DataError(f"{where}: no caption belongs to one of its images, so there is nothing to evaluate")
        try:
            return evaluate(fold)
        except (DataError, FeatureError) as fault:
            raise type(fault)(f"{where}: {fault}") from fault

    def join(
        self, of_folds: Sequence[Mapping[str, Queries]], image_ids: np.ndarray, text_image_ids: np.ndarray
    ) -> dict[str, Queries]:
        """The queries of all folds in the order of the inputs."""
        ways = dict.fromkeys(way for queries in of_folds for way in queries)  # a class may lack pairs in some fold
        sides = {"i": (self.images, image_ids), "t": (self.texts, text_image_ids)}
        return {way: _join([queries.get(way) for queries in of_folds], *sides[way[0]]) for way in ways}


def _join(parts: Sequence[Queries | None], folds: Int[np.ndarray, "Q"], groups: np.ndarray) -> Queries:
    names = next(list(part.values) for part in parts if part is not None)
    ranks, values = np.zeros(len(folds), dtype=np.int64), {name: np.zeros(len(folds)) for name in names}
    for fold, part in enumerate(parts):
        if part is not None:
            ranks[folds == fold] = part.ranks
            for name, found in part.values.items():
                values[name][folds == fold] = found
    return Queries(ranks, values, groups, folds)


def check_folds(folds: int, images: int) -> None:
    """Raises ConfigError, naming the numbers that would do, unless ``folds`` cuts the images into equal parts."""
    possible = [1, *fold_counts(images)]
    if folds not in possible:
        choices = ", ".join(map(str, possible[:12])) + (", …" if len(possible) > 12 else "")
        raise ConfigError(
            f"folds={folds} does not cut {images} images into parts of one size, of two images at least (galleries of "
            f"different sizes do not compare). Possible numbers of folds: {choices}"
        )


def _require_one_fold_each(ids: np.ndarray, folds: Int[np.ndarray, "N"], of_first: Int[np.ndarray, "N"]) -> None:
    apart = np.flatnonzero(folds != of_first)
    if len(apart):
        row = apart[0]
        raise DataError(
            "an image id must lie in one fold, so that it is known which images its captions are ranked against; "
            f"{ids[row].item()!r} lies in fold {of_first[row] + 1} and again, as image {row}, in fold "
            f"{folds[row] + 1}. Give each image once, or bring equal ids together"
        )


def _labels(
    image_labels: Ids | None, text_labels: Ids | None, image_ids: np.ndarray, text_image_ids: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Classes as arrays that can be cut. Where captions take those of their images, each fold sees to it."""
    if text_labels is None and image_labels is not None:
        captions = image_ids[:0]
        return (as_labels(image_labels, None, image_ids, captions) or (None,))[0], None
    return as_labels(image_labels, text_labels, image_ids, text_image_ids) or (None, None)
