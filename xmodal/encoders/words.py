"""Words: one caption → the numbers of its words, whose vectors are learned with the model."""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from xmodal.encoders.portable import PortableEncoder, portable_words
from xmodal.encoders.protocol import TrainableLayers
from xmodal.encoders.trainable import marked
from xmodal.encoders.word_vectors import WordVectors, read_vectors, stated_width, unusable
from xmodal.errors import ConfigError
from xmodal.tokens import tokenize
from xmodal.types import FeatureSet

log = logging.getLogger(__name__)

UNKNOWN = 0  # number of <unk>, which stands for every word that is not in the vocabulary

_KEY = "text_encoder"
_USUAL_SIZE = 300


class WordsEncoder:
    """The text side of VSE++ (Faghri et al., BMVC 2018) and VSE∞ (Chen et al., CVPR 2021): learned word embeddings.

    The vocabulary is made of the words that occur at least ``min_count`` times in the training captions, and of
    ``<unk>``, which stands for all others, in training and ever after. A set is the words' numbers (n, 1); the vectors
    are the tail's, and learn from the first epoch on at the optimizer's own rate, wherever they start from: neither
    ``optimizer.tail_lr_factor`` nor ``unfreeze_epoch`` is about them. For vectors that stay as they are, or that learn
    more slowly, there is FastTextEncoder. Drop-out of their entries is the text tower's ``feature_dropout``.

    Args:
        vectors: path of a ``.bin``, ``.vec`` or ``.vec.gz`` that the embeddings start from; words that it does not
            know, and ``<unk>``, start random. None: all do.
        vector_size: D of the embeddings; None: the file's, or 300 without one.
        min_count: rarer words are ``<unk>``, whose vector is learned from them.
        init_range: random entries are uniform in ±``init_range``.
        seed: of the random entries.
        word_dropout: probability in [0, 1) that a word is ``<unk>`` for once, in training.
        trainable_layers: ``all``; there is nothing else.
        batch_size: captions per call.

    Raises:
        ConfigError: a parameter is out of range.
    """

    modality: ClassVar[Literal["image", "text"]] = "text"
    feature_dim: ClassVar[int] = 1
    needs_float32: ClassVar[bool] = True  # float16 would confuse words whose numbers are above 2048

    def __init__(
        self,
        vectors: str | None = None,
        vector_size: int | None = None,
        min_count: int = 4,
        init_range: float = 0.1,
        seed: int = 0,
        word_dropout: float = 0.0,
        trainable_layers: TrainableLayers = "all",
        batch_size: int = 1024,
    ) -> None:
        positive = {
            "vector_size": vector_size,
            "min_count": min_count,
            "init_range": init_range,
            "batch_size": batch_size,
        }
        faults = [
            f"{_KEY}.{name} must be positive, found {value}."
            for name, value in positive.items()
            if value is not None and not 0 < value < float("inf")
        ]
        if seed < 0:
            faults.append(f"{_KEY}.seed must not be negative, found {seed}.")
        if not 0 <= word_dropout < 1:
            faults.append(f"{_KEY}.word_dropout must lie in [0, 1), found {word_dropout}.")
        if trainable_layers != "all":
            faults.append(
                f"{_KEY}.trainable_layers must be all for {_KEY}=words, whose vectors are always learned, found "
                f"{trainable_layers}. For vectors that stay as they are: {_KEY}=fasttext {_KEY}.vectors=<file>."
            )
        if faults:
            raise ConfigError(faults)
        self.vectors = vectors
        self.vector_size = vector_size
        self.min_count = min_count
        self.init_range = init_range
        self.seed = seed
        self.word_dropout = word_dropout
        self.trainable_layers = trainable_layers
        self.batch_size = batch_size
        self._numbers: dict[str, int] | None = None  # of the words in the vocabulary, from 1
        self._width = vector_size or _USUAL_SIZE
        self._given: WordVectors | None = None  # vectors of the file for words in the vocabulary; none after `restore`
        self._given_digest: str | None = None

    @property
    def vocabulary(self) -> dict[str, int]:
        """The known words and their numbers, the most frequent first; known after ``prepare`` or ``restore``."""
        if self._numbers is None:
            raise RuntimeError("WordsEncoder has no vocabulary yet: call prepare() or restore() first")
        return self._numbers

    def check(self) -> list[str]:
        if self.vectors is None:
            return []
        path = Path(self.vectors).expanduser()
        return unusable(path) or self._contradictions(stated_width(path))

    def prepare(self, captions: Sequence[str], cache_dir: Path) -> None:
        """Make the vocabulary from the training captions, and read what its vectors start from.

        Raises:
            ConfigError: there are no training captions or too high a ``min_count``, or the file's vectors are not
                ``vector_size`` wide.
            WeightsError: the file is absent or damaged.
        """
        if self._numbers is not None:
            return
        counts = Counter(word for caption in captions for word in tokenize(caption))
        numbers = self._frequent(counts, len(captions))
        self._log_vocabulary(numbers, counts, len(captions))
        if self.vectors is not None:
            self._start_from(Path(self.vectors).expanduser().absolute(), numbers)
        self._numbers = numbers

    def fingerprint(self) -> dict[str, Any]:
        used = {
            "encoder": "WordsEncoder",
            "vocabulary": _digest(self.vocabulary),
            "vector_size": self._width,
            "vectors": self._given_digest,
            "init_range": self.init_range,
            "seed": self.seed,
        }
        return marked(used, self.trainable_layers)

    @staticmethod
    def preprocess(item: str) -> list[str]:
        """The caption's words."""
        return tokenize(item)

    def most_vectors(self, items: Sequence[str]) -> int:
        return sum(len(tokenize(item)) for item in items)

    def encode(self, batch: list[list[str]]) -> list[FeatureSet]:
        numbers = [self.vocabulary.get(word, UNKNOWN) for words in batch for word in words]
        return list(torch.tensor(numbers, dtype=torch.float32).unsqueeze(1).split([len(words) for words in batch]))

    def tail(self) -> "WordEmbeddings":
        """The table to begin with; of a restored encoder all of it is random, as the model brings what it learned."""
        generator = torch.Generator().manual_seed(self.seed)
        table = torch.empty(len(self.vocabulary) + 1, self._width)
        table.uniform_(-self.init_range, self.init_range, generator=generator)
        if self._given is not None:
            table[[self.vocabulary[word] for word in self._given.words]] = torch.from_numpy(self._given.vectors)
        return WordEmbeddings(table, self.word_dropout)

    def portable(self) -> PortableEncoder:
        numbers = torch.arange(len(self.vocabulary) + 1, dtype=torch.float32)
        return portable_words(numbers.unsqueeze(1), self.vocabulary, UNKNOWN)

    def to(self, device: torch.device | str) -> None:
        """Nothing to move: words are numbered on the CPU."""

    def state(self) -> dict[str, Any]:
        """The words; their vectors are the model's parameters."""
        return {"words": list(self.vocabulary), "vector_size": self._width, "vectors": self._given_digest}

    def restore(self, state: dict[str, Any]) -> None:
        self._numbers = _numbered(state["words"])
        self._width = state["vector_size"]
        self._given_digest = state["vectors"]

    def _frequent(self, counts: Counter[str], captions: int) -> dict[str, int]:
        """Numbers of the words that are frequent enough, the most frequent first, whatever the order of captions."""
        if not counts:
            raise ConfigError(
                f"{_KEY}=words takes its vocabulary from the training captions, but found no words in {captions} of "
                "them. Features in a file can't be its work; the words of a saved run are in its checkpoint, and "
                f"evaluating it takes no {_KEY}.vectors."
            )
        ordered = sorted(counts, key=lambda word: (-counts[word], word))
        if counts[ordered[0]] < self.min_count:
            raise ConfigError(
                f"{_KEY}.min_count={self.min_count}: no word occurs that often in the {captions} training captions; "
                f"the most frequent one, {ordered[0]!r}, occurs {counts[ordered[0]]} times. Lower {_KEY}.min_count."
            )
        return _numbered([word for word in ordered if counts[word] >= self.min_count])

    def _log_vocabulary(self, numbers: dict[str, int], counts: Counter[str], captions: int) -> None:
        known = sum(counts[word] for word in numbers)
        log.info(
            f"{len(numbers)} of {len(counts)} distinct words occur at least {self.min_count} times "
            f"({_KEY}.min_count) in {captions} training captions: {100 * known / counts.total():.2f} % of the running "
            "words; the others are <unk>."
        )
        if known == counts.total() and self.word_dropout == 0:
            log.info(
                f"No training word is <unk>, so nothing is learned for words to come that are not in the vocabulary: "
                f"all of them share one random vector. {_KEY}.word_dropout=0.05 would train it."
            )

    def _start_from(self, path: Path, numbers: dict[str, int]) -> None:
        table = read_vectors(path)
        for fault in self._contradictions(table.feature_dim):
            raise ConfigError(fault)
        names, vectors = table.known(numbers)
        self._given = WordVectors(tuple(names), vectors)
        self._given_digest = self._given.digest
        self._width = table.feature_dim
        log.info(f"{path.name} has vectors of {len(names)} of these {len(numbers)} words; the others start random.")

    def _contradictions(self, width: int | None) -> list[str]:
        if width is None or self.vector_size in (None, width):
            return []
        return [
            f"{_KEY}.vector_size={self.vector_size}: the vectors of {self.vectors} are {width} wide. Leave it out "
            f"({_KEY}.vector_size=null takes the file's width), or name another file."
        ]


