"""The item that a query is: of one index, and what it is to another that may call something else by the same id."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xmodal.demo.collection import Collection
from xmodal.demo.query import Query
from xmodal.search.items_table import Item


@dataclass(frozen=True)
class Origin:
    """An item, whose photo or caption a query is, and the index in this place of the page that it is of."""

    place: int
    collection: Collection
    item: Item

    @property
    def photo(self) -> Path | None:
        """Its photo; None where it is not on this disk."""
        path = self.collection.photo(self.item)
        return path if path is not None and path.is_file() else None

    def caption(self, place: int) -> str | None:
        """The caption in this place; None where it has fewer."""
        return self.item.captions[place] if 0 <= place < len(self.item.captions) else None

    def within(self, other: Collection) -> Item | None:
        """The same item in an index; None where that has it not, or calls another thing by its id.

        Ids alone tell nothing: data sets are numbered, and photos of all folders may be called ``a.jpg``. It is the
        same where the data sets have one name and the items the same captions, and one file or files of one name.
        """
        if other is self.collection:
            return self.item
        twin = other.item(self.item.id)
        if twin is None or (other.data_name, twin.captions) != (self.collection.data_name, self.item.captions):
            return None
        file = self.collection.photo(self.item)
        is_one_file = file is not None and file == other.photo(twin)
        is_same = is_one_file or (bool(twin.captions) and twin.file == self.item.file)
        return twin if is_same else None


def origin_of(collections: Sequence[Collection], query: Query) -> Origin | None:
    """Where the item of a query is; None where it is none, or not here.

    An address that says no index means the first that has the item.
    """
    if query.item is None:
        return None
    places = range(len(collections)) if query.of == 0 else [query.of]
    for place in places:
        item = collections[place].item(query.item) if place < len(collections) else None
        if item is not None:
            return Origin(place, collections[place], item)
    return None
