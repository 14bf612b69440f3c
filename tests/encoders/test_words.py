"""Learned words: vocabulary, numbers, the table that learns, what it starts from, the way through a checkpoint."""

import gzip
import io
import logging
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from gensim.models import FastText
from gensim.models.fasttext import save_facebook_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from xmodal.aggregators.mean import MeanAggregator
from xmodal.encoders.protocol import Counting, Encoder, FineTuned, WordTable
from xmodal.encoders.word_vectors import stated_width
from xmodal.encoders.words import UNKNOWN, WordEmbeddings, WordsEncoder
from xmodal.errors import ConfigError, WeightsError
from xmodal.losses.triplet import TripletLoss
from xmodal.models.dual_encoder import DualEncoder
from xmodal.models.projection import Projection
from xmodal.models.tower import Tower
from xmodal.tokens import tokenize

CAPTIONS = ["A dog runs.", "a red dog", "The dog sees a ball!", "a ball", "a zebra?"]
VEC = "5 3\ndog 1 2 3\nthe 4 5 6\na 7 8 9\nunicorn 0 0 1\nball -1 -2 -3\n"
texts = st.lists(st.text(alphabet="aAbcéß犬 .", max_size=12), min_size=1, max_size=8)


def prepared(captions: list[str] | None = None, **options) -> WordsEncoder:
    made = WordsEncoder(**{"min_count": 1, "vector_size": 4, **options})
    made.prepare(CAPTIONS if captions is None else captions, Path("unused"))
    return made


def encode(encoder: WordsEncoder, *captions: str) -> list[list[float]]:
    sets = encoder.encode([encoder.preprocess(caption) for caption in captions])
    assert all(found.shape[1:] == (1,) and found.dtype == torch.float32 for found in sets)
    return [found[:, 0].tolist() for found in sets]


def from_file(path: Path, captions: list[str] | None = None, **options) -> WordsEncoder:
    return prepared(captions, vectors=str(path), **{"vector_size": None, **options})


@pytest.fixture
def vec(tmp_path: Path) -> Path:
    (tmp_path / "some.vec").write_text(VEC)
    return tmp_path / "some.vec"


@given(texts, st.integers(1, 3), st.randoms())
@settings(max_examples=60, deadline=None)
def test_numbers_are_those_of_the_frequent_words_in_whatever_order_captions_come(captions, min_count, random):
    counts: dict[str, int] = {}
    for caption in captions:
        for word in tokenize(caption):
            counts[word] = counts.get(word, 0) + 1
    frequent = []
    for count in range(max(counts.values(), default=0), min_count - 1, -1):
        frequent += sorted(word for word in counts if counts[word] == count)
    if not frequent:
        with pytest.raises(ConfigError, match="training captions"):
            prepared(captions, min_count=min_count)
        return
    encoder = prepared(captions, min_count=min_count)
    expected = [
        [frequent.index(word) + 1.0 if word in frequent else 0.0 for word in tokenize(caption)] for caption in captions
    ]
    assert encode(encoder, *captions) == expected
    assert encoder.most_vectors(captions) == sum(map(len, expected))
    shuffled = random.sample(captions, len(captions))
    assert prepared(shuffled, min_count=min_count).fingerprint() == encoder.fingerprint()


def test_rare_and_unseen_words_are_unknown_and_never_dropped():
    encoder = prepared(min_count=2)
    assert list(encoder.vocabulary) == ["a", "dog", "ball"]
    assert encode(encoder, "A zebra, a giraffe: the Ball", "", "...", "zebra") == [[1, 0, 1, 0, 0, 3], [], [], [0]]
    assert UNKNOWN == 0


