"""Queries with what was retrieved for them, as a paper shows them: hits, near misses, worst failures."""

from collections.abc import Sequence
from dataclasses import dataclass

from xmodal.reporting.groups import DIRECTIONS, Group
from xmodal.reporting.ranking import best_with, which_run
from xmodal.reporting.retrieved import KINDS, Item, Query, read_retrieved
from xmodal.reporting.thumbnails import Thumbnail, Thumbnails

_HEADS = {
    "hit": ("Hits", "found at rank 1, evenly spread over all of them"),
    "near": ("Near misses", "found at ranks 2 to 10, evenly spread"),
    "failure": ("Worst failures", "those whose first match stands furthest down"),
}


@dataclass(frozen=True)
class Shown:
    """A photo or a caption on a page.

    Attributes:
        item: what it is.
        photo: None for a caption, and where the photo is missing.
        score: its similarity to the query, for a result.
        is_match: whether it belongs to the query.
    """

    item: Item
    photo: Thumbnail | None
    score: str = ""
    is_match: bool = False


@dataclass(frozen=True)
class Card:
    """A query as it is shown."""

    rank: int
    query: Shown
    truth: tuple[Shown, ...]
    top: tuple[Shown, ...]


@dataclass(frozen=True)
class Kind:
    """Queries of one kind: ``Hits``, and how they were chosen."""

    title: str
    choice: str
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Direction:
    """One way of searching.

    Attributes:
        way: ``i2t``, ``t2i`` …
        title: ``Image → text``.
        finds_photos: whether results are photos.
        kinds: those there are queries of.
    """

    way: str
    title: str
    finds_photos: bool
    kinds: tuple[Kind, ...]


@dataclass(frozen=True)
class Examples:
    """The queries of one run, and which run it is, in words."""

    caption: str
    directions: tuple[Direction, ...]


def examples_of(group: Group, photos: Thumbnails) -> Examples | None:
    """Of the best run that keeps them; None where none does.

    Raises:
        DataError: the file is damaged.
    """
    file = f"retrieved_{group.runs[0].split}.json"
    run = best_with(group, file)
    if run is None:
        return None
    ways = read_retrieved(run.folder / file)
    directions = [_direction(way, ways[way], photos) for way in DIRECTIONS if ways.get(way)]
    return Examples(f"What {which_run(group, run)} retrieved, chosen by rank alone.", tuple(directions))


def _direction(way: str, queries: Sequence[Query], photos: Thumbnails) -> Direction:
    kinds = (
        Kind(*_HEADS[kind], tuple(_card(query, photos) for query in queries if query.kind == kind)) for kind in KINDS
    )
    return Direction(way, DIRECTIONS[way], way.endswith("i"), tuple(kind for kind in kinds if kind.cards))


def _card(query: Query, photos: Thumbnails) -> Card:
    def shown(item: Item) -> Shown:
        return Shown(item, photos.of(item.path))

    top = [Shown(one.item, photos.of(one.item.path), f"{one.score:.2f}", one.is_match) for one in query.top]
    return Card(query.rank, shown(query.item), tuple(map(shown, query.truth)), tuple(top))
