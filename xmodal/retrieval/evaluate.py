"""Image ↔ text retrieval figures of two sets of embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xmodal.errors import DataError
from xmodal.retrieval.class_ranks import class_relevance
from xmodal.retrieval.hubness import QueryBank
from xmodal.retrieval.inputs import Ids, as_ids, as_labels, as_query_mask, check_options, check_shapes
from xmodal.retrieval.metrics import Queries, Relevant, named_figures
from xmodal.retrieval.ranks import Matches, count_ahead
from xmodal.retrieval.similarity import Offsets, as_tensor, count_zero_rows
from xmodal.retrieval.uncertainty import bootstrap_intervals


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
        intervals: by the names of ``metrics``, the ends of their 95 % bootstrap intervals; empty where none was asked.
        reranked: the same evaluation with the scores that a query bank corrected; None without a bank.
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
        bootstrap: number of resamples of the query images for 95 % intervals; 0 for points only.
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
    image, text = as_tensor(image_embeddings), as_tensor(text_embeddings)
    check_shapes(image, text)
    zero_images, zero_texts = count_zero_rows(image, "image_embeddings"), count_zero_rows(text, "text_embeddings")
    ids = as_ids(image_ids, text_image_ids, len(image), len(text))
    labels = as_labels(image_labels, text_labels, *ids)
    asked = (
        as_query_mask(image_queries, "image_queries", len(image)),
        as_query_mask(text_queries, "text_queries", len(text)),
    )
    sides = _Sides(image, text, *ids, labels, *asked, similarity, tuple(ks), block_size)

    def result(i2t: Offsets | None, t2i: Offsets | None) -> RetrievalResult:
        queries = sides.by_instance(i2t, t2i) if labels is None else sides.by_class(i2t, t2i)
        return RetrievalResult(
            metrics=named_figures(queries),
            queries=queries,
            images_without_caption=int((asked[0] & ~queries["i2t"].matched).sum()),
            texts_without_image=int((asked[1] & ~queries["t2i"].matched).sum()),
            zero_images=zero_images,
            zero_texts=zero_texts,
            intervals=bootstrap_intervals(queries, bootstrap, seed) if bootstrap else {},
        )

    corrections = None if bank is None else bank.offsets(image, text, similarity, block_size)
    plain = result(None, None)
    return plain if corrections is None else replace(plain, reranked=result(*corrections))


@dataclass(frozen=True)
class _Sides:
    """Both sides of an evaluation, checked: N images, M captions, and which of them are queries."""

    image: Float[Tensor, "N E"]
    text: Float[Tensor, "M E"]
    image_ids: np.ndarray
    text_image_ids: np.ndarray
    labels: tuple[np.ndarray, np.ndarray] | None
    image_queries: Bool[np.ndarray, "N"]
    text_queries: Bool[np.ndarray, "M"]
    similarity: str
    ks: tuple[int, ...]
    block_size: int

    def by_instance(self, i2t: Offsets | None, t2i: Offsets | None) -> dict[str, Queries]:
        """A caption matches its image."""
        if self.image_queries.all() and self.text_queries.all():  # one pass serves both directions
            matches = Matches.from_ids(self.image_ids, self.text_image_ids)
            self._require_matches(len(matches.image))
            ahead = count_ahead(self.image, self.text, matches, self.similarity, self.block_size, i2t, t2i)
            relevant = {
                "i2t": Relevant.from_pairs(matches.image, ahead.captions),
                "t2i": Relevant.from_pairs(matches.text, ahead.images),
            }
        else:
            relevant = {"i2t": self._of_image_queries(i2t), "t2i": self._of_text_queries(t2i)}
        groups = {"i2t": self.image_ids, "t2i": self.text_image_ids}
        return {way: Queries.from_relevant(found, groups[way], self.ks) for way, found in relevant.items()}

    def _of_image_queries(self, offsets: Offsets | None) -> Relevant:
        rows = np.flatnonzero(self.image_queries)
        matches = Matches.from_ids(self.image_ids[rows], self.text_image_ids)
        self._require_matches(len(matches.image))
        chosen = None if offsets is None else Offsets(offsets.gallery, offsets.queries[rows])
        ahead = count_ahead(self.image[rows], self.text, matches, self.similarity, self.block_size, chosen, None)
        return Relevant.from_pairs(rows[matches.image], ahead.captions)

    def _of_text_queries(self, offsets: Offsets | None) -> Relevant:
        rows = np.flatnonzero(self.text_queries)
        matches = Matches.from_ids(self.image_ids, self.text_image_ids[rows])
        self._require_matches(len(matches.text))
        chosen = None if offsets is None else Offsets(offsets.gallery, offsets.queries[rows])
        ahead = count_ahead(self.image, self.text[rows], matches, self.similarity, self.block_size, None, chosen)
        return Relevant.from_pairs(rows[matches.text], ahead.images)

    def _require_matches(self, found: int) -> None:
        if not found:
            raise DataError(
                f"none of the {len(self.text)} captions belongs to one of the {len(self.image)} images, so there is "
                f"nothing to evaluate: text_image_ids begin with {self.text_image_ids[:3].tolist()}, image_ids with "
                f"{self.image_ids[:3].tolist()}"
            )

    def by_class(self, i2t: Offsets | None, t2i: Offsets | None) -> dict[str, Queries]:
        """Items of the same class match; also within a side, where an item is not a match of itself."""
        assert self.labels is not None
        image = (self.image, self.labels[0])
        text = (self.text, self.labels[1])
        image_side, text_side = (self.image_queries, self.image_ids), (self.text_queries, self.text_image_ids)
        across = {
            "i2t": self._classes(*image, *text, *image_side, i2t),
            "t2i": self._classes(*text, *image, *text_side, t2i),
        }
        for way, side in across.items():
            if not side.matched.any():
                raise DataError(
                    f"{way}: no query has the class of any item of the gallery, so there is nothing to evaluate: "
                    f"image_labels begin with {self.labels[0][:3].tolist()}, text_labels with "
                    f"{self.labels[1][:3].tolist()}"
                )
        within = {
            "i2i": self._classes(*image, *image, *image_side, None, True),
            "t2t": self._classes(*text, *text, *text_side, None, True),
        }
        return across | {way: side for way, side in within.items() if side.matched.any()}

    def _classes(
        self,
        queries: Float[Tensor, "Q E"],
        query_labels: np.ndarray,
        gallery: Float[Tensor, "G E"],
        gallery_labels: np.ndarray,
        asked: Bool[np.ndarray, "Q"],
        groups: np.ndarray,
        offsets: Offsets | None,
        leave_out_itself: bool = False,
    ) -> Queries:
        rows = np.flatnonzero(asked)
        labels = (query_labels, gallery_labels)
        found = class_relevance(queries, gallery, *labels, rows, self.similarity, offsets, leave_out_itself)
        return Queries.from_chunks(found, groups, self.ks)