def test_it_is_an_encoder_whose_sets_are_never_stored_as_a_table():
    encoder = prepared()
    assert isinstance(encoder, Encoder)
    assert isinstance(encoder, FineTuned)
    assert isinstance(encoder, Counting)
    assert not isinstance(encoder, WordTable)
    assert (encoder.feature_dim, encoder.needs_float32, encoder.trainable_layers) == (1, True, "all")
    assert WordsEncoder().feature_dim == 1  # before anything is prepared
    with pytest.raises(RuntimeError, match=r"call prepare\(\) or restore\(\)"):
        WordsEncoder().encode([["a"]])


def test_many_words_keep_their_numbers():
    names = [f"w{number}" for number in range(5000)]
    encoder = prepared([" ".join(names)])
    (numbers,) = encode(encoder, " ".join(names))
    assert sorted(numbers) == list(range(1, 5001))


def test_the_table_starts_uniform_and_alike_for_a_seed():
    captions = [" ".join(f"w{number}" for number in range(400))]
    table = prepared(captions, init_range=0.3, vector_size=None).tail().table.weight.detach()
    assert table.shape == (401, 300)
    assert float(table.abs().max()) <= 0.3
    # of the uniform distribution in ±0.3, over 120,300 entries
    np.testing.assert_allclose([float(table.mean()), float(table.std())], [0, 0.3 / np.sqrt(3)], atol=2e-3)
    again, other = (prepared(captions, init_range=0.3, vector_size=None, seed=seed).tail() for seed in (0, 1))
    assert torch.equal(again.table.weight, table)
    assert not torch.equal(other.table.weight, table)
    state = torch.random.get_rng_state()
    again = prepared(captions).tail()
    assert torch.equal(torch.random.get_rng_state(), state), "weights drawn elsewhere would depend on the vocabulary"


@given(st.lists(st.lists(st.integers(0, 6), max_size=5), min_size=1, max_size=4), st.integers(0, 2), st.randoms())
@settings(max_examples=60, deadline=None)
def test_words_become_their_rows_and_padding_may_hold_anything(sentences, spare, random):
    table = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    tail = WordEmbeddings(table.clone(), word_dropout=0.5).eval()
    longest = max(1, max(map(len, sentences)) + spare)
    x, mask = torch.empty(len(sentences), longest, 1), torch.zeros(len(sentences), longest, dtype=torch.bool)
    junk = (float("nan"), float("inf"), -1e30, 99.0, -1.0)
    for row, numbers in enumerate(sentences):
        for place in range(longest):
            inside = place < len(numbers)
            x[row, place, 0], mask[row, place] = numbers[place] if inside else random.choice(junk), inside
    found, kept = tail(x, mask)
    assert torch.equal(kept, mask)
    for row, numbers in enumerate(sentences):
        for place in range(longest):
            expected = table[numbers[place]] if place < len(numbers) else torch.zeros(3)
            assert torch.equal(found[row, place], expected)
    found.sum().backward()
    counts = Counter(number for numbers in sentences for number in numbers)
    assert tail.table.weight.grad[:, 0].tolist() == [counts[number] for number in range(7)]


def test_a_batch_of_empty_captions_gives_gradients_too():
    """A process that waits for the gradients of others must get some."""
    tail = prepared().tail()
    found, _ = tail(torch.full((2, 1, 1), float("nan")), torch.zeros(2, 1, dtype=torch.bool))
    found.sum().backward()
    assert float(tail.table.weight.grad.abs().sum()) == 0


def test_a_share_of_words_is_unknown_in_training_alone():
    torch.manual_seed(0)
    tail = WordEmbeddings(torch.arange(4.0).unsqueeze(1), word_dropout=0.3)
    x, mask = torch.randint(1, 4, (200, 50, 1)).float(), torch.ones(200, 50, dtype=torch.bool)
    found = tail.train()(x, mask)[0]
    assert torch.equal(found[found != 0], x[found != 0])
    assert float((found == 0).float().mean()) == pytest.approx(0.3, abs=0.02)  # of 10,000
    assert not torch.equal(tail(x, mask)[0], found)
    found.sum().backward()
    assert float(tail.table.weight.grad[UNKNOWN]) == float((found == 0).sum())
    assert torch.equal(tail.eval()(x, mask)[0], x)
    always = WordEmbeddings(torch.arange(4.0).unsqueeze(1)).train()
    assert torch.equal(always(x, mask)[0], x)


