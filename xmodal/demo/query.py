"""A query as the page asks it, and as an address says it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urlencode

import numpy as np

from xmodal.search.manifest import TARGETS, Target

EVERYWHERE = "all"
FEW, MOST = 1, 60  # results at once
USUAL = 12
MOST_LETTERS = 2000  # of a sentence


@dataclass(frozen=True)
class Upload:
    """A photo that was sent: what the page shows of it, and its embedding in each index (None: it can't be encoded).

    Attributes:
        picture: a small JPEG as a ``data:`` address.
        vectors: of each index, shape (E,).
        faults: of each index, why it has no vector; empty where it has one.
        seconds: that encoding took, for each index.
    """

    name: str
    picture: str
    vectors: tuple[np.ndarray | None, ...] = ()
    faults: tuple[str, ...] = ()
    seconds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Query:
    """What is searched for: a sentence, an item's photo, an item's caption, or a photo that was sent; or nothing.

    Attributes:
        item: id of an item, whose photo it is, or whose caption where ``caption`` gives its place (from 0).
        of: the place of the index that the item is of; 0 also where an address does not say it.
        target: side that is searched.
        split: that alone, or ``all``.
    """

    text: str = ""
    item: str | None = None
    of: int = 0
    caption: int | None = None
    upload: Upload | None = field(default=None, compare=False)
    target: Target = "images"
    split: str = EVERYWHERE
    k: int = USUAL

    @property
    def is_empty(self) -> bool:
        return not self.text and self.item is None and self.upload is None

    @property
    def is_photo(self) -> bool:
        return self.upload is not None or (self.item is not None and self.caption is None)

    @property
    def address(self) -> str:
        """``?q=…&find=…``, which ``from_address`` reads; a photo that was sent is in no address."""
        asked: dict[str, str | int] = {}
        if self.item is not None:
            asked["item"] = self.item
            if self.of:
                asked["of"] = self.of
            if self.caption is not None:
                asked["caption"] = self.caption + 1
        elif self.upload is None and self.text:
            asked["q"] = self.text
        return "?" + urlencode({**asked, "find": self.target, "split": self.split, "k": self.k})

    def of_photo(self, upload: Upload, target: Target) -> "Query":
        return replace(self, text="", item=None, of=0, caption=None, upload=upload, target=target)

    def of_text(self, text: str) -> "Query":
        return replace(self, text=text, item=None, of=0, caption=None, upload=None)

    def of_item(self, clicked: "Query", target: Target) -> "Query":
        """The item of another query, within these settings."""
        item = clicked.item or ""
        return replace(self, text="", item=item, of=clicked.of, caption=clicked.caption, upload=None, target=target)

    def within(self, target: str, split: str, k: object) -> "Query":
        """The same query with other settings, each brought into its bounds."""
        chosen: Target = "captions" if target == "captions" else "images"
        return replace(self, target=chosen, split=split, k=bounded(k))


def from_address(words: Mapping[str, str], splits: tuple[str, ...], targets: tuple[Target, ...] = TARGETS) -> Query:
    """The query that an address asks; what it says wrongly is taken as not said."""
    split = words.get("split", EVERYWHERE)
    item = words.get("item")
    caption = _whole(words.get("caption"))
    is_photo = item is not None and caption is None
    usual: Target = "captions" if is_photo else "images"
    target: Target = next((known for known in targets if known == words.get("find")), usual)
    return Query(
        text="" if item is not None else words.get("q", "")[:MOST_LETTERS].strip(),
        item=item,
        of=0 if item is None else _whole(words.get("of")) or 0,
        caption=None if item is None or caption is None else caption - 1,
        target=target if target in targets else targets[0],
        split=split if split in splits else EVERYWHERE,
        k=bounded(_whole(words.get("k"))),
    )


def bounded(k: object) -> int:
    """A number of results within bounds; what is none is the usual number."""
    if not isinstance(k, int | float) or math.isnan(k):
        return USUAL
    return int(min(max(k, FEW), MOST))


def _whole(word: str | None) -> int | None:
    return int(word) if word is not None and word.isascii() and word.isdigit() and len(word) < 10 else None
