"""Captions as codes into a table of their distinct words: a fiftieth, at most, of one vector per running word."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import h5py
import numpy as np

from xmodal.encoders.protocol import Encoder, WordTable
from xmodal.errors import FeatureError
from xmodal.features.checks import FLOAT16_MAX
from xmodal.features.disk_space import Expectation, require_space
from xmodal.features.hdf5_writing import PIECE_BYTES, create_values, remove_temporaries, says_full, write_whole
from xmodal.features.lock import only_one
from xmodal.features.store import FeatureOrigin, FeatureStore, finish_file, is_complete

log = logging.getLogger(__name__)


@runtime_checkable
class WordEncoder(Encoder, WordTable, Protocol):
    """An encoder of captions that is a table of words."""


def extract_words(
    encoder: WordEncoder,
    captions: Sequence[str],
    ids: Sequence[int | str],
    *,
    store: FeatureStore,
    data_name: str,
    encoder_name: str,
    data_fingerprint: str,
    dtype: str = "float16",
) -> Path:
    """Store the word vectors of N captions once per distinct word and return the file; at once where it is there.

    The file has ``values`` (V, D), the distinct words that the encoder knows, in order of first appearance, and
    ``codes`` (T,), the row of every known running word, in the smallest unsigned type that holds V − 1. Words that the
    encoder does not know are left out, so that a caption may be an empty set. It appears whole or not at all; a second
    process that wants the same file waits for the first.

    Args:
        encoder: prepared.
        ids: one per caption.
        store, data_name, encoder_name: where the file goes and how it is called.
        data_fingerprint: digest of ids and texts.
        dtype: of the table, ``float16`` or ``float32``.

    Raises:
        FeatureError: vectors that are not finite or too large for ``dtype``, of a wrong width or count; a full disk.
        ConfigError: an unknown ``dtype``.
    """
    if len(captions) != len(ids):
        raise FeatureError(f"{len(captions)} captions were given with {len(ids)} ids; each caption needs one id.")
    kept_as = "float32" if getattr(encoder, "needs_float32", False) else dtype
    origin = FeatureOrigin(encoder.fingerprint(), data_fingerprint, kept_as, encoder.modality)
    path = store.path(data_name, encoder_name, origin.key)
    if is_complete(path, origin, ids):
        log.info("Features of %s with %s: %s", data_name, encoder_name, path)
        return path
    with only_one(path):
        remove_temporaries(_scratch(path))
        if not is_complete(path, origin, ids):
            log.info("Extracting words of %s into %s: %d captions", data_name, path, len(captions))
            _write(path, origin, ids, *_coded(encoder, captions, kept_as, path.parent))
    return path


def _coded(
    encoder: WordEncoder, captions: Sequence[str], dtype: str, folder: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Table (V, D) of the known words, code of every known running word (T,), offsets of the captions (N + 1,)."""
    numbers: dict[str, int] = {}  # of all distinct words, in order of first appearance
    spelled = [[numbers.setdefault(word, len(numbers)) for word in encoder.words(caption)] for caption in captions]
    _announce(len(numbers), spelled, encoder.feature_dim * np.dtype(dtype).itemsize, folder)
    known, vectors = encoder.known(list(numbers))
    _check_table(vectors, known, encoder, dtype)
    code_of = np.full(len(numbers), -1, dtype=np.int64)
    code_of[[numbers[word] for word in known]] = np.arange(len(known))
    running = code_of[np.fromiter((number for some in spelled for number in some), dtype=np.int64)]
    owners = np.repeat(np.arange(len(captions)), [len(some) for some in spelled])
    counts = np.bincount(owners[running >= 0], minlength=len(captions))
    codes = running[running >= 0].astype(np.min_scalar_type(max(0, len(known) - 1)))
    return vectors.astype(dtype), codes, np.concatenate([[0], np.cumsum(counts)])


def _announce(distinct: int, spelled: Sequence[Sequence[int]], row_bytes: int, folder: Path) -> None:
    """Say how large the file will be, before a vector is looked up; a bound, as unknown words are left out."""
    running = sum(len(some) for some in spelled)
    codes, offsets = running * np.min_scalar_type(max(0, distinct - 1)).itemsize, 8 * (len(spelled) + 1)
    expected = Expectation(distinct * row_bytes + codes + offsets, False)
    log.info("%d running words, %d of them distinct: %s", running, distinct, expected)
    require_space(folder, expected, 0.0)


def _scratch(path: Path) -> Path:
    return path.with_name(f"{path.name}.parts")


def _check_table(vectors: np.ndarray, known: Sequence[str], encoder: WordEncoder, dtype: str) -> None:
    name, expected = type(encoder).__name__, (len(known), encoder.feature_dim)
    if vectors.shape != expected:
        raise FeatureError(f"{name} gave vectors of shape {vectors.shape} for its known words; expected {expected}.")
    largest = np.abs(vectors).max(axis=1, initial=0.0)  # NaN and infinity stay what they are
    wrong = [repr(word) for word, value in zip(known, largest, strict=True) if not np.isfinite(value)]
    if wrong:
        raise FeatureError(
            f"{name} has NaN or infinite vectors for {len(wrong)} of {len(known)} words, the first being "
            f"{', '.join(wrong[:5])}. Look at the file of its vectors; nothing was stored."
        )
    if dtype == "float16" and largest.max(initial=0.0) > FLOAT16_MAX:
        raise FeatureError(
            f"{name} has the value {largest.max():.6g} in the vector of {known[int(largest.argmax())]!r}; float16 ends "
            f"at {FLOAT16_MAX:.0f}. Set features.dtype=float32."
        )


def _write(
    path: Path,
    origin: FeatureOrigin,
    ids: Sequence[int | str],
    table: np.ndarray,
    codes: np.ndarray,
    offsets: np.ndarray,
) -> None:
    scratch = _scratch(path)

    def fill(file: h5py.File) -> None:
        create_values(file, table.shape[0], table.shape[1], origin.dtype)[...] = table
        checked = {"chunks": (min(len(codes), PIECE_BYTES // codes.itemsize),), "fletcher32": True}
        file.create_dataset("codes", data=codes, **(checked if len(codes) else {}))
        finish_file(file, origin, ids, offsets)

    try:
        write_whole(path, scratch, fill)
    except (OSError, RuntimeError) as error:  # h5py's close() turns an OSError into a RuntimeError
        if not says_full(error):
            raise
        free = shutil.disk_usage(path.parent).free
        raise FeatureError(
            f"No space left for features: {path} could not be written ({free:,} bytes free on that disk; a quota or a "
            "limit on file sizes counts too). Free some space and run the same command again, or choose another disk "
            "with paths.features_dir=…"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    log.info("%s: %d distinct words for %d captions, %.1f MB", path, len(table), len(ids), path.stat().st_size / 1e6)
