"""Embeddings that somebody else made, from an ``.npz``: read and checked before anything is computed."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from torch import Tensor

from xmodal.config.evaluation import EvaluationOptions
from xmodal.config.suggestions import close, did_you_mean, phrase
from xmodal.errors import ConfigError, DataError, FeatureError
from xmodal.experiment.embedded import Embedded, counted
from xmodal.retrieval.record import UNREADABLE
from xmodal.retrieval.similarity import as_tensor, count_zero_rows

log = logging.getLogger(__name__)

_BANKS = ("bank_images", "bank_texts")
VECTORS = ("image_embeddings", "text_embeddings", *_BANKS)
COLUMNS = {  # entries per vector of which array
    "image_ids": "image_embeddings",
    "text_image_ids": "text_embeddings",
    "image_labels": "image_embeddings",
    "text_labels": "text_embeddings",
}
_NEEDED = ("image_embeddings", "text_embeddings", "image_ids", "text_image_ids")
_WHAT_TO_DO = (
    "Write it with numpy.savez(file, image_embeddings=…, text_embeddings=…, image_ids=…, text_image_ids=…) "
    "and, where there are any, image_labels, text_labels, bank_images, bank_texts."
)
_SINGLE_ARRAY = b"\x93NUMPY"  # what an .npy begins with
_LIKE_A_SLIP = 0.8  # difflib's ratio from which an unknown name is taken for a known one mistyped


def read_embeddings(path: Path, options: EvaluationOptions, device: torch.device) -> Embedded:
    """The two sides in an ``.npz`` with the arrays ``image_embeddings`` (N, E), ``text_embeddings`` (M, E),
    ``image_ids`` (N,) and ``text_image_ids`` (M,); perhaps ``image_labels`` (N,), ``text_labels`` (M,), ``bank_images``
    (A, E), ``bank_texts`` (B, E). Nothing in the file is executed.

    Raises:
        ConfigError: the number of folds does not divide that of the images.
        DataError: no such file, no ``.npz``, an array that is missing, mistyped, or of another shape or kind.
        FeatureError: vectors of different widths, or with NaN or infinity.
    """
    arrays = _arrays_in(path)
    _require(path, arrays, options)
    vectors = {name: _as_vectors(path, name, arrays[name]) for name in VECTORS if name in arrays}
    _require_one_width(path, vectors)
    columns = {
        name: _as_column(path, name, arrays[name], vectors[of]) for name, of in COLUMNS.items() if name in arrays
    }
    usual = "class" if "image_labels" in columns else "instance"
    labels = columns if (options.relevance or usual) == "class" else {}
    banks = _banks(vectors, options, device) if options.rerank else {}
    name = options.name(options.split or "test", usual)
    images, texts = vectors["image_embeddings"], vectors["text_embeddings"]
    if fault := options.folds_fault(len(images)):
        raise ConfigError(fault)
    return Embedded(
        name=name,
        data_name="embeddings",
        description=f"{path}: {counted(len(images), len(texts))}, {images.shape[1]} wide",
        similarity=options.similarity or "cosine",
        record=_record(path, name),
        image=images.to(device),
        text=texts.to(device),
        image_ids=columns["image_ids"],
        text_image_ids=columns["text_image_ids"],
        image_labels=labels.get("image_labels"),
        text_labels=labels.get("text_labels"),
        **banks,
    )


def _record(path: Path, name: str) -> Path:
    """In the current folder, since folders of data are only read; the name says which folder the file is from."""
    folder = path.resolve().parent
    origin = "" if folder == Path.cwd() else f"{folder.name}."
    return Path.cwd() / f"{origin}{path.stem}.evaluation_{name}.npz"


def _arrays_in(path: Path) -> dict[str, np.ndarray]:
    _require_archive(path)
    known = (*VECTORS, *COLUMNS)
    try:
        with np.load(path, allow_pickle=False) as loaded:
            found = {name: _array(path, name, loaded) for name in known if name in loaded.files}
            strange = [name for name in loaded.files if name not in known]
    except UNREADABLE as fault:
        raise DataError(f"{path} can't be read as an .npz ({type(fault).__name__}: {fault}). {_WHAT_TO_DO}") from fault
    if absent := [name for name in _NEEDED if name not in found]:
        holds = ", ".join([*found, *strange]) or "nothing"
        hints = "".join(did_you_mean(name, strange) for name in absent[:1])
        raise DataError(f"{path} lacks {', '.join(absent)}; it holds {holds}.{hints} {_WHAT_TO_DO}")
    _require_no_slip(path, strange, [name for name in known if name not in found])
    return found


def _require_archive(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a folder; name the file of embeddings in it. {_WHAT_TO_DO}")
    if not path.is_file():
        raise DataError(f"There is no file {path}. {_WHAT_TO_DO}")
    with path.open("rb") as file:
        is_single = file.read(len(_SINGLE_ARRAY)) == _SINGLE_ARRAY
    if is_single:
        raise DataError(f"{path} holds a single array, expected several by name (.npz). {_WHAT_TO_DO}")
    if not is_zipfile(path):
        raise DataError(f"{path} can't be read as an .npz: it is another kind of file, or cut short. {_WHAT_TO_DO}")


def _require_no_slip(path: Path, strange: Sequence[str], absent: Sequence[str]) -> None:
    """An array that is not known is left out, and said to be; unless its name looks like that of one that is."""
    for name in strange:
        if meant := close(name, absent, _LIKE_A_SLIP):
            raise DataError(
                f"{path}: there is no use for an array '{name}'.{phrase(meant)} Rename it, or leave it out. "
                f"{_WHAT_TO_DO}"
            )
    if strange:
        could_be = f" What could be there too: {', '.join(absent)}." if absent else ""
        log.info("%s also holds %s, of which no use is made.%s", path, ", ".join(strange), could_be)


def _array(path: Path, name: str, loaded: Mapping[str, np.ndarray]) -> np.ndarray:
    try:
        return loaded[name]
    except ValueError as fault:
        reason = "it holds Python objects, whose reading could run code" if "pickle" in str(fault) else str(fault)
        raise DataError(
            f"{path}: {name} can't be read ({reason}). Save numbers, or strings as numpy.array(strings, dtype=str)."
        ) from fault


def _require(path: Path, arrays: Mapping[str, np.ndarray], options: EvaluationOptions) -> None:
    """What the options need beyond the four arrays."""
    needs: dict[str, tuple[str, ...]] = {}
    if options.rerank:
        needs[f"--rerank {options.rerank} takes a bank of training queries"] = _BANKS
    if options.relevance == "class":
        needs["--relevance class goes by classes"] = ("image_labels",)
    elif "text_labels" in arrays:
        needs["text_labels are classes, which both sides need"] = ("image_labels",)
    for why, names in needs.items():
        if absent := [name for name in names if name not in arrays]:
            raise DataError(f"{why}, but {path} lacks {' and '.join(absent)}; it holds {', '.join(arrays)}.")


def _as_vectors(path: Path, name: str, array: np.ndarray) -> Tensor:
    """Real numbers of at least 32 bits, (count, width)."""
    if array.dtype.kind not in "fiu" or array.ndim != 2 or 0 in array.shape:
        raise DataError(f"{path}: {name} must be numbers of shape (count, width), found {array.dtype} {array.shape}.")
    wide = array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
    vectors = as_tensor(wide)
    count_zero_rows(vectors, f"{path}: {name}")  # raises FeatureError where one is not finite
    return vectors


def _require_one_width(path: Path, vectors: Mapping[str, Tensor]) -> None:
    if len({one.shape[1] for one in vectors.values()}) > 1:
        found = ", ".join(f"{name} {tuple(one.shape)}" for name, one in vectors.items())
        raise FeatureError(f"{path}: all vectors must have the same width, found {found}.")


def _as_column(path: Path, name: str, array: np.ndarray, vectors: Tensor) -> np.ndarray:
    """Integers or strings, one per vector."""
    if array.dtype.kind not in "iuU" or array.shape != (len(vectors),):
        raise DataError(
            f"{path}: {name} must be integers or strings, one per row of {COLUMNS[name]}, shape ({len(vectors)},); "
            f"found {array.dtype} {array.shape}."
        )
    return array


def _banks(vectors: Mapping[str, Tensor], options: EvaluationOptions, device: torch.device) -> dict[str, Any]:
    draw = np.random.default_rng(options.seed)
    chosen = {side: vectors[side][bank_rows(len(vectors[side]), options.bank_size, draw)] for side in _BANKS}
    return {side: bank.to(device) for side, bank in chosen.items()}


def bank_rows(count: int, size: int | None, draw: np.random.Generator) -> np.ndarray:
    """``size`` of ``count`` rows drawn without repetition, ascending; all of them where ``size`` is None or larger."""
    if size is None or size >= count:
        return np.arange(count)
    return np.sort(draw.choice(count, size, replace=False))
