"""The items of a saved index: a photo with its captions, either of which may be absent; as Parquet on disk."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int

from xmodal.errors import DataError
from xmodal.search.manifest import Target

_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image_number", pa.int64()),  # of its vector in images.faiss; null without a photo
        pa.field("file", pa.string()),  # below the root of the index
        pa.field("captions", pa.list_(pa.string())),
        pa.field("caption_numbers", pa.list_(pa.int64())),  # of their vectors in captions.faiss
        pa.field("split", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Item:
    """A photo with its captions.

    Attributes:
        id: what the data set calls it.
        file: of the photo, below the root of the index; None where there is none.
        image_number: of its vector; None where photos are not in the index.
        captions, caption_numbers: all of them, in order; the numbers are of the vectors (none where captions are not
            in the index).
        split: ``train``, ``val``, ``test`` or what else the data set calls it; ``own`` for items of no data set.
    """

    id: str
    file: str | None
    image_number: int | None
    captions: tuple[str, ...]
    caption_numbers: tuple[int, ...]
    split: str


class Strings:
    """Many strings in little memory, each read in well under a microsecond, from several threads."""

    def __init__(self, values: pa.ChunkedArray | pa.Array) -> None:
        array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        array = array.cast(pa.large_string())
        _, offsets, data = array.buffers()
        self._data = memoryview(data) if data is not None else memoryview(b"")
        self._ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1].data
        self._valid = None if array.null_count == 0 else np.asarray(array.is_valid())

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> str | None:
        if self._valid is not None and not self._valid[row]:
            return None
        return str(self._data[self._ends[row] : self._ends[row + 1]], "utf-8")


class IndexedItems:
    """N items and the numbers of their vectors; never changed, so that threads may share it.

    Raises:
        DataError: a table with other columns, or one that contradicts itself.
    """

    def __init__(self, table: pa.Table) -> None:
        if missing := [name for name in _SCHEMA.names if name not in table.column_names]:
            raise DataError(f"The table of items lacks {', '.join(missing)}. Build the index again.")
        self.table = table.select(_SCHEMA.names).cast(_SCHEMA).combine_chunks()
        self._ids, self._files, self._splits = (Strings(self.table[name]) for name in ("id", "file", "split"))
        captions, numbers = self._flat("captions"), self._flat("caption_numbers")
        self._captions, self._caption_numbers = Strings(captions), np.asarray(numbers, dtype=np.int64)
        lengths = pc.list_value_length(self.table["captions"]).fill_null(0).to_numpy()
        self._first_caption = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        if len(self._caption_numbers) not in (0, len(self._captions)):
            raise DataError("The table of items is damaged: captions without numbers. Build the index again.")

    @classmethod
    def of(cls, items: Sequence[Item]) -> "IndexedItems":
        columns = {
            "id": [item.id for item in items],
            "image_number": [item.image_number for item in items],
            "file": [item.file for item in items],
            "captions": [list(item.captions) for item in items],
            "caption_numbers": [list(item.caption_numbers) for item in items],
            "split": [item.split for item in items],
        }
        return cls(pa.table(columns, schema=_SCHEMA))

    @classmethod
    def read(cls, path: Path) -> "IndexedItems":
        try:
            return cls(pq.read_table(path))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{path} can't be read ({error}). Build the index again.") from error

    def write(self, path: Path) -> None:
        pq.write_table(self.table, path, compression="zstd")

    def __len__(self) -> int:
        return len(self._ids)

    @cached_property
    def ids(self) -> list[str]:
        """All ids, in the order of the table."""
        found: list[str] = self.table["id"].to_pylist()
        return found

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that items are of, in the order of the table."""
        return tuple(pc.unique(self.table["split"]).to_pylist())

    def item(self, item_id: str) -> Item:
        """The item of an id; raises KeyError."""
        return self.at(self._row_of[item_id])

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._row_of

    def at(self, row: int) -> Item:
        """The item in a row of the table."""
        number = self.table["image_number"][row].as_py()
        numbers = self.numbers_of_captions(row)
        return Item(self.id_at(row), self.file_at(row), number, self.captions_at(row), numbers, self.split_at(row))

    def id_at(self, row: int) -> str:
        return self._ids[row] or ""

    def file_at(self, row: int) -> str | None:
        return self._files[row]

    def split_at(self, row: int) -> str:
        return self._splits[row] or ""

    def captions_at(self, row: int) -> tuple[str, ...]:
        first, last = self._first_caption[row : row + 2].tolist()
        return tuple(self._captions[place] or "" for place in range(first, last))

    def numbers_of_captions(self, row: int) -> tuple[int, ...]:
        first, last = self._first_caption[row], self._first_caption[row + 1]
        return tuple(self._caption_numbers[first:last].tolist())

    def caption(self, number: int) -> str:
        """The caption of a vector."""
        return self._captions[int(self._place_of_caption[number])] or ""

    def row(self, target: Target, number: int) -> int:
        """The row of the item that a vector belongs to."""
        if target == "images":
            return int(self._row_of_image[number])
        return int(self._row_of_caption[number])

    def ids_of(self, target: Target, numbers: Sequence[int]) -> list[str]:
        """The id of the item of each vector."""
        ids = self.ids  # as objects that are there: in a large table, every place that is looked at costs time
        if target == "images" and self._are_rows_numbers:
            return [ids[number] for number in numbers]
        rows = (self._row_of_image if target == "images" else self._row_of_caption).data
        return [ids[rows[number]] for number in numbers]

    def numbers(self, target: Target, split: str | None = None) -> Int[np.ndarray, "n"]:
        """Numbers of all vectors of a side, or of those of a split, in ascending order."""
        rows = (
            np.arange(len(self)) if split is None else np.flatnonzero(np.asarray(pc.equal(self.table["split"], split)))
        )
        if target == "images":
            numbers = self._image_numbers[rows]
            return np.sort(numbers[numbers >= 0])
        if not len(self._caption_numbers):
            return np.zeros(0, dtype=np.int64)
        return np.sort(self._caption_numbers[np.isin(self._row_of_place, rows)])

    def with_caption(self, text: str) -> list[str]:
        """Ids of the items that have this very caption, but for case and spaces."""
        return [self.id_at(row) for row in self._rows_with.get(folded(text), ())]

    def joined(self, others: "IndexedItems") -> "IndexedItems":
        """These items, then those."""
        return IndexedItems(pa.concat_tables([self.table, others.table]))

    def moved(self, old_root: Path, new_root: Path) -> "IndexedItems":
        """The same items, their files seen from another folder above them."""
        if old_root == new_root:
            return self
        between = os.path.relpath(old_root, new_root)
        files = [None if file is None else os.path.join(between, file) for file in self.table["file"].to_pylist()]
        place = self.table.column_names.index("file")
        return IndexedItems(self.table.set_column(place, _SCHEMA.field("file"), pa.array(files, pa.string())))

    def without(self, ids: Sequence[str]) -> "IndexedItems":
        gone = np.isin(np.arange(len(self)), [self._row_of[one] for one in ids])
        return IndexedItems(self.table.filter(pa.array(~gone)))

    def _flat(self, name: str) -> pa.Array:
        column = self.table[name]
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if isinstance(array, pa.ChunkedArray):
            array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], type=column.type)
        return array.flatten()

    @cached_property
    def _image_numbers(self) -> Int[np.ndarray, "N"]:
        return self.table["image_number"].fill_null(-1).to_numpy().astype(np.int64)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {one: row for row, one in enumerate(self.ids)}

    @cached_property
    def _row_of_image(self) -> Int[np.ndarray, "numbers"]:
        return _places(self._image_numbers)

    @cached_property
    def _are_rows_numbers(self) -> bool:
        """Whether every item has the photo of its own row's number, as long as none was removed."""
        return bool((self._image_numbers == np.arange(len(self))).all())

    @cached_property
    def _place_of_caption(self) -> Int[np.ndarray, "numbers"]:
        return _places(self._caption_numbers)

    @cached_property
    def _row_of_place(self) -> Int[np.ndarray, "M"]:
        return np.repeat(np.arange(len(self)), np.diff(self._first_caption))

    @cached_property
    def _row_of_caption(self) -> Int[np.ndarray, "numbers"]:
        places = self._place_of_caption
        return np.where(places < 0, -1, self._row_of_place[places]) if len(self._row_of_place) else places

    @cached_property
    def _rows_with(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for place, row in enumerate(self._row_of_place.tolist()):
            known = rows.setdefault(folded(self._captions[place] or ""), [])
            if row not in known:
                known.append(row)
        return rows


def _places(numbers: Int[np.ndarray, "n"]) -> Int[np.ndarray, "most"]:
    """Where each number stands; −1 for one that does not occur."""
    places = np.full(int(numbers.max(initial=-1)) + 1, -1, dtype=np.int64)
    there = numbers >= 0
    places[numbers[there]] = np.flatnonzero(there)
    return places


def folded(text: str) -> str:
    """But for case and spaces."""
    return " ".join(text.casefold().split())
