"""From the words of captions to sets: each distinct word is looked up once, however often it occurs."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from xmodal.encoders.protocol import WordTable
from xmodal.types import FeatureSet


def distinct(sentences: Iterable[Sequence[str]]) -> list[str]:
    """The words of all sentences, each once, in the order in which they first occur."""
    return list(dict.fromkeys(word for sentence in sentences for word in sentence))


def rows_of(words: Sequence[str], sentences: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Place in ``words`` of every word of the sentences that is there, end to end, and their number in each."""
    order = {word: row for row, word in enumerate(words)}
    rows = [[order[word] for word in sentence if word in order] for sentence in sentences]
    flat = np.array([row for some in rows for row in some], dtype=np.int64)
    return flat, np.array([len(some) for some in rows], dtype=np.int64)


def sets_of(table: WordTable, sentences: Sequence[Sequence[str]]) -> list[FeatureSet]:
    """The vectors of each sentence's words, in their order; words that the table does not know are left out."""
    names, vectors = table.known(distinct(sentences))
    rows, lengths = rows_of(names, sentences)
    return list(torch.from_numpy(vectors[rows]).split(lengths.tolist()))
