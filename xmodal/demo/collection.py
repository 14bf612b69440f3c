"""An opened index, and what a page often asks of it."""

import random
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image

from xmodal.demo.query import EVERYWHERE
from xmodal.errors import XmodalError
from xmodal.search.engine import SearchEngine
from xmodal.search.items_table import Item
from xmodal.search.manifest import TARGETS, Target


class Collection:
    """An index as the page knows it: never changed, shared by all who search.

    Args:
        name: as the page calls it; None: that of the run.

    Attributes:
        targets: sides that hold something.
        splits: names of its splits.
    """

    def __init__(self, engine: SearchEngine, name: str | None = None) -> None:
        self.engine = engine
        self.items = engine.items
        self.name = engine.manifest.name if name is None else name
        self.data_name = engine.manifest.data_name
        self.splits = tuple(engine.manifest.splits)
        counts = engine.manifest.counts
        self.targets: tuple[Target, ...] = tuple(target for target in TARGETS if counts[target])
        self._numbers = lru_cache(maxsize=32)(self.items.numbers)

    def warm_up(self) -> None:
        """Make the encoders ready, which takes a moment that the first visitor need not wait."""
        for encode in (
            lambda: self.engine.encode_texts(["a photo"]),
            lambda: self.engine.encode_images([Image.new("RGB", (64, 64))]),
        ):
            with suppress(XmodalError):  # one that can't encode is told of when it is asked to
                encode()

    def numbers(self, target: Target, split: str) -> Int[np.ndarray, "n"]:
        """Numbers of the vectors that a search would look through."""
        return self._numbers(target, None if split == EVERYWHERE else split)

    def item(self, item_id: str) -> Item | None:
        return self.items.item(item_id) if item_id in self.items else None

    def place_of(self, item: Item, number: int) -> int | None:
        """The place of a caption among those of its item, from the number of its vector."""
        return item.caption_numbers.index(number) if number in item.caption_numbers else None

    def photo(self, item: Item) -> Path | None:
        """Where the photo of an item lies; None where it has none, or the index names one outside its data folder."""
        if item.file is None:
            return None
        root = Path(self.engine.root)
        path = Path(*_without_dots((root / item.file).absolute()))
        return path if path.is_relative_to(Path(*_without_dots(root.absolute()))) else None

    def has_photo(self, item: Item) -> bool:
        path = self.photo(item)
        return path is not None and path.is_file()

    def some(self, target: Target, split: str, count: int) -> list[tuple[Item, int]]:
        """A random handful of items, with the numbers of the vectors that drew them."""
        numbers = self.numbers(target, split)
        drawn = random.sample(range(len(numbers)), min(count, len(numbers)))
        chosen = [int(numbers[row]) for row in drawn]
        return [(self.items.at(self.items.row(target, number)), number) for number in chosen]


def side_by_side(engines: Sequence[SearchEngine]) -> list[Collection]:
    """Opened indexes under names that tell them apart: several of one run are called after their folders, too."""
    names = [engine.manifest.name for engine in engines]
    folders = [engine.folder.resolve() for engine in engines]
    if len({folder.name for folder in folders}) == len(folders):
        told = [folder.name for folder in folders]
    else:
        told = [str(engine.folder) for engine in engines]
    titles = [f"{name} ({word})" if names.count(name) > 1 else name for name, word in zip(names, told, strict=True)]
    return [Collection(engine, title) for engine, title in zip(engines, titles, strict=True)]


def _without_dots(path: Path) -> tuple[str, ...]:
    """Parts of an absolute path with ``..`` taken out, as text: links within the data folder are its owner's."""
    kept: list[str] = []
    for part in path.parts:
        if part != "..":
            kept.append(part)
        elif len(kept) > 1:
            kept.pop()
    return tuple(kept)
