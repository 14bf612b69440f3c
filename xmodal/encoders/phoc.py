"""PHOC: one caption → a set of one binary vector per word, which tells where in the word each character stands."""

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool

from xmodal.encoders.portable import PortableEncoder
from xmodal.encoders.word_sets import sets_of
from xmodal.errors import ConfigError, FeatureError
from xmodal.tokens import tokenize
from xmodal.types import FeatureSet

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
# The most frequent pairs of letters in English, in that order: P. Norvig, English Letter Frequency Counts: Mayzner
# Revisited, 2013 (2.8 trillion pairs of Google Books).
_MOST_FREQUENT = "thheineranreonatenndtiesorteofedisitalarsttontngsehaasouiolevecomedehiriroicneearacelichllbemasiomur"
BIGRAMS = tuple(_MOST_FREQUENT[start : start + 2] for start in range(0, len(_MOST_FREQUENT), 2))

_KEY = "text_encoder"
_BIGRAM_LEVEL = 2
_PLACES = {character: place for place, character in enumerate(ALPHABET)}


class PhocEncoder:
    """Pyramidal histogram of characters (Almazán et al., Word Spotting and Recognition with Embedded Attributes,
    TPAMI 2014, section 3.2); nothing is learned.

    Level l cuts a word into l equal regions. Character k of n takes up [k/n, (k + 1)/n] of the word, and is in region
    r, [r/l, (r + 1)/l], if at least half of it is: |overlap| / (1/n) ≥ 1/2. One bit per level, region and character of
    a–z and 0–9; then one per region of level 2 and bigram, which takes up [k/n, (k + 2)/n]. Hence
    D = 36 · Σ levels + 2 · ``bigrams``: 604 as published. The bits are in that order.

    Words are spelled without case and accents (Unicode's compatibility decomposition: é is e, ２ is 2, ß is ss); other
    characters are left out, and a word with nothing left is dropped, as in ø or 犬. A caption may be the empty set.

    Args:
        levels: numbers of regions; 1 adds which characters occur at all.
        bigrams: how many of the 50 most frequent English bigrams are looked for.
        batch_size: captions per call.

    Raises:
        ConfigError: a parameter is out of range.
    """

    modality: ClassVar[Literal["image", "text"]] = "text"

    def __init__(self, levels: Sequence[int] = (2, 3, 4, 5), bigrams: int = 50, batch_size: int = 1024) -> None:
        faults = []
        if not levels or min(levels) < 1 or len(set(levels)) < len(levels):
            faults.append(
                f"{_KEY}.levels must be one or more different positive numbers of regions, found {list(levels)}."
            )
        if not 0 <= bigrams <= len(BIGRAMS):
            faults.append(f"{_KEY}.bigrams must be from 0 to {len(BIGRAMS)}, found {bigrams}.")
        if batch_size < 1:
            faults.append(f"{_KEY}.batch_size must be positive, found {batch_size}.")
        if faults:
            raise ConfigError(faults)
        self.levels = tuple(levels)
        self.bigrams = bigrams
        self.batch_size = batch_size
        self._bigram_places = {bigram: place for place, bigram in enumerate(BIGRAMS[:bigrams])}

    @property
    def feature_dim(self) -> int:
        return len(ALPHABET) * sum(self.levels) + _BIGRAM_LEVEL * self.bigrams

    def check(self) -> list[str]:
        return []

    def prepare(self, captions: Sequence[str], cache_dir: Path) -> None:
        """Nothing is learned, and nothing read."""

    def fingerprint(self) -> dict[str, Any]:
        return {"encoder": "PhocEncoder", "levels": list(self.levels), "bigrams": list(self._bigram_places)}

    @staticmethod
    def preprocess(item: str) -> list[str]:
        """The caption's words."""
        return tokenize(item)

    def words(self, item: str) -> list[str]:
        """The caption's words, those that can't be spelled too."""
        return tokenize(item)

    def known(self, words: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Those of the distinct ``words`` that have a spelling, and their vectors (V, D) float32."""
        spelled = {word: spelling for word in words if (spelling := spell(word))}
        vectors = np.zeros((len(spelled), self.feature_dim), dtype=np.float32)
        for row, spelling in enumerate(spelled.values()):
            vectors[row] = self._vector(spelling)
        return list(spelled), vectors

    def most_vectors(self, items: Sequence[str]) -> int:
        return sum(len(tokenize(item)) for item in items)

    def encode(self, batch: list[list[str]]) -> list[FeatureSet]:
        return sets_of(self, batch)

    def portable(self) -> PortableEncoder:
        raise FeatureError("PHOC spells words out by a rule, which is no network.")

    def to(self, device: torch.device | str) -> None:
        """Nothing to move: words are spelled on the CPU."""

    def state(self) -> dict[str, Any]:
        """Nothing: the parameters say it all."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to bring back."""

    def _vector(self, spelling: str) -> np.ndarray:
        return np.concatenate([block.ravel() for block in self._blocks(spelling)])

    def _blocks(self, spelling: str) -> Iterator[Bool[np.ndarray, "regions characters"]]:
        for level in self.levels:
            yield _histogram(list(spelling), _PLACES, regions_of(len(spelling), 1, level))
        if self.bigrams:
            pairs = [spelling[start : start + 2] for start in range(len(spelling) - 1)]
            yield _histogram(pairs, self._bigram_places, regions_of(len(spelling), 2, _BIGRAM_LEVEL))


def spell(word: str) -> str:
    """A word in the 36 characters, without case and accents; characters that are none of them are left out."""
    return "".join(character for character in unicodedata.normalize("NFKD", word.casefold()) if character in _PLACES)


@lru_cache(maxsize=1024)
def regions_of(length: int, width: int, level: int) -> Bool[np.ndarray, "starts level"]:
    """Whether at least half of the ``width`` characters from each start of a word is in each region of a level.

    In units of 1 / (length · level) of the word, in which all borders are whole numbers.
    """
    start = np.arange(max(0, length - width + 1))[:, None] * level
    region = np.arange(level)[None, :] * length
    overlap = np.minimum(start + width * level, region + length) - np.maximum(start, region)
    return 2 * overlap >= width * level


def _histogram(
    units: Sequence[str], places: dict[str, int], regions: Bool[np.ndarray, "starts level"]
) -> Bool[np.ndarray, "level kinds"]:
    """Which kinds of units each region has; ``regions`` tells where each unit is."""
    found = np.zeros((regions.shape[1], len(places)), dtype=bool)
    for unit, inside in zip(units, regions, strict=True):
        if unit in places:
            found[:, places[unit]] |= inside
    return found
