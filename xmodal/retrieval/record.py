"""The file an evaluation leaves behind: rank and values of every query, for tests and comparisons made later."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from xmodal.atomic import complete_file
from xmodal.errors import DataError
from xmodal.retrieval.ids import as_keys
from xmodal.retrieval.metrics import Queries

_FORMAT = "xmodal evaluation"
_VERSION = 1
_HEADER = "header"
# What numpy.load raises for a file that is cut short, encrypted, or no archive at all.
UNREADABLE = (OSError, ValueError, EOFError, BadZipFile, zlib.error, NotImplementedError, RuntimeError)
_KINDS = {"ranks": "i", "groups": "iU", "folds": "i", "values": "f"}
_WHAT_TO_DO = "Name a file evaluation_*.npz of a run folder; `xmodal evaluate RUN` writes it."


@dataclass(frozen=True)
class EvaluationRecord:
    """The queries of one evaluation and what it was an evaluation of.

    Attributes:
        name: the evaluation, such as ``test`` or ``test_folds5``; figures are called ``<name>/i2t_R1`` ….
        data_name: the data set.
        similarity: ``cosine``, ``dot`` or ``euclidean``.
        queries: of every direction; their groups are the image ids that the data set gave, integers or strings.
        content: digest of the images and captions that were evaluated; None where they are not known, as of a file of
            embeddings. Where it differs, the queries are others, whatever their ids.
    """

    name: str
    data_name: str
    similarity: str
    queries: dict[str, Queries]
    content: str | None = None


def write_record(path: Path, record: EvaluationRecord) -> None:
    """Write a compressed ``.npz`` without pickled objects, visible only when it is complete.

    It holds a JSON ``header`` and the arrays ``i2t.ranks``, ``i2t.groups``, ``i2t.folds``, ``i2t.values.R1`` …; values
    keep their float64, so that figures come out the same to the last digit.

    Raises:
        DataError: groups that are neither integers nor strings.
        OSError: the folder is absent or full; the file that was there before stays as it was.
    """
    with complete_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **_as_arrays(record))


def read_record(path: Path) -> EvaluationRecord:
    """Read what ``write_record`` wrote; equal to what was written.

    Raises:
        DataError: the file is absent, damaged, of a later format, or something else; nothing in it is executed.
    """
    if not path.is_file():
        raise DataError(
            f"{path}: there is no such file. `xmodal evaluate RUN` leaves an evaluation in the run's folder."
        )
    arrays = _arrays_in(path)
    header = _header(path, arrays)
    try:
        if not header["directions"]:
            raise ValueError("it has no directions")
        queries = {way: _queries(arrays, way, names) for way, names in header["directions"].items()}
        content = header.get("content")  # which earlier versions did not write
        name, data, similarity = (str(header[key]) for key in ("name", "data", "similarity"))
        return EvaluationRecord(name, data, similarity, queries, None if content is None else str(content))
    except (KeyError, ValueError, AttributeError, TypeError) as fault:
        raise _damaged(path, fault) from fault


def _as_arrays(record: EvaluationRecord) -> dict[str, Any]:
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "name": record.name,
        "data": record.data_name,
        "similarity": record.similarity,
        "content": record.content,
        "directions": {way: list(side.values) for way, side in record.queries.items()},
    }
    arrays: dict[str, Any] = {_HEADER: np.array(json.dumps(header))}
    for way, side in record.queries.items():
        groups = as_keys(side.groups, "image_ids", len(side.groups))  # objects would be pickled
        arrays |= {f"{way}.ranks": side.ranks, f"{way}.groups": groups, f"{way}.folds": side.folds}
        arrays |= {f"{way}.values.{name}": values for name, values in side.values.items()}
    return arrays


def _arrays_in(path: Path) -> dict[str, np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise DataError(f"{path} holds a single array, not an evaluation. {_WHAT_TO_DO}")
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except UNREADABLE as fault:
        raise _damaged(path, fault) from fault


def _header(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    try:
        header = json.loads(str(arrays[_HEADER]))
        is_ours = header["format"] == _FORMAT and isinstance(header["version"], int)
    except (KeyError, ValueError, TypeError):
        is_ours = False
    if not is_ours:
        found = ", ".join(sorted(arrays)[:5]) or "nothing"
        raise DataError(f"{path} is no evaluation of xmodal: it holds {found}. {_WHAT_TO_DO}")
    if header["version"] != _VERSION:
        raise DataError(
            f"{path} is an evaluation in format {header['version']}, and this version of xmodal reads format "
            f"{_VERSION}: evaluate again with this version, or read it with the one that wrote it"
        )
    return header


def _queries(arrays: Mapping[str, np.ndarray], way: str, names: list[str]) -> Queries:
    ranks, groups, folds = (_column(arrays, way, name) for name in ("ranks", "groups", "folds"))
    values = {name: _column(arrays, way, f"values.{name}") for name in names}
    if len({len(column) for column in (ranks, groups, folds, *values.values())}) > 1:
        raise ValueError(f"the arrays of {way} differ in length")
    return Queries(ranks, values, groups, folds)


def _column(arrays: Mapping[str, np.ndarray], way: str, name: str) -> np.ndarray:
    column = arrays[f"{way}.{name}"]
    if column.ndim != 1 or column.dtype.kind not in _KINDS[name.split(".")[0]]:
        raise ValueError(f"{way}.{name} is {column.dtype} {column.shape}")
    return column


def _damaged(path: Path, fault: Exception) -> DataError:
    return DataError(
        f"{path} can't be read as an evaluation ({type(fault).__name__}: {fault}): it is damaged, or something else. "
        "`xmodal evaluate RUN` writes it again."
    )
