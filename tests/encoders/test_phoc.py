"""Pyramidal histograms of characters against exact fractions, and what can't be spelled."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.encoders.phoc import ALPHABET, BIGRAMS, PhocEncoder, spell
from xmodal.encoders.protocol import Counting, Encoder, WordTable
from xmodal.errors import ConfigError
from xmodal.features.readers import SetReader
from xmodal.features.store import FeatureFile, FeatureStore
from xmodal.features.word_codes import extract_words

words = st.text(alphabet=ALPHABET, min_size=1, max_size=24)
some_levels = st.lists(st.integers(1, 7), min_size=1, max_size=4, unique=True)


def is_inside(start: int, width: int, length: int, region: int, level: int) -> bool:
    """Half of the characters from ``start`` at least, in exact shares of the word."""
    first, last = Fraction(start, length), Fraction(start + width, length)
    overlap = min(last, Fraction(region + 1, level)) - max(first, Fraction(region, level))
    return overlap / (last - first) >= Fraction(1, 2)


def naive(word: str, levels: list[int], bigrams: int) -> list[int]:
    bits = []
    for width, kinds, chosen in ((1, list(ALPHABET), levels), (2, list(BIGRAMS[:bigrams]), [2] if bigrams else [])):
        for level in chosen:
            for region in range(level):
                for kind in kinds:
                    starts = [start for start in range(len(word)) if word[start : start + width] == kind]
                    bits.append(int(any(is_inside(start, width, len(word), region, level) for start in starts)))
    return bits


def vector(word: str, **options) -> np.ndarray:
    names, found = PhocEncoder(**options).known([word])
    assert names == [word]
    return found[0]


@given(words, some_levels, st.integers(0, 50))
@settings(max_examples=80, deadline=None)
def test_bits_are_those_of_exact_fractions(word, levels, bigrams):
    found = vector(word, levels=levels, bigrams=bigrams)
    assert found.dtype == np.float32
    assert len(found) == PhocEncoder(levels, bigrams).feature_dim == 36 * sum(levels) + 2 * bigrams
    assert found.astype(int).tolist() == naive(word, levels, bigrams)


@given(st.lists(st.sampled_from(["th", "he", "ur", "om", "xq"]), min_size=1, max_size=6).map("".join))
@settings(max_examples=40, deadline=None)
def test_bits_of_words_full_of_bigrams(word):
    assert vector(word).astype(int).tolist() == naive(word, [2, 3, 4, 5], 50)


def test_the_example_of_the_paper():
    """Figure 1 of Almazán et al.: "beyond" is bey|ond, be|yo|nd, and all of its letters at level 1."""
    bits = vector("beyond", levels=[1, 2, 3], bigrams=0).reshape(6, 36)
    found = ["".join(sorted(ALPHABET[place] for place in np.flatnonzero(region))) for region in bits]
    assert found == ["bdenoy", "bey", "dno", "be", "oy", "dn"]


def test_a_character_on_the_border_is_in_both_halves():
    halves = vector("abc", levels=[2], bigrams=0).reshape(2, 36)
    assert [sorted(np.flatnonzero(half)) for half in halves] == [[0, 1], [1, 2]]
    assert vector("a", levels=[2], bigrams=0).reshape(2, 36)[:, 0].tolist() == [1, 1]
    assert vector("a", levels=[3], bigrams=0).sum() == 0  # a third of the only letter is less than half


def test_the_published_width_and_the_list_of_bigrams():
    assert PhocEncoder().feature_dim == 604
    assert len(BIGRAMS) == len(set(BIGRAMS)) == 50
    assert (BIGRAMS[:5], BIGRAMS[-2:]) == (("th", "he", "in", "er", "an"), ("om", "ur"))
    assert all(len(bigram) == 2 and set(bigram) <= set(ALPHABET) for bigram in BIGRAMS)
    assert vector("there")[504:].sum() > vector("there", bigrams=1)[504:].sum() == 1


@pytest.mark.parametrize(
    ("word", "spelling"),
    [("café", "cafe"), ("Äpfel", "apfel"), ("straße", "strasse"), ("２０", "20"), ("naïve犬", "naive"), ("犬", "")],
)
def test_spelling(word, spelling):
    assert spell(word) == spelling


def test_words_that_cannot_be_spelled_are_dropped():
    encoder = PhocEncoder()
    names, vectors = encoder.known(["dog", "犬", "café"])
    assert names == ["dog", "café"]
    np.testing.assert_array_equal(vectors[1], vector("cafe"))
    captions = ["A dog, a 犬: a CAFÉ", "犬", "", "?!"]
    sets = encoder.encode([encoder.preprocess(caption) for caption in captions])
    assert [tuple(found.shape) for found in sets] == [(5, 604), (0, 604), (0, 604), (0, 604)]
    expected = np.stack([vector(word) for word in ("a", "dog", "a", "a", "cafe")])
    np.testing.assert_array_equal(sets[0].numpy(), expected)
    assert all(found.dtype == torch.float32 for found in sets)
    assert encoder.most_vectors(captions) == 7
    assert encoder.encode([["犬"]])[0].shape == (0, 604)


def test_life_of_the_encoder():
    encoder = PhocEncoder()
    assert isinstance(encoder, Encoder)
    assert isinstance(encoder, WordTable)
    assert isinstance(encoder, Counting)
    encoder.prepare([], Path("unused"))
    back = PhocEncoder()
    back.restore(encoder.state())
    assert back.check() == []
    assert back.fingerprint() == encoder.fingerprint() == PhocEncoder(batch_size=2).fingerprint()
    others = [PhocEncoder([2, 3, 4]), PhocEncoder([5, 4, 3, 2]), PhocEncoder(bigrams=49)]
    assert len({str(made.fingerprint()) for made in [encoder, *others]}) == 4


def test_features_are_stored_as_a_table_of_words(tmp_path):
    captions = ["a dog and a cat", "犬", "a dog"]
    place = {"data_name": "few", "encoder_name": "text-phoc", "data_fingerprint": "d"}
    path = extract_words(PhocEncoder(), captions, [0, 1, 2], store=FeatureStore(tmp_path), **place)
    kept = FeatureFile(path).select(np.arange(3))
    assert kept.values.shape == (4, 604)  # a, dog, and, cat
    sets = PhocEncoder().encode([PhocEncoder.preprocess(caption) for caption in captions])
    batch = SetReader(kept).batch(torch.arange(3), torch.arange(3))
    for row, expected in enumerate(sets):
        assert torch.equal(batch.x[row][batch.mask[row]], expected)


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"levels": []}, r"levels must be one or more different positive numbers of regions, found \[\]"),
        ({"levels": [2, 0]}, r"levels .* found \[2, 0\]"),
        ({"levels": [2, 2]}, r"levels .* found \[2, 2\]"),
        ({"bigrams": 51}, "bigrams must be from 0 to 50, found 51"),
        ({"bigrams": -1}, "bigrams must be from 0 to 50, found -1"),
        ({"batch_size": 0}, "batch_size must be positive, found 0"),
    ],
)
def test_values_out_of_range(options, pattern):
    with pytest.raises(ConfigError, match=rf"text_encoder\.{pattern}"):
        PhocEncoder(**options)