class WordEmbeddings(nn.Module):
    """A table that is learned: the number of a word → the vector in that row; padding → zeros.

    Args:
        table: what it starts from; row 0 is ``<unk>``'s.
        word_dropout: probability that a word is ``<unk>`` for once, in training.
    """

    learns_with_heads: ClassVar[bool] = True

    def __init__(self, table: Float[Tensor, "words D"], word_dropout: float = 0.0) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(table, freeze=False)
        self.word_dropout = word_dropout
        self.output_dim: int = table.shape[1]

    def forward(
        self, x: Float[Tensor, "B L 1"], mask: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B L D"], Bool[Tensor, "B L"]]:
        numbers = x[:, :, 0].masked_fill(~mask, UNKNOWN).round().long()  # padding may hold anything, NaN too
        if self.training and self.word_dropout:
            dropped = torch.rand(numbers.shape, device=numbers.device) < self.word_dropout
            numbers = numbers.masked_fill(dropped, UNKNOWN)
        return self.table(numbers).masked_fill(~mask.unsqueeze(2), 0.0), mask


def _numbered(words: Sequence[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(words, start=UNKNOWN + 1)}


def _digest(words: Sequence[str] | dict[str, int]) -> str:
    return hashlib.sha256("\n".join(words).encode(errors="surrogatepass")).hexdigest()
