"""What one index answers to a query: hits, what is right among them, and how long it took."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import numpy as np
from jaxtyping import Float

from xmodal.demo.collection import Collection
from xmodal.demo.origin import Origin, origin_of
from xmodal.demo.query import EVERYWHERE, Query
from xmodal.errors import FeatureError, XmodalError
from xmodal.search.engine import Hit
from xmodal.search.items_table import Item, folded
from xmodal.search.manifest import Target

Mark = Literal["right", "itself", ""]


@dataclass(frozen=True)
class Found:
    """A hit as the page shows it.

    Attributes:
        place: of a caption among those of its item, from 0.
        mark: ``right`` where it is known to belong to the query, ``itself`` where it is the query.
        share: its score as a length, 0 … 1.
        has_photo: whether there is a photo to show.
    """

    hit: Hit
    place: int | None
    mark: Mark
    share: float
    has_photo: bool


@dataclass(frozen=True)
class Truth:
    """What is known to be right: the best rank of it among all that was searched, None where it is not among them."""

    count: int
    rank: int | None
    is_elsewhere: bool = False  # in a split that was not searched


@dataclass(frozen=True)
class Answer:
    """Of one index; ``fault`` says why there is none.

    Attributes:
        searched: how many vectors were.
        encoding: seconds; None where the embedding was at hand.
        holds_item: whether the item of the query is in this index.
        is_corrected: for hubs, as the index can where it holds a query bank; ranks of what is right are not.
    """

    found: tuple[Found, ...] = ()
    searched: int = 0
    encoding: float | None = None
    searching: float = 0.0
    truth: Truth | None = None
    fault: str = ""
    holds_item: bool = False
    is_corrected: bool = False


@dataclass(frozen=True)
class _Asked:
    vector: Float[np.ndarray, "E"]
    seconds: float | None


def answer(collections: Sequence[Collection], place: int, query: Query) -> Answer:
    """Search an index, the one in this place of the page, for a query that is not empty."""
    collection = collections[place]
    if query.target not in collection.targets:
        return Answer(fault=f"This index holds no {query.target}.")
    origin = origin_of(collections, query)
    try:
        asked = _asked(collection, place, query, origin)
        start = perf_counter()
        split = None if query.split == EVERYWHERE else query.split
        corrected = collection.engine.has_correction and query.is_photo == (query.target == "captions")
        (hits,) = collection.engine.search_vectors(
            asked.vector[None], query.k, target=query.target, split=split, corrected=corrected
        )
        searching = perf_counter() - start
        right, itself = known_numbers(collection, query, origin)
        truth = _truth(collection, query, asked.vector, right)
    except XmodalError as fault:
        return Answer(fault=str(fault))
    except _NotHereError as fault:
        return Answer(fault=str(fault))
    found = _found(collection, query.target, hits, right, itself)
    searched = len(collection.numbers(query.target, query.split))
    holds_item = origin is not None and origin.within(collection) is not None
    return Answer(found, searched, asked.seconds, searching, truth, holds_item=holds_item, is_corrected=corrected)


class _NotHereError(Exception):
    """Why an index knows nothing of a query."""


def _asked(collection: Collection, place: int, query: Query, origin: Origin | None) -> _Asked:
    if query.upload is not None:
        if (vector := query.upload.vectors[place]) is None:
            raise _NotHereError(query.upload.faults[place])
        return _Asked(vector, query.upload.seconds[place])
    if query.item is None:
        return _of_texts(collection, query.text)
    if origin is None:
        raise _NotHereError("There is no such item here.")
    return _of_photo(collection, origin) if query.caption is None else _of_caption(collection, origin, query.caption)


def _of_texts(collection: Collection, text: str) -> _Asked:
    start = perf_counter()
    (vector,) = collection.engine.encode_texts([text])
    return _Asked(vector, perf_counter() - start)


def _of_photo(collection: Collection, origin: Origin) -> _Asked:
    """Of the vector that the index has of this very photo; else of the photo itself."""
    item = origin.within(collection)
    if item is not None and item.image_number is not None:
        try:
            return _Asked(collection.engine.vector("images", item.image_number), None)
        except FeatureError:  # an index of codes: the photo itself is encoded
            pass
    if origin.photo is None:
        raise _NotHereError("There is no photo of this item.")
    start = perf_counter()
    (vector,) = collection.engine.encode_images([origin.photo])
    return _Asked(vector, perf_counter() - start)


def _of_caption(collection: Collection, origin: Origin, place: int) -> _Asked:
    """Of the vector that the index has of this very caption; else of its words."""
    words = origin.caption(place)
    if words is None:
        raise _NotHereError(f"This item has {len(origin.item.captions)} captions.")
    item = origin.within(collection)
    if item is not None and item.caption_numbers:
        try:
            return _Asked(collection.engine.vector("captions", item.caption_numbers[place]), None)
        except FeatureError:  # an index of codes: the words are encoded
            pass
    return _of_texts(collection, words)


def text_of(collections: Sequence[Collection], query: Query) -> str:
    """The sentence that a query is, or nothing."""
    return _words(query, origin_of(collections, query))


def _words(query: Query, origin: Origin | None) -> str:
    if query.item is None or query.caption is None:
        return query.text
    return "" if origin is None else origin.caption(query.caption) or ""


def known_numbers(collection: Collection, query: Query, origin: Origin | None) -> tuple[list[int], list[int]]:
    """Numbers of what is right for a query in an index, and of what is the query itself."""
    if query.upload is not None:
        return [], []
    items = _items_of(collection, query, origin)
    if query.target == "images":
        photos = [item.image_number for item in items if item.image_number is not None]
        return ([], photos) if query.is_photo else (photos, [])
    numbered = [pair for item in items for pair in zip(item.caption_numbers, item.captions, strict=False)]
    said = folded(_words(query, origin))
    right = [number for number, caption in numbered if query.is_photo or folded(caption) != said]
    return right, [] if query.is_photo else [number for number, caption in numbered if folded(caption) == said]


def _items_of(collection: Collection, query: Query, origin: Origin | None) -> list[Item]:
    """Items of an index that a query is, or is a caption of."""
    if query.item is None:
        return [collection.items.item(one) for one in collection.items.with_caption(query.text)]
    item = None if origin is None else origin.within(collection)
    return [] if item is None else [item]


def _truth(collection: Collection, query: Query, vector: np.ndarray, right: Sequence[int]) -> Truth | None:
    if not right:
        return None
    inside = [number for number in right if number in _Sorted(collection.numbers(query.target, query.split))]
    if not inside:
        return Truth(len(right), None, is_elsewhere=True)
    split = None if query.split == EVERYWHERE else query.split
    return Truth(len(inside), collection.engine.rank(vector, query.target, inside, split=split))


class _Sorted:
    """Membership in ascending numbers."""

    def __init__(self, numbers: np.ndarray) -> None:
        self._numbers = numbers

    def __contains__(self, number: int) -> bool:
        row = int(np.searchsorted(self._numbers, number))
        return row < len(self._numbers) and int(self._numbers[row]) == number


def _found(
    collection: Collection, target: Target, hits: Sequence[Hit], right: Sequence[int], itself: Sequence[int]
) -> tuple[Found, ...]:
    found = []
    for hit, share in zip(hits, _shares(collection, hits), strict=True):
        item = collection.items.item(hit.id)
        mark: Mark = "right" if hit.number in right else "itself" if hit.number in itself else ""
        place = collection.place_of(item, hit.number) if target == "captions" else None
        found.append(Found(hit, place, mark, share, collection.has_photo(item)))
    return tuple(found)


def _shares(collection: Collection, hits: Sequence[Hit]) -> list[float]:
    """Scores as lengths: of a cosine, 1 is full; of other scores, the best hit is, and the worst is a tenth."""
    if not hits:
        return []
    scores = np.array([hit.score for hit in hits], dtype=np.float64)
    if collection.engine.manifest.similarity == "cosine" and scores.max() <= 1.001:
        return np.clip(scores, 0.0, 1.0).tolist()
    spread = scores.max() - scores.min()
    return (0.1 + 0.9 * (scores - scores.min()) / spread if spread > 0 else np.ones(len(scores))).tolist()
