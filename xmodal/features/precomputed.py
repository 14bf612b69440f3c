"""Features that somebody else computed, put in the order of a data set."""

import logging
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from xmodal.data.items import Items
from xmodal.errors import ConfigError, FeatureError
from xmodal.features.array_files import SUFFIXES, is_store_file, names_in, read_array
from xmodal.features.object_arrays import Nested
from xmodal.features.store import FeatureFile, FeatureOrigin
from xmodal.types import RaggedFeatures

log = logging.getLogger(__name__)

MODALITIES = ("image", "text")
_BLOCK = 65_536  # vectors that are looked at together in the search for NaN


class PrecomputedFeatures:
    """A file of features and how its rows belong to images or captions.

    Column (``.mat``, D × N) or row (everything else, N × D) i belongs to the image with id i where the ids of the data
    set are 0 … N − 1, else to its i-th image. Text ``[i][j]`` is caption j of that image, a set of W vectors; a matrix
    of text features has one row per caption, in the data set's order. A file of xmodal's own store goes by its ids.

    Args:
        modality: ``image`` or ``text``.
        path: the file (``.mat``, ``.npy``, ``.npz``, ``.h5``).
        key: name of the array in the file (``.npy`` needs none), or several names whose rows (one per item) are joined.
        made_by: name of the encoder configuration that made the file, with which new items can be encoded.

    Raises:
        ConfigError: an unknown modality, or no key.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        key: str | Sequence[str] = "feats",
        made_by: str | None = None,
        modality: str = "image",
    ) -> None:
        if modality not in MODALITIES:
            raise ConfigError(f"modality of precomputed features must be one of image, text; found {modality!r}.")
        if not key:
            raise ConfigError(f"{modality}_encoder.key must name at least one array of the file, found {key!r}.")
        self.modality = modality
        self.path = None if path is None else Path(path).expanduser()
        self.key = key if isinstance(key, str) else list(key)
        self.made_by = made_by

    @property
    def keys(self) -> list[str]:
        """The names of the arrays to read."""
        return [self.key] if isinstance(self.key, str) else list(self.key)

    def check(self) -> list[str]:
        """What is wrong with path, kind of file or key, one sentence each; nothing but headers is read."""
        option = f"{self.modality}_encoder"
        if self.path is None:
            return [
                f"{option}=precomputed reads features from a file: say which, with {option}.path=… "
                f"(one of {', '.join(SUFFIXES)})."
            ]
        if self.path.suffix not in SUFFIXES:
            return [f"{option}.path={self.path} is no kind of file known here; expected one of {', '.join(SUFFIXES)}."]
        if not self.path.is_file():
            return [f"{option}.path={self.path} doesn't exist.{_did_you_mean(self.path.name, _siblings(self.path))}"]
        try:
            names = None if is_store_file(self.path) else names_in(self.path)
        except (FeatureError, OSError) as error:
            return [f"{option}.path: {error}"]
        return [
            f"{option}.key={key}: {self.path} holds no array of that name; it holds {', '.join(names) or 'none'}."
            f"{_did_you_mean(key, names)}"
            for key in self.keys
            if names is not None and key not in names
        ]

    def load(self, items: Items, full: Items) -> RaggedFeatures:
        """One set per image (or caption) of ``items``, in its order.

        Args:
            items: the images and captions wanted, perhaps a part of the data set.
            full: the whole data set, which the file is made for.

        Raises:
            FeatureError: the file can't be read, has another number of items, or holds NaN or infinity.
        """
        if faults := self.check():
            raise FeatureError("\n".join(faults))
        if is_store_file(self._file()):
            features = self._load_by_id(items, full)
        elif self.modality == "image":
            features = self._load_images(items, full)
        else:
            features = self._load_captions(items, full)
        self._require_finite(features, items)
        return features

    def encode_error(self) -> FeatureError:
        """The error to raise where a new item is to be encoded and ``made_by`` is not set."""
        return FeatureError(
            f"{self.path} holds features only, not the network that made them, so a new {self.modality} can't be "
            f"encoded. Name the encoder that made them: {self.modality}_encoder.made_by=<encoder>."
        )

    def _file(self) -> Path:
        if self.path is None:
            raise self.encode_error()
        return self.path

    def _load_by_id(self, items: Items, full: Items) -> RaggedFeatures:
        file = FeatureFile(self._file())
        file.verify()
        try:
            self._require_same_data(file.origin, items, full)
            row_of = {str(item): row for row, item in enumerate(file.ids)}
            wanted = self._item_ids(items)
            absent = [item for item in wanted if str(item) not in row_of]
            if absent:
                raise FeatureError(
                    f"{self.path} holds {len(row_of)} {self.modality} sets, but none for {len(absent)} of the "
                    f"{len(wanted)} of {items.name}, for example {', '.join(repr(item) for item in absent[:5])}. "
                    "Extract the features of this data set."
                )
            return _select(file.read(), np.array([row_of[str(item)] for item in wanted], dtype=np.int64))
        finally:
            file.close()

    def _require_same_data(self, origin: FeatureOrigin, items: Items, full: Items) -> None:
        """Ids alone prove nothing: most data sets count from 0, and so do captions and images."""
        if origin.modality not in ("", self.modality):
            raise FeatureError(f"{self.path} holds {origin.modality} features, expected {self.modality} features.")
        if self.modality == "text" and origin.data_fingerprint not in (
            full.caption_fingerprint(),
            items.caption_fingerprint(),
        ):
            raise FeatureError(
                f"{self.path} holds the features of other captions than those of {items.name} (their fingerprints "
                "differ). Extract the features of this data set."
            )

    def _load_images(self, items: Items, full: Items) -> RaggedFeatures:
        columns = image_columns(full)
        array = self._read(set(columns), matrix_counts=set(columns))
        if isinstance(array, list):
            sets = _join([_as_set(entry, f"image {i}", self._file()) for i, entry in enumerate(array)], self._file())
        elif array.ndim == 3:
            sets = _stacked(array)
        else:
            sets = _stacked(array[:, None, :])
        return _select(sets, columns[len(array)][full_rows(items, full)])

    def _load_captions(self, items: Items, full: Items) -> RaggedFeatures:
        by_image = image_columns(full)
        captions = len(full.captions)
        array = self._read({captions, *by_image}, matrix_counts={captions})
        rows, ordinals = full_rows(items, full)[items.caption_images], caption_ordinals(items)
        if _one_entry_per_caption(array, captions, by_image):
            sets = self._sets_of_rows(array)
            return _select(sets, _caption_positions(full, rows, ordinals))
        columns = by_image[len(array)]
        sets, first = self._sets_of_images(array, columns, full)
        return _select(sets, first[columns[rows]] + ordinals)

    def _sets_of_rows(self, array: Nested) -> RaggedFeatures:
        if isinstance(array, list):
            path = self._file()
            return _join([_as_set(entry, f"caption {k}", path) for k, entry in enumerate(array)], path)
        return _stacked(array if array.ndim == 3 else array[:, None, :])

    def _sets_of_images(self, array: Nested, columns: np.ndarray, full: Items) -> tuple[RaggedFeatures, np.ndarray]:
        """The sets of all captions in the file's order, and where each image's captions start."""
        counts = np.array([_size(entry) for entry in array], dtype=np.int64)
        self._require_caption_counts(counts, columns, full)
        first = np.cumsum(counts) - counts
        if isinstance(array, np.ndarray):
            wide = array if array.ndim == 4 else array[:, :, None, :]
            return _stacked(wide.reshape(-1, *wide.shape[2:])), first
        path = self._file()
        sets = [
            _as_set(caption, f"[{i}][{j}]", path)
            for i, captions in enumerate(array)
            for j, caption in enumerate(captions)
        ]
        return _join(sets, path), first

    def _require_caption_counts(self, counts: np.ndarray, columns: np.ndarray, full: Items) -> None:
        expected = np.bincount(full.caption_images, minlength=len(full.images))
        wrong = np.flatnonzero(counts[columns] != expected)
        if len(wrong):
            row = int(wrong[0])
            raise FeatureError(
                f"{self.path} has {counts[columns[row]]} captions for image {full.images[row].image_id!r}, but "
                f"{full.name} has {expected[row]} ({len(wrong)} images differ). The file belongs to another version of "
                "the data set."
            )

    def _read(self, counts: set[int], matrix_counts: set[int]) -> Nested:
        """The file's array, items along the first axis: one of ``counts`` many (of ``matrix_counts`` in a matrix)."""
        arrays = [read_array(self._file(), key) for key in self.keys]
        if any(isinstance(array, list) for array in arrays):
            return self._require_count([entry for array in arrays for entry in array], counts)
        numbers = [array for array in arrays if isinstance(array, np.ndarray)]
        joined = numbers[0] if len(numbers) == 1 else self._joined(numbers)
        columns_are_items = self._file().suffix == ".mat" and isinstance(self.key, str)
        if joined.ndim != 2:
            return self._require_count(joined, counts)
        documented, other = (joined.T, joined) if columns_are_items else (joined, joined.T)
        if len(documented) not in matrix_counts and len(other) in matrix_counts:
            log.warning("%s is transposed: found %s, read as %s.", self.path, joined.shape, joined.shape[::-1])
            return other
        return self._require_count(documented, matrix_counts, joined.shape)

    def _joined(self, arrays: list[np.ndarray]) -> np.ndarray:
        shapes = [array.shape for array in arrays]
        for axis in (0, 1):
            if all(len(s) == 2 and s[1 - axis] == shapes[0][1 - axis] for s in shapes):
                return np.concatenate(arrays, axis=axis)
        raise FeatureError(f"{', '.join(self.keys)} in {self.path} can't be joined: their shapes are {shapes}.")

    def _require_count(self, array: Nested, counts: set[int], shape: tuple[int, ...] | None = None) -> Nested:
        if isinstance(array, np.ndarray) and array.ndim not in ((2, 3) if self.modality == "image" else (2, 3, 4)):
            raise FeatureError(f"{self.path} has the shape {array.shape}; expected a matrix, or sets of vectors.")
        if len(array) not in counts:
            found = f"the shape {shape}" if shape else f"{len(array)} entries"
            by = "by position, or by the ids from 0" if self.modality == "image" else "by image, or by caption"
            wanted = " or ".join(str(count) for count in sorted(counts))
            raise FeatureError(
                f"{self.path} has {found}, but the data set asks for {wanted} {self.modality} entries "
                f"({by}). The file belongs to other data."
            )
        return array

    def _item_ids(self, items: Items) -> list[int | str]:
        if self.modality == "image":
            return [image.image_id for image in items.images]
        return [caption.caption_id for caption in items.captions]

    def _require_finite(self, features: RaggedFeatures, items: Items) -> None:
        blocks = range(0, len(features.values), _BLOCK)
        bad = [
            start + np.flatnonzero(~np.isfinite(features.values[start : start + _BLOCK]).all(axis=1))
            for start in blocks
        ]
        vectors = np.concatenate([np.zeros(0, np.int64), *bad])
        if not len(vectors):
            return
        rows = np.unique(np.searchsorted(features.offsets, vectors, side="right") - 1)
        ids = self._item_ids(items)
        raise FeatureError(
            f"{self.path} holds NaN or infinite values for {len(rows)} of {len(features)} "
            f"{'images' if self.modality == 'image' else 'captions'}; the first ids are "
            f"{', '.join(repr(ids[row]) for row in rows[:5])}. Compute these features again."
        )


