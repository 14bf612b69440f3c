"""FastText: one caption → a set of word vectors."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import gensim
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from xmodal.atomic import complete_file
from xmodal.encoders.portable import PortableEncoder, portable_words
from xmodal.encoders.protocol import TrainableLayers
from xmodal.encoders.trainable import marked, range_faults
from xmodal.encoders.weights import UNREADABLE, first_line
from xmodal.encoders.word_sets import distinct, sets_of
from xmodal.encoders.word_vectors import WordVectors, read_vectors, train_vectors, unusable
from xmodal.errors import ConfigError, FeatureError, WeightsError
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
        trainable_layers: 1 or ``all``, which is the same: the vectors of the words of the training captions are
            trained, other words keep theirs. A set's vectors are then D + 1 wide: first the word's place among the
            trained ones (−1: not among them), then its vector.
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
        trainable_layers: TrainableLayers = 0,
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
        faults += range_faults(trainable_layers, 1, _KEY)
        for name, value in {"seed": seed, "max_n": max_n, "embed_limit_mb": embed_limit_mb}.items():
            if value < 0:
                faults.append(f"{_KEY}.{name} must not be negative, found {value}.")
        if faults:
            raise ConfigError(faults)
        self.vectors = vectors
        self.seed = seed
        self.embed_limit_mb = embed_limit_mb
        self.trainable_layers = trainable_layers
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
        self._trained_words: dict[str, int] = {}  # words of the training captions that have a vector → their places
        self._source: Path | None = None  # file that holds the table: the given one, or the cache's

    @property
    def feature_dim(self) -> int:
        """Known before ``prepare`` where the vectors are to be trained."""
        is_to_be_trained = self._table is None and self.vectors is None
        width = self._training["vector_size"] if is_to_be_trained else self.table.feature_dim
        return int(width) + (self.trainable_layers != 0)

    @property
    def needs_float32(self) -> bool:
        """Whether sets hold places of words, of which float16 would confuse those above 2048."""
        return self.trainable_layers != 0

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
            ConfigError: words are to be trained, but there are no training captions.
        """
        if self._table is not None:
            return
        if self.trainable_layers and not captions:
            raise ConfigError(
                f"{_KEY}.trainable_layers={self.trainable_layers} trains the vectors of the training captions' words, "
                f"but there are no training captions here (features from a file?). Type {_KEY}.trainable_layers=0."
            )
        sentences = [tokenize(caption) for caption in captions]
        self._table = self._obtain(sentences, cache_dir)
        if self.trainable_layers:
            self._train_on(self._table.known(distinct(sentences))[0])

    def fingerprint(self) -> dict[str, Any]:
        used = {"encoder": "FastTextEncoder", "weights": self.table.digest}
        if self.trainable_layers:
            used["trained_words"] = _digest(list(self._trained_words))
        return marked(used, self.trainable_layers)

    @staticmethod
    def preprocess(item: str) -> list[str]:
        """The caption's words."""
        return tokenize(item)

    def words(self, item: str) -> list[str]:
        """The caption's words, those without a vector too."""
        return tokenize(item)

    def known(self, words: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Those of the distinct ``words`` that have a vector, and (V, D) float32; with trained words (V, D + 1)."""
        names, vectors = self.table.known(words)
        if not self.trainable_layers:
            return names, vectors
        places = np.array([self._trained_words.get(name, -1) for name in names], dtype=np.float32)
        return names, np.concatenate([places[:, None], vectors], axis=1)

    def most_vectors(self, items: Sequence[str]) -> int:
        return sum(len(tokenize(item)) for item in items)

    def encode(self, batch: list[list[str]]) -> list[FeatureSet]:
        return sets_of(self, batch)

    def tail(self) -> "WordTableTail":
        """The trained words' vectors, to begin with those of the table."""
        _, vectors = self.table.known(self._trained_words)
        return WordTableTail(torch.from_numpy(vectors.copy()))

    def portable(self) -> PortableEncoder:
        if self.table.ngrams is not None:
            raise FeatureError(
                "FastText makes the vector of a word that it does not know from the word's character n-grams, which is "
                "no network; a table without n-grams (.vec, or max_n=0) would be."
            )
        names, vectors = self.known(self.table.words)
        return portable_words(torch.from_numpy(vectors), {name: row for row, name in enumerate(names)}, None)

    def to(self, device: torch.device | str) -> None:
        """Nothing to move: words are looked up on the CPU."""

    def state(self) -> dict[str, Any]:
        trained = {"trained_words": list(self._trained_words)} if self.trainable_layers else {}
        if self.table.megabytes <= self.embed_limit_mb:
            return {"table": self.table.state(), "path": str(self._source), **trained}
        return {"path": str(self._source), "digest": self.table.digest, **trained}

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of ``state``.

        Raises:
            WeightsError: the table was too large for the checkpoint, and its file is absent or has changed.
        """
        self._source = Path(state["path"])
        self._table = (
            WordVectors.from_state(state["table"]) if "table" in state else _reread(self._source, state["digest"])
        )

        self._train_on(state.get("trained_words", []))

    def _train_on(self, words: Sequence[str]) -> None:
        self._trained_words = {word: place for place, word in enumerate(words)}

    def _obtain(self, sentences: list[list[str]], cache_dir: Path) -> WordVectors:
        """The table: read, found under ``cache_dir``, or trained."""
        if self.vectors is not None:
            self._source = Path(self.vectors).expanduser().absolute()
            table = read_vectors(self._source)
            _log_coverage(table, sentences, self._source)
            return table
        self._source = cache_dir.absolute() / f"fasttext-{self._training_digest(sentences)}.pt"
        found = _read_cache(self._source)
        if found is None:
            log.info(f"Training FastText vectors on {len(sentences)} training captions, because {_KEY}.vectors=null.")
            found = train_vectors(sentences, self.seed, **self._training)
            _write_cache(found, self._source)
        return found

    def _training_digest(self, sentences: list[list[str]]) -> str:
        made_from = {"gensim": gensim.__version__, "seed": self.seed, **self._training, "sentences": sentences}
        return _digest(made_from)[:16]


class WordTableTail(nn.Module):
    """A table of word vectors that is trained: (place, vector) per word → the vector at that place of the table.

    A word of place −1 has none there and keeps the vector that came with it.

    Args:
        vectors: what the table starts from.
    """

    def __init__(self, vectors: Float[Tensor, "words D"]) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(vectors, freeze=False)
        self.output_dim: int = vectors.shape[1]

    def forward(
        self, x: Float[Tensor, "B L C"], mask: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B L D"], Bool[Tensor, "B L"]]:
        """C = D + 1."""
        places = x[:, :, 0].round().long()
        trained = (places >= 0) & mask
        vectors = x[:, :, 1:]
        rows = self.table(places[trained]).to(vectors.dtype)
        return vectors.masked_scatter(trained.unsqueeze(2), rows), mask


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
