"""What a run retrieved for a few queries, as ``retrieved_<split>.json`` keeps it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xmodal.errors import DataError

KINDS = ("hit", "near", "failure")
_FORMAT = 1


@dataclass(frozen=True)
class Item:
    """A photo or a caption: ``text`` is None for photos, ``path`` for captions, either where it is not known."""

    id: str
    text: str | None
    path: Path | None
    label: str | None


@dataclass(frozen=True)
class Answer:
    """One of the first results."""

    item: Item
    score: float
    is_match: bool


@dataclass(frozen=True)
class Query:
    """A query with what belongs to it and what was found.

    Attributes:
        kind: ``hit`` (rank 1), ``near`` (up to 10) or ``failure``.
        rank: of its first match.
        item: the query.
        truth: what matches it.
        top: the first results, the best first.
    """

    kind: str
    rank: int
    item: Item
    truth: tuple[Item, ...]
    top: tuple[Answer, ...]


def read_retrieved(path: Path) -> dict[str, list[Query]]:
    """The queries of each direction, ``i2t``, ``t2i`` …

    Raises:
        DataError: the file is damaged, of a later format, or something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r}, expected {_FORMAT}")
        return {str(way): [_query(query) for query in queries] for way, queries in content["ways"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as fault:
        raise DataError(f"{path.name} can't be read ({type(fault).__name__}: {fault})") from fault


def _query(found: Mapping[str, Any]) -> Query:
    if found["kind"] not in KINDS:
        raise ValueError(f"a query of kind {found['kind']!r}, expected {', '.join(KINDS)}")
    return Query(
        found["kind"],
        int(found["rank"]),
        _item(found["query"]),
        tuple(_item(one) for one in found["truth"]),
        tuple(Answer(_item(one["item"]), float(one["score"]), bool(one["match"])) for one in found["top"]),
    )


def _item(found: Mapping[str, Any]) -> Item:
    path, text, label = found["path"], found["text"], found["label"]
    return Item(
        _as_utf8(str(found["id"])),
        None if text is None else _as_utf8(str(text)),
        None if path is None else Path(path),
        None if label is None else _as_utf8(str(label)),
    )


def _as_utf8(text: str) -> str:
    """JSON can hold half a character, which no file in UTF-8 can."""
    return text.encode("utf-8", "replace").decode("utf-8")
