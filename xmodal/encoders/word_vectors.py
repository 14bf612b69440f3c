"""A table of word vectors: read from a file or trained on captions, looked up, and carried in a checkpoint."""

import gzip
import logging
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gensim.models import FastText, KeyedVectors
from gensim.models.fasttext import FastTextKeyedVectors, ft_ngram_hashes, load_facebook_vectors

from xmodal.encoders.weights import digest
from xmodal.encoders.word_sets import distinct, rows_of
from xmodal.errors import WeightsError

log = logging.getLogger(__name__)

SUFFIXES = (".bin", ".vec", ".vec.gz")
_FASTTEXT_MAGIC = 793712314  # first number of a Facebook .bin
_DAMAGED = (OSError, EOFError, ValueError, KeyError, NotImplementedError, AssertionError, struct.error, zlib.error)


@dataclass(frozen=True)
class WordVectors:
    """V words with their vectors and, where the model has them, the vectors of character n-grams.

    A word that is not in the table has the mean of the vectors of its n-grams (Bojanowski et al., 2017), or, in a
    table without n-grams, no vector.
    """

    words: tuple[str, ...]
    vectors: np.ndarray  # (V, D) float32
    ngrams: np.ndarray | None = None  # (buckets, D) float32
    min_n: int = 0
    max_n: int = 0

    @property
    def feature_dim(self) -> int:
        return self.vectors.shape[1]

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of each word in ``vectors``."""
        return {word: row for row, word in enumerate(self.words)}

    def vector(self, word: str) -> np.ndarray | None:
        """(D,) float32; None for a word about which the table knows nothing."""
        row = self.rows.get(word)
        if row is not None:
            return self.vectors[row]
        if self.ngrams is None:
            return None
        buckets = ft_ngram_hashes(word, self.min_n, self.max_n, len(self.ngrams))
        return self.ngrams[buckets].mean(axis=0, dtype=np.float32) if len(buckets) else None

    def known(self, words: Iterable[str]) -> tuple[list[str], np.ndarray]:
        """Those of the distinct ``words`` that have a vector, and their vectors (n, D) float32."""
        found = {word: vector for word in words if (vector := self.vector(word)) is not None}
        return list(found), np.stack(list(found.values())) if found else np.zeros((0, self.feature_dim), np.float32)

    def lookup(self, sentences: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of all known words end to end, (T, D) float32, and the number of known words of each sentence."""
        words, vectors = self.known(distinct(sentences))
        rows, lengths = rows_of(words, sentences)
        return vectors[rows], lengths

    @property
    def megabytes(self) -> float:
        return (self.vectors.nbytes + (0 if self.ngrams is None else self.ngrams.nbytes)) / 2**20

    @cached_property
    def digest(self) -> str:
        """sha256 over words, vectors and n-grams."""
        return digest({key: _as_tensor(value) for key, value in self.state().items()})

    def state(self) -> dict[str, Any]:
        """Plain containers and tensors; ``from_state`` is the inverse."""
        state = {"words": list(self.words), "vectors": torch.from_numpy(self.vectors)}
        if self.ngrams is not None:
            state.update(ngrams=torch.from_numpy(self.ngrams), min_n=self.min_n, max_n=self.max_n)
        return state

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "WordVectors":
        ngrams = state["ngrams"].numpy() if "ngrams" in state else None
        vectors = state["vectors"].numpy()
        return cls(tuple(state["words"]), vectors, ngrams, state.get("min_n", 0), state.get("max_n", 0))


def read_vectors(path: Path) -> WordVectors:
    """Read a Facebook ``.bin``, or a ``.vec`` / ``.vec.gz`` in word2vec's text format.

    Raises:
        WeightsError: absent, damaged, of another format, or with values that are not finite.
    """
    for fault in unusable(path):
        raise WeightsError(fault)
    try:
        if path.suffix == ".bin":
            table = _from_gensim(load_facebook_vectors(str(path)))
        else:
            keyed = KeyedVectors.load_word2vec_format(str(path), binary=False)
            table = WordVectors(tuple(keyed.index_to_key), np.ascontiguousarray(keyed.vectors, dtype=np.float32))
    except _DAMAGED as error:
        raise WeightsError(f"Can't read the vectors {path}: {error}{_to_do(path)}") from error
    bad = int((~np.isfinite(table.vectors)).any(axis=1).sum())
    if bad:
        raise WeightsError(f"{path}: the vectors of {bad} of {len(table.words)} words are not finite.")
    return table


def unusable(path: Path) -> list[str]:
    """A sentence where ``path`` is no file, or has an ending that names no known format."""
    if not path.name.endswith(SUFFIXES):
        return [f"text_encoder.vectors: {path} ends in none of {', '.join(SUFFIXES)}."]
    if not path.is_file():
        return [
            f"text_encoder.vectors: no file {path}; give a file, or null to train vectors on the training captions."
        ]
    return []


def _to_do(path: Path) -> str:
    """About a file that can't be read: it may be no vectors at all, or such as begin rightly and don't go on so."""
    if stated_width(path) is not None:
        return ". It begins as it should, so the file is incomplete or damaged: fetch it again."
    expected = "fastText's .bin" if path.suffix == ".bin" else "a first line 'words width', then 'word v1 v2 …' a line"
    return f"; expected {expected}."


def stated_width(path: Path) -> int | None:
    """Width of the vectors as the beginning of the file states it; None where nothing of the kind can be read."""
    try:
        if path.suffix == ".bin":
            with path.open("rb") as file:
                magic, _, width = struct.unpack("<3i", file.read(12))
            return int(width) if magic == _FASTTEXT_MAGIC else None
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return int(file.readline(100).split()[1])
    except (*_DAMAGED, IndexError):
        return None


def train_vectors(sentences: Sequence[Sequence[str]], seed: int, **parameters: Any) -> WordVectors:
    """FastText (Bojanowski et al., 2017) trained on the sentences: the same input always gives the same table.

    Raises:
        WeightsError: no word occurs often enough.
    """
    min_count = parameters["min_count"]
    try:
        model = FastText(
            list(map(list, sentences)),
            seed=seed,
            workers=1,  # several workers would race for the examples
            hashfxn=_stable_hash,  # Python's own hash of a str changes from process to process
            sorted_vocab=1,
            **parameters,
        )
    except RuntimeError as error:
        raise WeightsError(
            f"Can't train word vectors: no word occurs {min_count} times (text_encoder.min_count) in the "
            f"{len(sentences)} training captions; give text_encoder.vectors=/path/to/vectors.vec."
        ) from error
    return _from_gensim(model.wv)


def _from_gensim(keyed: FastTextKeyedVectors) -> WordVectors:
    ngrams = np.ascontiguousarray(keyed.vectors_ngrams, dtype=np.float32) if keyed.bucket else None
    vectors = np.ascontiguousarray(keyed.vectors, dtype=np.float32)
    return WordVectors(tuple(keyed.index_to_key), vectors, ngrams, keyed.min_n, keyed.max_n)


def _stable_hash(word: str) -> int:
    return zlib.crc32(word.encode())


def _as_tensor(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, list):
        return torch.from_numpy(np.frombuffer("\n".join(value).encode(errors="surrogatepass"), dtype=np.uint8).copy())
    return torch.tensor(value)