def test_vectors_of_a_file_are_what_known_words_start_from(vec, caplog):
    with caplog.at_level(logging.INFO, logger="xmodal"):
        encoder = from_file(vec, min_count=2)
    assert "some.vec has vectors of 3 of these 3 words" in caplog.text
    table = encoder.tail().table.weight.detach()
    numbers = encoder.vocabulary
    assert table.shape == (4, 3)
    assert [table[numbers[word]].tolist() for word in ("a", "dog", "ball")] == [[7, 8, 9], [1, 2, 3], [-1, -2, -3]]
    assert float(table[UNKNOWN].abs().max()) <= 0.1
    everything = from_file(vec)
    start, random = everything.tail().table.weight, prepared(vector_size=3).tail().table.weight
    given_words = {"a", "dog", "ball", "the"}
    for word, number in everything.vocabulary.items():
        assert torch.equal(start[number], random[number]) == (word not in given_words), word


def test_vectors_of_ngrams_reach_every_word(tmp_path):
    model = FastText([tokenize(caption) for caption in CAPTIONS], vector_size=6, min_count=3, bucket=50, workers=1)
    save_facebook_model(model, str(tmp_path / "some.bin"))
    encoder = from_file(tmp_path / "some.bin")
    table = encoder.tail().table.weight.detach().numpy()
    assert "zebra" not in model.wv.key_to_index
    np.testing.assert_allclose(table[encoder.vocabulary["zebra"]], model.wv["zebra"], rtol=1e-5)
    assert stated_width(tmp_path / "some.bin") == 6


def test_a_width_that_contradicts_the_file_is_a_fault_before_the_file_is_read(vec):
    packed = vec.with_name("some.vec.gz")
    packed.write_bytes(gzip.compress(VEC.encode()))
    expected = r"vector_size=300: the vectors of .*some\.vec(\.gz)? are 3 wide.*vector_size=null takes the file's width"
    for path in (vec, packed):
        (fault,) = WordsEncoder(vectors=str(path), vector_size=300).check()
        with pytest.raises(ConfigError, match=expected):
            raise ConfigError(fault)
        with pytest.raises(ConfigError, match=expected):
            from_file(path, vector_size=300)
        assert WordsEncoder(vectors=str(path), vector_size=3).check() == []
        assert WordsEncoder(vectors=str(path)).check() == []
    (fault,) = WordsEncoder(vectors="/nowhere/some.vec").check()
    assert "no file /nowhere/some.vec" in fault
    assert WordsEncoder().check() == []


def test_files_that_state_no_width(tmp_path):
    for name, content in {"a.vec": b"", "b.bin": b"123", "c.vec.gz": b"no", "d.bin": bytes(40)}.items():
        (tmp_path / name).write_bytes(content)
        assert stated_width(tmp_path / name) is None
        with pytest.raises(WeightsError, match=name):
            from_file(tmp_path / name)


def test_the_state_names_the_words_alone_and_brings_the_encoder_back(vec):
    for encoder in (prepared(min_count=2), from_file(vec)):
        buffer = io.BytesIO()
        torch.save(encoder.state(), buffer)
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
        assert not any(isinstance(value, Tensor) for value in state.values()), "the table is the model's"
        options = {"vectors": encoder.vectors, "vector_size": encoder.vector_size, "min_count": encoder.min_count}
        back = WordsEncoder(**options)
        back.restore(state)
        assert back.fingerprint() == encoder.fingerprint()
        assert back.state() == encoder.state()
        assert encode(back, *CAPTIONS, "a giraffe") == encode(encoder, *CAPTIONS, "a giraffe")
        tail = back.tail()
        tail.load_state_dict(encoder.tail().state_dict())
        assert torch.equal(tail.table.weight, encoder.tail().table.weight)
        back.prepare(["other words"], Path("unused"))  # prepared already: nothing happens
        assert back.vocabulary == encoder.vocabulary