def image_columns(full: Items) -> dict[int, np.ndarray]:
    """By number of columns that a file may have: the column of each image of the data set.

    Column i is the image with id i where ids are integers from 0; the file may then cover ids that are absent here.
    """
    count = len(full.images)
    ids = [image.image_id for image in full.images]
    if not ids or not all(isinstance(i, int) and i >= 0 for i in ids):
        return {count: np.arange(count)}
    numbers = np.array(ids, dtype=np.int64)
    last = int(numbers.max())
    return {count: np.arange(count), last + 1: numbers} if last + 1 >= count else {count: np.arange(count)}


def full_rows(items: Items, full: Items) -> np.ndarray:
    """Row in ``full`` of each image of ``items``."""
    row_of = {image.image_id: row for row, image in enumerate(full.images)}
    return np.array([row_of[image.image_id] for image in items.images], dtype=np.int64)


def caption_ordinals(items: Items) -> np.ndarray:
    """For each caption its number among the captions of its image, from 0."""
    order = np.argsort(items.caption_images, kind="stable")
    counts = np.bincount(items.caption_images, minlength=len(items.images))
    ordinals = np.empty(len(order), dtype=np.int64)
    ordinals[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ordinals


def _caption_positions(full: Items, rows: np.ndarray, ordinals: np.ndarray) -> np.ndarray:
    """Position in ``full.captions`` of caption ``ordinals[k]`` of image ``rows[k]``."""
    order = np.argsort(full.caption_images, kind="stable")
    counts = np.bincount(full.caption_images, minlength=len(full.images))
    return order[(np.cumsum(counts) - counts)[rows] + ordinals]


def _one_entry_per_caption(array: Nested, captions: int, by_image: dict[int, np.ndarray]) -> bool:
    """Whether entry k is caption k (a vector or a set), not the list of captions of image k."""
    if isinstance(array, np.ndarray):
        return array.ndim == 2 or (array.ndim == 3 and len(array) == captions and len(array) not in by_image)
    if len(array) != captions:
        return False
    return len(array) not in by_image or all(isinstance(entry, np.ndarray) and entry.ndim < 3 for entry in array)


def _size(entry: Any) -> int:
    return len(entry) if isinstance(entry, list) or (isinstance(entry, np.ndarray) and entry.ndim) else -1


def _as_set(entry: Any, place: str, path: Path) -> np.ndarray:
    """One set (n, D) from an array, from a list of vectors, or from a single vector; nothing gives n = 0."""
    try:
        array = entry if isinstance(entry, np.ndarray) else np.asarray(entry, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise FeatureError(f"{path}: {place} is no set of vectors of one width ({error}).") from error
    if array.size == 0:
        return np.zeros((0, array.shape[1] if array.ndim == 2 else 0), dtype=np.float32)
    if array.ndim == 1:
        return array[None, :]
    if array.ndim != 2:
        raise FeatureError(f"{path}: {place} has the shape {array.shape}; expected a set of vectors (n, D).")
    return array


def _join(sets: list[np.ndarray], path: Path) -> RaggedFeatures:
    """Sets end to end; all that aren't empty must have one width."""
    lengths = np.array([len(s) for s in sets], dtype=np.int64)
    widths = np.array([s.shape[1] for s in sets], dtype=np.int64)
    filled = np.flatnonzero(lengths)
    if not len(filled):
        raise FeatureError(f"{path} holds no vector at all: its {len(sets)} sets are empty.")
    width = widths[filled[0]]
    wrong = filled[widths[filled] != width]
    if len(wrong):
        raise FeatureError(
            f"{path} holds vectors of different widths: {width} in set {filled[0]}, {widths[wrong[0]]} in set "
            f"{wrong[0]} (counted through the file; {len(wrong)} sets differ from the first)."
        )
    with np.errstate(over="ignore"):  # what float32 can't hold is reported as infinite
        values = np.concatenate([sets[row] for row in filled], dtype=np.float32, casting="unsafe")
    return RaggedFeatures(values, np.concatenate([[0], np.cumsum(lengths)]))


def _stacked(array: np.ndarray) -> RaggedFeatures:
    """N sets of the same length: (N, n, D)."""
    count, length, width = array.shape
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(
            array.reshape(-1, width), dtype=np.float16 if array.dtype == np.float16 else np.float32
        )
    return RaggedFeatures(values, np.arange(count + 1) * length)


def _select(features: RaggedFeatures, rows: np.ndarray) -> RaggedFeatures:
    """``features.select(rows)``, without a copy where these are all rows in order."""
    return features if np.array_equal(rows, np.arange(len(features))) else features.select(rows)


def _siblings(path: Path) -> list[str]:
    return [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []


def _did_you_mean(name: str, choices: Sequence[str]) -> str:
    close = get_close_matches(name, choices, n=1)
    return f" Did you mean {close[0]}?" if close else ""
