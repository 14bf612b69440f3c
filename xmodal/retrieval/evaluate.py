"""Image ↔ text retrieval figures of two sets of embeddings."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xmodal.errors import DataError
from xmodal.retrieval.class_ranks import class_relevance
from xmodal.retrieval.hubness import QueryBank
from xmodal.retrieval.inputs import Given, Ids, as_labels, check_options
from xmodal.retrieval.metrics import Queries, Relevant, named_figures
from xmodal.retrieval.ranks import Matches, count_ahead, pairs_per_query
from xmodal.retrieval.similarity import Offsets
from xmodal.retrieval.uncertainty import bootstrap_intervals

MANY_PAIRS = 100  # matches of a query, on average, from which on sorting is faster than counting for each of them
MOST_PAIRS = 512  # of one query: each takes a step of its own


@dataclass(frozen=True)
class RetrievalResult:
    """Figures, what they come from for each query, and what took no part in them.

    Attributes:
        metrics: ``i2t_R1`` …, ``i2t_fractional_R1`` …, ``i2t_medR``, ``i2t_meanR``, ``i2t_mAP``, ``i2t_mAP@R``,
            ``i2t_RPrecision``, ``i2t_nDCG@10``, the same with ``t2i`` (by class also ``i2i`` and ``t2t``), and
            ``rsum``; percent but for the two ranks.
        queries: ``"i2t"`` (N,), ``"t2i"`` (M,), by class also ``"i2i"`` (N,) and ``"t2t"`` (M,): rank and values of
            every query.
        images_without_caption: queries without a match; such images stay in the text→image gallery and out of the i2t
            figures.
        texts_without_image: the same of captions.
        zero_images, zero_texts: embeddings that are the zero vector; under cosine they score 0 with everything.
        intervals: by the names of ``metrics``, the ends of their 95 % bootstrap intervals; without those of directions
            that have fewer than two images to resample, and empty where none was asked.
        reranked: ``i2t`` and ``t2i`` with the scores that a query bank corrected; None without a bank.
    """

    metrics: dict[str, float]
    queries: dict[str, Queries]
    images_without_caption: int
    texts_without_image: int
    zero_images: int
    zero_texts: int
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    reranked: "RetrievalResult | None" = None

    @property
    def ranks(self) -> dict[str, Int[np.ndarray, "..."]]:
        """Of each direction the 1-based rank of the best true match per query; 0 where there is none."""
        return {way: side.ranks for way, side in self.queries.items()}


def evaluate_retrieval(
    image_embeddings: Tensor | np.ndarray,
    text_embeddings: Tensor | np.ndarray,
    image_ids: Ids,
    text_image_ids: Ids,
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
        ks: cut-offs of recall@K, beside 1, 5 and 10.
        image_labels: (N,) classes. Where given, items of the same class match, whatever their ids; ``i2i`` and ``t2t``
            are evaluated too, the query itself left out of its gallery.
        text_labels: (M,) classes; None: those of the captions' images.
        bootstrap: number of resamples of the query images for 95 % intervals, at least 40; 0 for points only.
        seed: of the resamples.
        image_queries: which images are queries; None: all. The others are in the gallery alone.
        text_queries: which captions are queries; None: all.
        bank: queries of the training split that correct hubness; the figures so corrected are ``reranked``.
        block_size: images per tile (rounded up to a multiple of 64); a tile has up to eight times as many captions.

    Raises:
        ConfigError: unknown similarity; a cut-off, block size or number of resamples out of range.
        DataError: ids of the wrong kind or number, or no query has a match in the gallery.
        FeatureError: embeddings of wrong shape, or with NaN or infinity.
    """
    check_options(similarity, ks, bootstrap, block_size)
    given = Given.checked(image_embeddings, text_embeddings, image_ids, text_image_ids, image_queries, text_queries)
    labels = as_labels(image_labels, text_labels, given.image_ids, given.text_image_ids)
    corrections = None if bank is None else bank.offsets(given.image, given.text, similarity, block_size)
    search = _Search(given, labels, similarity, tuple(ks), block_size)
    plain = result_of(given, search.queries(), bootstrap, seed)
    if corrections is None:
        return plain
    return replace(plain, reranked=result_of(given, search.queries(corrections), bootstrap, seed))


