"""What an evaluation retrieved for some of its queries, chosen by rank alone: ``retrieved_<split>.json``."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from xmodal.atomic import complete_file
from xmodal.callbacks.gallery import spread
from xmodal.callbacks.retrieval import TOP_K, EmbeddedSplit, Retrieved
from xmodal.data.items import Items
from xmodal.retrieval.best import best_first, scores_of

_FORMAT = 1
_OF_A_KIND = 8
_NEAR = 10  # worst rank of a near miss
_MOST_TRUTHS = 10
_DIGITS = 5

Query = dict[str, Any]


def write_retrieved(path: Path, role: str, data_name: str, ways: Mapping[str, Sequence[Query]]) -> None:
    """Write queries of every direction, as ``retrieved`` gives them, as JSON.

    Args:
        role: the split that was evaluated.
        data_name: of the data set.

    Raises:
        OSError: the folder is absent or full.
    """
    content = {"format": _FORMAT, "split": role, "data": data_name, "ways": ways}
    with complete_file(path) as partial:
        partial.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def retrieved(items: Items, found: Retrieved, embedded: EmbeddedSplit, how: str) -> dict[str, list[Query]]:
    """Of each direction eight hits, eight near misses and the eight worst failures, or as many as there are.

    Each with what matches it, and with the exact top 5.

    Args:
        how: the similarity, ``cosine``, ``dot`` or ``euclidean``.
    """
    sides = {"i": _images(items, found, embedded), "t": _captions(items, found, embedded)}
    return {
        way: _Direction(sides[way[0]], sides[way[2]], found, how).queries(ranks)
        for way, ranks in found.result.ranks.items()
    }


def chosen(ranks: Int[np.ndarray, "Q"]) -> dict[str, Int[np.ndarray, "..."]]:
    """Positions of queries by kind: hits (rank 1) and near misses (2 to 10) evenly spread, failures worst first.

    Queries without a match (rank 0) are of no kind.
    """
    hits, near = np.flatnonzero(ranks == 1), np.flatnonzero((ranks > 1) & (ranks <= _NEAR))
    beyond = np.flatnonzero(ranks > _NEAR)
    worst = beyond[np.argsort(-ranks[beyond], kind="stable")]
    return {
        "hit": spread(hits, min(len(hits), _OF_A_KIND)),
        "near": spread(near, min(len(near), _OF_A_KIND)),
        "failure": worst[:_OF_A_KIND],
    }


@dataclass(frozen=True)
class _Side:
    """Images or captions of the evaluated split: embeddings, rows of their images, and how each one is stated."""

    embeddings: Any  # (n, E)
    image_rows: Int[np.ndarray, "n"]
    stated: Callable[[int], dict[str, Any]]


@dataclass(frozen=True)
class _Direction:
    """One way of searching; within one side (image → image) nothing is in the gallery of its own query."""

    asking: _Side
    gallery: _Side
    found: Retrieved
    how: str

    def queries(self, ranks: Int[np.ndarray, "Q"]) -> list[Query]:
        kinds = [(kind, int(place)) for kind, places in chosen(ranks).items() for place in places]
        rows = np.array([place for _, place in kinds], dtype=np.int64)
        if not len(rows):
            return []
        scores = scores_of(self.asking.embeddings, self.gallery.embeddings, rows, self.how)
        return [
            {"kind": kind, "rank": int(ranks[place]), **self._query(place, of_query)}
            for (kind, place), of_query in zip(kinds, scores, strict=True)
        ]

    def _query(self, place: int, scores: Float[np.ndarray, "G"]) -> dict[str, Any]:
        matches = self._matches(place)
        order = best_first(scores, matches)
        if self.asking is self.gallery:
            order = order[order != place]
        return {
            "query": self.asking.stated(place),
            "truth": [self.gallery.stated(int(there)) for there in self._truth(place, order, matches)],
            "top": [
                {
                    "item": self.gallery.stated(int(there)),
                    "score": round(float(scores[there]), _DIGITS),
                    "match": bool(matches[there]),
                }
                for there in order[:TOP_K]
            ],
        }

    def _matches(self, place: int) -> Bool[np.ndarray, "G"]:
        row, rows, labels = self.asking.image_rows[place], self.gallery.image_rows, self.found.labels
        return rows == row if labels is None else (rows == row) | (labels[rows] == labels[row])

    def _truth(self, place: int, order: Int[np.ndarray, "O"], matches: Bool[np.ndarray, "G"]) -> Sequence[int]:
        """The query's own counterparts; by class, where it has none in this gallery, the best of its matches."""
        own = np.flatnonzero(self.gallery.image_rows == self.asking.image_rows[place])
        if self.asking is self.gallery or not len(own):
            return order[matches[order]][:TOP_K].tolist()
        return own[:_MOST_TRUTHS].tolist()


def _images(items: Items, found: Retrieved, embedded: EmbeddedSplit) -> _Side:
    def stated(place: int) -> dict[str, Any]:
        image = items.images[found.image_rows[place]]
        path = None if image.path is None else str(image.path.absolute())
        return {"id": str(image.image_id), "text": None, "path": path, "label": _label(image.label)}

    return _Side(embedded.image, found.image_rows, stated)


def _captions(items: Items, found: Retrieved, embedded: EmbeddedSplit) -> _Side:
    def stated(place: int) -> dict[str, Any]:
        caption = items.captions[found.caption_rows[place]]
        label = _label(items.images[caption.image].label)
        return {"id": str(caption.caption_id), "text": caption.text or None, "path": None, "label": label}

    return _Side(embedded.text, items.caption_images[found.caption_rows], stated)


def _label(label: int | str | None) -> str | None:
    return None if label is None else str(label)
