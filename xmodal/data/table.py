"""Data sets of one's own: a CSV, TSV or JSONL file with a row for each caption."""

import csv
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from xmodal.data.faults import Faults
from xmodal.data.items import Caption, ImageItem, Items
from xmodal.errors import ConfigError, DataError
from xmodal.tokens import tokenize

REQUIRED = ("image", "caption")
DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
Row = tuple[int, dict[str, Any]]  # number of the line in the file, value by name of the column
log = logging.getLogger(__name__)

CHOICES = {"on_empty_caption": ("error", "drop")}


class TableData:
    """Rows of ``image,caption[,split][,label]``; several rows with the same image are its captions.

    ``image`` is a path, absolute or below ``root``, and becomes the image id. Without a column ``split`` the image's
    name decides, so that an image stays in its split whatever else the table holds:
    ``h = SHA-256(image) / 2²⁵⁶ < test_fraction`` → test, ``h < test_fraction + val_fraction`` → val, else train.

    Args:
        name: what reports and feature files call the data set.
        root: folder of the photos; None is the folder of ``file``.
        file: the table, ``.csv``, ``.tsv`` or ``.jsonl``, in UTF-8; relative paths are tried below ``root`` first.
        val_fraction: share of the images for validation where there is no column ``split``; ``test_fraction`` alike.
        on_empty_caption: ``error``, or ``drop`` a row whose caption has not a single word (the count is logged).
    """

    def __init__(
        self,
        name: str,
        root: str | Path | None = None,
        file: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        on_empty_caption: str = "error",
    ) -> None:
        self.name = name
        self.root = None if root is None else Path(root)
        self.file = file
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.on_empty_caption = on_empty_caption
        if faults := self._range_faults():
            raise ConfigError(faults)

    def _range_faults(self) -> list[str]:
        shares = {"val_fraction": self.val_fraction, "test_fraction": self.test_fraction}
        faults = [
            f"data.{key} must lie in [0, 1), found {share}." for key, share in shares.items() if not 0 <= share < 1
        ]
        if not faults and sum(shares.values()) >= 1:
            faults.append(
                f"data.val_fraction + data.test_fraction must be below 1 to leave training images, "
                f"found {self.val_fraction} + {self.test_fraction}."
            )
        if self.on_empty_caption not in CHOICES["on_empty_caption"]:
            faults.append(f"data.on_empty_caption must be one of error, drop, found {self.on_empty_caption!r}.")
        return faults

    @property
    def table_path(self) -> Path:
        """The table: below ``root`` if it is there, else as typed."""
        typed = Path(self.file or "")
        below = typed if self.root is None else self.root / typed
        return below if below.is_file() else typed

    def missing(self) -> list[str]:
        """Sentences about what has to be there before loading and isn't; empty where all is well."""
        if self.file is None:
            return ["data=table needs a table with the columns image,caption: set data.file=/path/to/captions.csv."]
        if not self.table_path.is_file():
            below = "" if self.root is None else f" nor below data.root={self.root}"
            return [
                f"The table data.file={self.file} exists neither as typed{below}. Set data.file=/path/to/captions.csv."
            ]
        known = (*DELIMITERS, *JSON_LINES)
        if self.table_path.suffix.lower() not in known:
            return [
                f"The table data.file={self.file} must end in one of {', '.join(known)}, so that its form is known."
            ]
        return []

    def load(self) -> Items:
        """Read and check everything; raises one DataError that lists all faults with their row numbers."""
        if absent := self.missing():
            raise DataError("\n".join(absent))
        path = self.table_path
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                return self._read(path, _rows(path, file))
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not in UTF-8 ({error}). Save it as UTF-8 and start again.") from error
        except csv.Error as error:
            raise DataError(f"{path} is no readable table ({error}).") from error

    def split_of(self, image: str) -> str:
        """The split that an image's name decides."""
        share = int.from_bytes(hashlib.sha256(image.encode()).digest()) / 2**256
        if share < self.test_fraction:
            return "test"
        return "val" if share < self.test_fraction + self.val_fraction else "train"

    def _read(self, path: Path, rows: Iterator[Row]) -> Items:
        reading = _Reading(self, path)
        for line, row in rows:
            reading.add(line, row)
        return reading.items()


