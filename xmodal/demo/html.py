"""What the page shows, as HTML; all that comes from an index is escaped."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined

from xmodal.demo.answer import Answer, text_of
from xmodal.demo.collection import Collection
from xmodal.demo.origin import origin_of
from xmodal.demo.query import EVERYWHERE, Query
from xmodal.search.items_table import Item
from xmodal.search.manifest import Target

_STATIC = files("xmodal.demo") / "static"
_TITLE = "xmodal"
_FEW_SENTENCES = 4


@dataclass(frozen=True)
class Card:
    """An item as something to ask for: its photo, or one of its captions."""

    item: Item
    place: int | None
    has_photo: bool


def static(name: str) -> str:
    """The text of a script or style sheet of the page."""
    return (_STATIC / name).read_text(encoding="utf-8")


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds * 1000:,.0f} ms"


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("xmodal.demo"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["milliseconds"] = milliseconds
    made.filters["counted"] = lambda count: f"{count:,}"
    return made


_ENVIRONMENT = _environment()


def header(collections: Sequence[Collection]) -> str:
    return _ENVIRONMENT.get_template("header.html").render(collections=collections)


def start(collections: Sequence[Collection], query: Query) -> str:
    """Something to begin with: photos and sentences drawn at random from the first index."""
    first = collections[0]
    photos = _drawn(first, "images", query, query.k)
    sentences = _drawn(first, "captions", query, _FEW_SENTENCES if photos else query.k)
    return _ENVIRONMENT.get_template("start.html").render(
        title=_TITLE, address=query.address, photos=photos, sentences=sentences, can_read=bool(first.targets)
    )


def _drawn(collection: Collection, target: Target, query: Query, count: int) -> list[Card]:
    drawn = collection.some(target, query.split, count)
    places = [None if target == "images" else collection.place_of(item, number) for item, number in drawn]
    return [Card(item, place, collection.has_photo(item)) for (item, _), place in zip(drawn, places, strict=True)]


def results(collections: Sequence[Collection], query: Query, answers: Sequence[Answer]) -> str:
    """The query, and what each index answers."""
    origin = origin_of(collections, query)
    text = text_of(collections, query)
    return _ENVIRONMENT.get_template("results.html").render(
        title=f"{text or 'A photo'} · {_TITLE}",
        address=query.address,
        query=query,
        text=text,
        origin=origin,
        has_photo=origin is not None and query.is_photo and origin.photo is not None,
        columns=list(zip(collections, answers, strict=True)),
        everywhere=EVERYWHERE,
    )


def fault(sentence: str, query: Query) -> str:
    """Why there is nothing to show."""
    return _ENVIRONMENT.get_template("fault.html").render(title=_TITLE, address=query.address, sentence=sentence)


def photo_button(most_bytes: int) -> str:
    """A button that asks for a photo, as a label of a file input, which keyboards reach."""
    return _ENVIRONMENT.get_template("photo.html").render(most_bytes=most_bytes, mebibytes=most_bytes // 2**20)


def chart(collections: Sequence[Collection]) -> str:
    """The frame of the map, which a script fills."""
    return _ENVIRONMENT.get_template("map.html").render(collections=collections)