def test_the_fingerprint_tells_words_and_start_and_nothing_else(vec):
    same = [prepared(), prepared(batch_size=3), prepared(word_dropout=0.4), prepared(CAPTIONS[::-1])]
    assert len({str(encoder.fingerprint()) for encoder in same}) == 1
    other = [prepared(min_count=2), prepared(CAPTIONS[:3]), prepared(seed=1), prepared(init_range=0.2)]
    other += [prepared(vector_size=5), from_file(vec), prepared(vector_size=3)]
    vec.write_text(VEC.replace("-3", "-4"))
    other.append(from_file(vec))
    assert len({str(encoder.fingerprint()) for encoder in [same[0], *other]}) == len(other) + 1
    assert same[0].fingerprint()["trainable_layers"] == "all"


def test_what_the_vocabulary_covers_is_said(caplog):
    with caplog.at_level(logging.INFO, logger="xmodal"):
        prepared(min_count=2)
    assert "3 of 8 distinct words occur at least 2 times (text_encoder.min_count) in 5 training captions" in caplog.text
    assert "66.67 % of the running words" in caplog.text  # 10 of 15
    assert "No training word is <unk>" not in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="xmodal"):
        prepared()
        assert "No training word is <unk>" in caplog.text
        caplog.clear()
        prepared(word_dropout=0.1)
    assert "No training word is <unk>" not in caplog.text


def test_a_vocabulary_without_words_is_refused():
    with pytest.raises(ConfigError, match=r"min_count=9: no word occurs that often in the 5 .* 'a', occurs 5 times"):
        prepared(min_count=9)
    for captions in ([], ["...", ""]):
        with pytest.raises(ConfigError, match=f"found no words in {len(captions)} of them"):
            prepared(captions)


def test_values_out_of_range():
    with pytest.raises(ConfigError) as caught:
        WordsEncoder(None, 0, 0, float("inf"), -1, 1.0, 0, 0)
    names = ("vector_size", "min_count", "init_range", "batch_size", "seed", "word_dropout", "trainable_layers")
    assert [fault.split()[0] for fault in caught.value.faults] == [f"text_encoder.{name}" for name in names]
    with pytest.raises(ConfigError, match=r"found 1\. For vectors that stay as they are: text_encoder=fasttext"):
        WordsEncoder(trainable_layers=1)


class Pretrained(nn.Module):
    """Last layers of some encoder, which have learned before."""

    output_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), mask


@pytest.fixture
def model() -> DualEncoder:
    make = partial(Projection, output_dim=3, num_layers=1)
    towers = [Tower(4, MeanAggregator(4), make, standardize=False) for _ in range(2)]
    towers[0].attach(Pretrained())
    towers[1].attach(prepared().tail())
    sgd = partial(torch.optim.SGD, lr=1.0)
    return DualEncoder(*towers, loss=TripletLoss(), optimizer=sgd, tail_lr_factor=0.25, unfreeze_epoch=2)


def test_the_table_learns_at_the_rate_of_the_heads(model):
    heads, tail = model.configure_optimizers().param_groups
    table = model.text_tower.tail.table.weight
    assert (heads["lr"], tail["lr"]) == (1.0, 0.25)
    assert any(parameter is table for parameter in heads["params"])
    assert [parameter.shape for parameter in tail["params"]] == [(4, 4), (4,)]


def test_the_table_does_not_wait_for_other_layers(model):
    model.on_train_epoch_start()
    pretrained, words = model.image_tower.tail, model.text_tower.tail
    assert not any(parameter.requires_grad for parameter in pretrained.parameters())
    assert words.table.weight.requires_grad
    model.train()
    assert (pretrained.training, words.training) == (False, True)
    assert not model.eval().text_tower.tail.training