class _Reading:
    """One pass over the rows: what was read so far, and what was wrong with it."""

    def __init__(self, source: TableData, path: Path) -> None:
        self.source = source
        self.path = path
        self.folder = source.root or path.parent
        self.faults = Faults(str(path))
        self.images: list[ImageItem] = []
        self.row_of: dict[str, int] = {}
        self.first_line: dict[str, int] = {}
        self.captions: list[Caption] = []
        self.rows = 0
        self.dropped: list[int] = []

    def add(self, line: int, row: dict[str, Any]) -> None:
        position, self.rows = self.rows, self.rows + 1
        image, caption = row.get("image"), row.get("caption")
        if None in row:
            self.faults.add("Rows with more cells than there are columns (a comma without quotes?)", f"row {line}")
        if not isinstance(image, str) or not image.strip():
            self.faults.add("Rows without an image", f"row {line}")
            return
        if not isinstance(caption, str) or not tokenize(caption):
            self._empty_caption(line)
            return
        self.captions.append(Caption(position, self._image_row(line, image.strip(), row), " ".join(caption.split())))

    def _empty_caption(self, line: int) -> None:
        if self.source.on_empty_caption == "drop":
            self.dropped.append(line)
        else:
            kind = "Rows whose caption has not a single word (data.on_empty_caption=drop leaves them out)"
            self.faults.add(kind, f"row {line}")

    def _image_row(self, line: int, image: str, row: dict[str, Any]) -> int:
        item = ImageItem(image, self._split(line, image, row), self.folder / image, self._label(line, row))
        if image in self.row_of:
            self._compare(line, self.images[self.row_of[image]], item)
            return self.row_of[image]
        self.row_of[image], self.first_line[image] = len(self.images), line
        self.images.append(item)
        return self.row_of[image]

    def _split(self, line: int, image: str, row: dict[str, Any]) -> str:
        if "split" not in row:
            return self.source.split_of(image)
        split = row["split"]
        if isinstance(split, str) and split.strip():
            return split.strip()
        self.faults.add("Rows with an empty split (leave the column out to have images split by name)", f"row {line}")
        return "train"

    def _label(self, line: int, row: dict[str, Any]) -> int | str | None:
        label = row.get("label")
        if isinstance(label, str):
            return label.strip() or None
        if label is None or (isinstance(label, int) and not isinstance(label, bool)):
            return label
        self.faults.add("Labels that are neither a whole number nor a text", f"{label!r} in row {line}")
        return None

    def _compare(self, line: int, first: ImageItem, item: ImageItem) -> None:
        where = f"{item.image_id} in rows {self.first_line[str(item.image_id)]} and {line}"
        if first.split != item.split:
            self.faults.add("Images in two splits", f"{where} ({first.split}, {item.split})")
        if first.label != item.label:
            self.faults.add("Images with two labels", f"{where} ({first.label}, {item.label})")

    def items(self) -> Items:
        self.faults.raise_if_any()
        if not self.captions:
            raise DataError(f"{self.path} has no captions: no rows below the names of the columns.")
        if self.dropped:
            log.warning("%s: dropped %d rows whose caption has no word.", self.source.name, len(self.dropped))
        return Items(self.source.name, tuple(self.images), tuple(self.captions))


def _rows(path: Path, file: TextIO) -> Iterator[Row]:
    if path.suffix.lower() in JSON_LINES:
        return _json_rows(path, file)
    return _delimited_rows(path, file, DELIMITERS[path.suffix.lower()])


def _delimited_rows(path: Path, file: TextIO, delimiter: str) -> Iterator[Row]:
    reader = csv.DictReader(file, delimiter=delimiter)
    reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
    _require_columns(path, reader.fieldnames)
    for row in reader:
        yield reader.line_num, row


def _json_rows(path: Path, file: TextIO) -> Iterator[Row]:
    faults = Faults(str(path))
    columns: tuple[str, ...] | None = None
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        row = _json_object(text)
        if row is None:
            faults.add("Lines that are no JSON object", f"row {line}")
            continue
        if columns is None:
            columns = tuple(row)
            _require_columns(path, columns)
        # a key that the first row has is a column: where it is absent, the cell is empty
        yield line, {**dict.fromkeys(columns), **row}
    faults.raise_if_any()


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        row = json.loads(text)
    except ValueError:
        return None
    return {key.strip().lower(): value for key, value in row.items()} if isinstance(row, dict) else None


def _require_columns(path: Path, columns: Iterable[str]) -> None:
    found = list(columns)
    absent = [name for name in REQUIRED if name not in found]
    if absent:
        raise DataError(
            f"{path} lacks the column{'s' if len(absent) > 1 else ''} {', '.join(absent)}; found: "
            f"{', '.join(found) or 'nothing'}. Expected: image,caption[,split][,label], named in the first line "
            "(in JSONL: the keys of each object)."
        )