def result_of(given: Given, queries: dict[str, Queries], bootstrap: int, seed: int) -> RetrievalResult:
    """Figures and intervals of queries that have been ranked."""
    return RetrievalResult(
        metrics=named_figures(queries),
        queries=queries,
        images_without_caption=int((given.image_queries & ~queries["i2t"].matched).sum()),
        texts_without_image=int((given.text_queries & ~queries["t2i"].matched).sum()),
        zero_images=given.zero_images,
        zero_texts=given.zero_texts,
        intervals=bootstrap_intervals(queries, bootstrap, seed) if bootstrap else {},
    )


@dataclass(frozen=True)
class _Search:
    """The ranking of every query; ``labels`` are the classes of both sides where relevance is by class."""

    given: Given
    labels: tuple[np.ndarray, np.ndarray] | None
    similarity: str
    ks: tuple[int, ...]
    block_size: int

    def queries(self, corrections: tuple[Offsets, Offsets] | None = None) -> dict[str, Queries]:
        """Every direction; with corrections, those alone that a bank corrects."""
        if self.labels is None:
            return self._by_instance(*(corrections or (None, None)))
        across = self._across_classes(*self.labels, corrections)
        return across if corrections else across | self._within_classes(*self.labels)

    def _by_instance(self, i2t: Offsets | None, t2i: Offsets | None) -> dict[str, Queries]:
        """A caption matches its image."""
        given = self.given
        of_images = pairs_per_query(given.image_ids, given.text_image_ids)[given.image_queries]
        of_texts = pairs_per_query(given.text_image_ids, given.image_ids)[given.text_queries]
        _require_matches(given, of_images, of_texts)
        many = {"i2t": _are_many(of_images), "t2i": _are_many(of_texts)}
        found: dict[str, Iterable[Relevant]]
        if not any(many.values()) and given.image_queries.all() and given.text_queries.all():
            found = self._one_pass(i2t, t2i)
        else:
            found = {
                "i2t": self._many_matches("i2t", i2t) if many["i2t"] else self._some_images(i2t),
                "t2i": self._many_matches("t2i", t2i) if many["t2i"] else self._some_texts(t2i),
            }
        groups = {"i2t": given.image_ids, "t2i": given.text_image_ids}
        return {way: Queries.from_chunks(chunks, groups[way], self.ks) for way, chunks in found.items()}

    def _one_pass(self, i2t: Offsets | None, t2i: Offsets | None) -> dict[str, Iterable[Relevant]]:
        """Both directions, of all queries."""
        given = self.given
        matches = Matches.from_ids(given.image_ids, given.text_image_ids)
        ahead = count_ahead(given.image, given.text, matches, self.similarity, self.block_size, i2t, t2i)
        return {
            "i2t": [Relevant.from_pairs(matches.image, ahead.captions)],
            "t2i": [Relevant.from_pairs(matches.text, ahead.images)],
        }

    def _some_images(self, offsets: Offsets | None) -> list[Relevant]:
        given, rows = self.given, np.flatnonzero(self.given.image_queries)
        matches = Matches.from_ids(given.image_ids[rows], given.text_image_ids)
        options = (self.similarity, self.block_size, _of_queries(offsets, rows), None, ("i2t",))
        ahead = count_ahead(_chosen(given.image, rows), given.text, matches, *options)
        return [Relevant.from_pairs(rows[matches.image], ahead.captions)]

    def _some_texts(self, offsets: Offsets | None) -> list[Relevant]:
        given, rows = self.given, np.flatnonzero(self.given.text_queries)
        matches = Matches.from_ids(given.image_ids, given.text_image_ids[rows])
        options = (self.similarity, self.block_size, None, _of_queries(offsets, rows), ("t2i",))
        ahead = count_ahead(given.image, _chosen(given.text, rows), matches, *options)
        return [Relevant.from_pairs(rows[matches.text], ahead.images)]

    def _many_matches(self, way: str, offsets: Offsets | None) -> Iterator[Relevant]:
        """An id that is on many items is a class of them: sorting takes the same time for any number of matches."""
        given = self.given
        image, text = (given.image, given.image_ids), (given.text, given.text_image_ids)
        (queries, ids), (gallery, gallery_ids) = (image, text) if way == "i2t" else (text, image)
        rows = np.flatnonzero(given.image_queries if way == "i2t" else given.text_queries)
        return class_relevance(queries, gallery, ids, gallery_ids, rows, self.similarity, offsets)

    def _across_classes(
        self, image_labels: np.ndarray, text_labels: np.ndarray, corrections: tuple[Offsets, Offsets] | None
    ) -> dict[str, Queries]:
        """Items of the same class match."""
        image, text = self._sides(image_labels, text_labels)
        i2t, t2i = corrections or (None, None)
        across = {"i2t": self._classes(image, text, i2t), "t2i": self._classes(text, image, t2i)}
        for way, side in across.items():
            if not side.matched.any():
                raise DataError(
                    f"{way}: no query has the class of any item of the gallery, so there is nothing to evaluate: "
                    f"image_labels begin with {image_labels[:3].tolist()}, text_labels with {text_labels[:3].tolist()}"
                )
        return across

    def _within_classes(self, image_labels: np.ndarray, text_labels: np.ndarray) -> dict[str, Queries]:
        """The same within a side, where an item is not a match of itself."""
        image, text = self._sides(image_labels, text_labels)
        within = {"i2i": self._classes(image, image, None, True), "t2t": self._classes(text, text, None, True)}
        return {way: side for way, side in within.items() if side.matched.any()}

    def _sides(self, image_labels: np.ndarray, text_labels: np.ndarray) -> tuple["_Labelled", "_Labelled"]:
        given = self.given
        return (
            _Labelled(given.image, image_labels, given.image_queries, given.image_ids),
            _Labelled(given.text, text_labels, given.text_queries, given.text_image_ids),
        )

    def _classes(
        self, asked: "_Labelled", gallery: "_Labelled", offsets: Offsets | None, leave_out_itself: bool = False
    ) -> Queries:
        labels, rows = (asked.labels, gallery.labels), np.flatnonzero(asked.queries)
        found = class_relevance(asked.items, gallery.items, *labels, rows, self.similarity, offsets, leave_out_itself)
        return Queries.from_chunks(found, asked.groups, self.ks)


