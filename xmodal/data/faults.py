"""Everything that is wrong with a data set, in one message."""

from collections import defaultdict

from xmodal.errors import DataError

SHOWN = 5


class Faults:
    """Collects faults by kind while a source is read, so that a user sees all of them at once."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._places: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, place: str) -> None:
        """Note one more ``place`` (file, row, id) where the fault ``kind`` was found."""
        self._places[kind].append(place)

    def raise_if_any(self) -> None:
        """Raise one DataError with a line per kind: the fault, its count, the first places."""
        if self._places:
            lines = [f"  - {kind}: {name_some(places)}" for kind, places in self._places.items()]
            raise DataError("\n".join([f"{self.source} can't be used:", *lines]))


def name_some(places: list[str]) -> str:
    """The count and the first few of ``places``: ``"7 found: a, b, c, d, e, … (2 more)"``."""
    more = f", … ({len(places) - SHOWN} more)" if len(places) > SHOWN else ""
    return f"{len(places)} found: {', '.join(places[:SHOWN])}{more}"
