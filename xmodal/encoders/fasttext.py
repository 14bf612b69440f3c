"""FastText: one caption → a set of word vectors."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import gensim
import torch

from xmodal.atomic import complete_file
from xmodal.encoders.weights import UNREADABLE, first_line
from xmodal.encoders.word_vectors import WordVectors, read_vectors, train_vectors, unusable
from xmodal.errors import ConfigError, WeightsError
from xmodal.tokens import tokenize
from xmodal.types import FeatureSet

log = logging.getLogger(__name__)

_KEY = "text_encoder"


class FastTextEncoder:
    """One vector per word: n = number of words with a vector, in the order of the caption.

    ``vectors`` decides where they come from. A Facebook ``.bin`` also has vectors for unknown words, from their
    character n-grams; a ``.vec`` or ``.vec.gz`` has none, and unknown words are dropped (a caption of unknown words
    alone is the empty set). None: FastText is trained on the training captions, the same ones always giving the
    same vectors.

    Args:
        vectors: path of a ``.bin``, ``.vec`` or ``.vec.gz``, or None.
        vector_size: D, where trained here (as all that follow).
        window: words to each side that a word predicts, at most.
        epochs: passes over the captions.
        min_count: a word that occurs less often gets no vector of its own.
        min_n: shortest character n-gram.
        max_n: longest character n-gram; below ``min_n``: none are used.
        bucket: rows of the table of n-grams.
        skip_gram: predict the neighbours from the word (True), or the word from its neighbours (False).
        negative: negative examples per positive one.
        learning_rate: at the start; falls linearly to 0.0001.
        seed: of the training.
        embed_limit_mb: a checkpoint carries a table up to this size; of a larger one, path and digest.
        batch_size: captions per call.

    Raises:
        ConfigError: a parameter is out of range.
    """

    modality: ClassVar[Literal["image", "text"]] = "text"

    def __init__(
        self,
        vectors: str | None = None,
        vector_size: int = 100,
        window: int = 5,
        epochs: int = 10,
        min_count: int = 1,
        min_n: int = 3,
        max_n: int = 6,
        bucket: int = 20000,
        skip_gram: bool = True,
        negative: int = 5,
        learning_rate: float = 0.025,
        seed: int = 0,
        embed_limit_mb: float = 256.0,
        batch_size: int = 1024,
    ) -> None:
        positive = {
            "vector_size": vector_size,
            "window": window,
            "epochs": epochs,
            "min_count": min_count,
            "min_n": min_n,
            "bucket": bucket,
            "negative": negative,
            "learning_rate": learning_rate,
            "batch_size": batch_size,
        }
        faults = [f"{_KEY}.{name} must be positive, found {value}." for name, value in positive.items() if value <= 0]
        for name, value in {"seed": seed, "max_n": max_n, "embed_limit_mb": embed_limit_mb}.items():
            if value < 0:
                faults.append(f"{_KEY}.{name} must not be negative, found {value}.")
        if faults:
            raise ConfigError(faults)
        self.vectors = vectors
        self.seed = seed
        self.embed_limit_mb = embed_limit_mb
        self.batch_size = batch_size
        self._training = {
            "vector_size": vector_size,
            "window": window,
            "epochs": epochs,
            "min_count": min_count,
            "min_n": min_n,
            "max_n": max_n,
            "bucket": bucket,
            "sg": int(skip_gram),
            "negative": negative,
            "alpha": learning_rate,
        }
        self._table: WordVectors | None = None
        self._source: Path | None = None  # file that holds the table: the given one, or the cache's

    @property
    def feature_dim(self) -> int:
        return self.table.feature_dim

    @property
    def table(self) -> WordVectors:
        """The word vectors; known after ``prepare`` or ``restore``."""
        if self._table is None:
            raise RuntimeError("FastTextEncoder has no vectors yet: call prepare() or restore() first")
        return self._table

    def check(self) -> list[str]:
        return [] if self.vectors is None else unusable(Path(self.vectors).expanduser())

    def prepare(self, captions: Sequence[str], cache_dir: Path) -> None:
        """Read the vectors, or train them on the captions; a table trained before is found under ``cache_dir``.

        Raises:
            WeightsError: the file is absent or damaged, or there is nothing to train on.
        """
        if self._table is not None:
            return
        sentences = [tokenize(caption) for caption in captions]
        if self.vectors is not None:
            self._source = Path(self.vectors).expanduser().absolute()
            self._table = read_vectors(self._source)
            _log_coverage(self._table, sentences, self._source)
            return
        self._source = cache_dir.absolute() / f"fasttext-{self._training_digest(sentences)}.pt"
        self._table = _read_cache(self._source)
        if self._table is None:
            log.info(f"Training FastText vectors on {len(sentences)} training captions, because {_KEY}.vectors=null.")
            self._table = train_vectors(sentences, self.seed, **self._training)
            _write_cache(self._table, self._source)

    def fingerprint(self) -> dict[str, Any]:
        return {"encoder": "FastTextEncoder", "weights": self.table.digest}

    @staticmethod
    def preprocess(item: str) -> list[str]:
        """The caption's words."""
        return tokenize(item)

    def encode(self, batch: list[list[str]]) -> list[FeatureSet]:
        values, lengths = self.table.lookup(batch)
        return list(torch.from_numpy(values).split(lengths.tolist()))

    def to(self, device: torch.device | str) -> None:
        """Nothing to move: words are looked up on the CPU."""

    def state(self) -> dict[str, Any]:
        if self.table.megabytes <= self.embed_limit_mb:
            return {"table": self.table.state(), "path": str(self._source)}
        return {"path": str(self._source), "digest": self.table.digest}

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of ``state``.

        Raises:
            WeightsError: the table was too large for the checkpoint, and its file is absent or has changed.
        """
        self._source = Path(state["path"])
        self._table = (
            WordVectors.from_state(state["table"]) if "table" in state else _reread(self._source, state["digest"])
        )

    def _training_digest(self, sentences: list[list[str]]) -> str:
        made_from = {"gensim": gensim.__version__, "seed": self.seed, **self._training, "sentences": sentences}
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


def _log_coverage(table: WordVectors, sentences: list[list[str]], source: Path) -> None:
    counts = Counter(word for sentence in sentences for word in sentence)
    if not counts:
        return
    known = {word: count for word, count in counts.items() if word in table.rows}
    without = sum(not any(word in known for word in sentence) for sentence in sentences)
    if without and table.ngrams is None:
        log.warning(f"{without} of {len(sentences)} training captions have no known word: each is the empty set.")
    running = 100 * sum(known.values()) / counts.total()
    unknown = "dropped" if table.ngrams is None else "made of their n-grams"
    log.info(
        f"{source.name} has {running:.2f} % of the running words of {len(sentences)} training captions and "
        f"{len(known)} of their {len(counts)} distinct words ({100 * len(known) / len(counts):.2f} %); "
        f"unknown words are {unknown}."
    )


def _read_cache(file: Path) -> WordVectors | None:
    if not file.exists():
        return None
    try:
        return WordVectors.from_state(torch.load(file, weights_only=True))
    except UNREADABLE as error:
        log.warning(f"{file} can't be read ({first_line(error)}); training the vectors again.")
        return None


def _write_cache(table: WordVectors, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with complete_file(file) as partial:
        torch.save(table.state(), partial)


def _reread(source: Path, expected: str) -> WordVectors:
    if not source.is_file():
        raise WeightsError(
            f"The checkpoint names its word vectors, which were too large to carry ({_KEY}.embed_limit_mb), but there "
            f"is no file {source}: put it back."
        )
    table = _read_cache(source) if source.suffix == ".pt" else read_vectors(source)
    if table is None or table.digest != expected:
        found = "can't be read" if table is None else f"has digest {table.digest[:12]}, expected {expected[:12]}"
        raise WeightsError(f"The word vectors {source} are not those that the checkpoint was trained with: it {found}.")
    return table