class _Labelled(NamedTuple):
    """One side, where relevance is by class."""

    items: Float[Tensor, "n E"]
    labels: np.ndarray
    queries: Bool[np.ndarray, "n"]
    groups: np.ndarray


def _are_many(pairs: Int[np.ndarray, "Q"]) -> bool:
    """Whether counting for each pair (see ``count_ahead``) would take longer than sorting for each query."""
    return bool(pairs.sum() > MANY_PAIRS * len(pairs) or pairs.max() > MOST_PAIRS)


def _chosen(side: Float[Tensor, "n E"], rows: Int[np.ndarray, "q"]) -> Float[Tensor, "q E"]:
    return side if len(rows) == len(side) else side[rows]


def _of_queries(offsets: Offsets | None, rows: Int[np.ndarray, "q"]) -> Offsets | None:
    return None if offsets is None else Offsets(offsets.gallery, offsets.queries[rows])


def _require_matches(given: Given, of_images: Int[np.ndarray, "q"], of_texts: Int[np.ndarray, "p"]) -> None:
    of_gallery = (
        f"image_ids with {given.image_ids[:3].tolist()}",
        f"text_image_ids with {given.text_image_ids[:3].tolist()}",
    )
    if not of_images.any():
        raise DataError(
            f"none of the {len(of_images)} image queries has a caption in the gallery of {len(given.text)} captions, "
            f"so there is nothing to evaluate: the image_ids of the queries begin with "
            f"{given.image_ids[given.image_queries][:3].tolist()}, {of_gallery[1]}"
        )
    if not of_texts.any():
        raise DataError(
            f"none of the {len(of_texts)} caption queries has its image in the gallery of {len(given.image)} images, "
            f"so there is nothing to evaluate: the text_image_ids of the queries begin with "
            f"{given.text_image_ids[given.text_queries][:3].tolist()}, {of_gallery[0]}"
        )
