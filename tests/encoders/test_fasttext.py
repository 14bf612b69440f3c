"""Word vectors: every source of them, unknown words, reproducible training, the way into a checkpoint and back."""

import gzip
import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gensim.models import FastText
from gensim.models.fasttext import load_facebook_vectors, save_facebook_model

from xmodal.encoders.fasttext import FastTextEncoder
from xmodal.encoders.protocol import Counting, Encoder, WordTable
from xmodal.errors import ConfigError, WeightsError
from xmodal.tokens import tokenize
from xmodal.types import RaggedFeatures

CAPTIONS = [
    "A dog runs over the grass.",
    "two dogs running on a beach",
    "A red ball lies on green grass!",
    "the beach is red at night",
] * 5
SMALL = {"vector_size": 12, "epochs": 3, "bucket": 500}
VEC = "4 3\nthe 1 2 3\ndog 0.5 -1 0\nred 0 0 1\nball 7 8 9\n"


def encode(encoder: FastTextEncoder, *captions: str) -> list[torch.Tensor]:
    return encoder.encode([encoder.preprocess(caption) for caption in captions])


def from_file(path: Path, captions: list[str] | None = None, **options) -> FastTextEncoder:
    made = FastTextEncoder(vectors=str(path), **options)
    made.prepare(captions or [], Path("unused"))
    return made


def trained(cache: Path, **options) -> FastTextEncoder:
    made = FastTextEncoder(**{**SMALL, **options})
    made.prepare(CAPTIONS, cache)
    return made


@pytest.fixture(params=["vectors.vec", "vectors.vec.gz"])
def vec_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    path.write_bytes(gzip.compress(VEC.encode()) if path.suffix == ".gz" else VEC.encode())
    return path


@pytest.fixture(scope="module")
def gensim_model() -> FastText:
    return FastText(
        [tokenize(caption) for caption in CAPTIONS], vector_size=8, min_count=1, bucket=300, seed=1, workers=1
    )


def test_vec_keeps_order_and_drops_unknown_words(vec_file: Path):
    encoder = from_file(vec_file)
    known, nothing, empty = encode(encoder, "The RED cat, the dog!", "zebra crossing", "")
    assert known.tolist() == [[1, 2, 3], [0, 0, 1], [1, 2, 3], [0.5, -1, 0]]
    assert known.dtype == torch.float32
    assert tuple(nothing.shape) == tuple(empty.shape) == (0, 3)
    assert encoder.feature_dim == 3
    assert [tuple(found.shape) for found in encode(encoder, "zebra")] == [(0, 3)]


def test_coverage_is_logged(vec_file: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        from_file(vec_file, ["the dog sleeps", "the dog"])
    assert (
        "80.00 % of the running words of 2 training captions and 2 of their 3 distinct words (66.67 %)" in caplog.text
    )
    assert "unknown words are dropped" in caplog.text
    assert "no known word" not in caplog.text


def test_captions_without_a_known_word_are_counted(vec_file: Path, caplog: pytest.LogCaptureFixture):
    from_file(vec_file, ["the dog sleeps", "zebra crossing", "elephants"])
    assert "2 of 3 training captions have no known word" in caplog.text


def test_facebook_bin_makes_vectors_of_unknown_words(tmp_path: Path, gensim_model: FastText):
    path = tmp_path / "wiki.bin"
    save_facebook_model(gensim_model, str(path))
    oracle = load_facebook_vectors(str(path))
    encoder = from_file(path)
    [found] = encode(encoder, "dog doggish grassland q")
    assert "doggish" not in oracle.key_to_index
    expected = np.stack([oracle["dog"], oracle["doggish"], oracle["grassland"], oracle["q"]])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-7)


def test_facebook_bin_without_ngrams_drops_unknown_words(tmp_path: Path):
    model = FastText([tokenize(caption) for caption in CAPTIONS], vector_size=8, min_count=1, max_n=0, workers=1)
    save_facebook_model(model, str(tmp_path / "plain.bin"))
    [found] = encode(from_file(tmp_path / "plain.bin"), "dog doggish")
    np.testing.assert_allclose(found.numpy(), model.wv["dog"][None], rtol=1e-5)


def test_trained_here_is_gensims_fasttext(tmp_path: Path):
    encoder = trained(tmp_path)
    model = FastText(
        [tokenize(caption) for caption in CAPTIONS],
        vector_size=12, epochs=3, bucket=500, min_count=1, sg=1, seed=0, workers=1,
    )  # fmt: skip
    [found] = encode(encoder, "dog doggish")
    np.testing.assert_allclose(found.numpy(), np.stack([model.wv["dog"], model.wv["doggish"]]), rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_training_gives_the_same_vectors_in_every_process(tmp_path: Path):
    script = (
        "import sys, pathlib\n"
        "from xmodal.encoders.fasttext import FastTextEncoder\n"
        f"encoder = FastTextEncoder(vector_size=12, epochs=3, bucket=500)\n"
        f"encoder.prepare({CAPTIONS!r}, pathlib.Path(sys.argv[1]))\n"
        "print(encoder.fingerprint()['weights'])\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "there")]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == trained(tmp_path / "here").fingerprint()["weights"]


def test_training_is_cached_by_captions_and_parameters(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    first = trained(tmp_path)
    [cached] = tmp_path.iterdir()
    assert cached.name.startswith("fasttext-")
    with caplog.at_level(logging.INFO):
        assert trained(tmp_path).fingerprint() == first.fingerprint()
    assert "Training" not in caplog.text
    different = [trained(tmp_path, epochs=4), trained(tmp_path, seed=1), FastTextEncoder(**SMALL)]
    different[2].prepare(CAPTIONS[:-1], tmp_path)
    assert len({encoder.fingerprint()["weights"] for encoder in [first, *different]}) == 4
    assert len(list(tmp_path.iterdir())) == 4


def test_damaged_cache_is_trained_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    first = trained(tmp_path)
    [cached] = tmp_path.iterdir()
    for content in (cached.read_bytes()[:1000], b"", b"nonsense"):
        cached.write_bytes(content)
        caplog.clear()
        assert trained(tmp_path).fingerprint() == first.fingerprint()
        assert "can't be read" in caplog.text
    assert list(tmp_path.iterdir()) == [cached]


@pytest.mark.parametrize("source", ["trained", "bin", "vec"])
def test_state_carries_the_table(tmp_path: Path, source: str, gensim_model: FastText):
    if source == "trained":
        first, second = trained(tmp_path), FastTextEncoder(**SMALL)
    else:
        path = tmp_path / f"file.{source}"
        path.write_text(VEC) if source == "vec" else save_facebook_model(gensim_model, str(path))
        first, second = from_file(path), FastTextEncoder(vectors=str(path))
    torch.save(first.state(), tmp_path / "state")
    for file in tmp_path.glob("f*.*"):
        file.unlink()
    second.restore(torch.load(tmp_path / "state", weights_only=True))
    captions = ["the dog runs", "doggish beaches", "", "naïve 日本 dog"]
    for before, after in zip(encode(first, *captions), encode(second, *captions), strict=True):
        assert torch.equal(before, after)
    assert second.fingerprint() == first.fingerprint()
    assert second.state().keys() == first.state().keys()


def test_large_table_is_named_and_read_again(vec_file: Path):
    first = from_file(vec_file, embed_limit_mb=0.0)
    state = json.loads(json.dumps(first.state()))
    assert set(state) == {"path", "digest"}
    second = FastTextEncoder(vectors="elsewhere.vec")
    second.restore(state)
    assert torch.equal(encode(second, "the dog")[0], encode(first, "the dog")[0])

    vec_file.with_name("changed.vec").write_text(VEC.replace("7", "6"))
    with pytest.raises(WeightsError, match=r"changed\.vec are not those .* has digest"):
        second.restore({**state, "path": str(vec_file.with_name("changed.vec"))})
    vec_file.unlink()
    with pytest.raises(WeightsError, match=r"no file .*vectors\.vec.*: put it back"):
        second.restore(state)


def test_large_trained_table_is_read_from_the_cache(tmp_path: Path):
    first = trained(tmp_path, embed_limit_mb=0.0)
    second = FastTextEncoder(**SMALL)
    second.restore(first.state())
    assert second.fingerprint() == first.fingerprint()


@pytest.mark.parametrize("name", ["bad.vec", "bad.vec.gz", "bad.bin"])
@pytest.mark.parametrize(
    "content", [b"", b"no header at all\n", b"3 2\na 1 2\nb 3 4\n", b"2 3\na 1 2 3\nb 3 4\n", b"\x00" * 64]
)
def test_damaged_file_is_named(tmp_path: Path, name: str, content: bytes):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{name}"):
        from_file(path)


def test_truncated_gz_is_named(tmp_path: Path):
    content = gzip.compress(("200 3\n" + "".join(f"w{i} {i} 1 2\n" for i in range(200))).encode())
    (tmp_path / "half.vec.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match=r"Can't read the vectors .*half\.vec\.gz: .*damaged: fetch it again"):
        from_file(tmp_path / "half.vec.gz")


def test_vectors_that_are_not_numbers(tmp_path: Path):
    (tmp_path / "nan.vec").write_text("2 2\na nan 2\nb 3 4\n")
    with pytest.raises(WeightsError, match=r"nan\.vec: the vectors of 1 of 2 words are not finite"):
        from_file(tmp_path / "nan.vec")


def test_absent_and_unknown_files_are_found_before_anything_loads(tmp_path: Path):
    assert "no file" in FastTextEncoder(vectors=str(tmp_path / "none.vec")).check()[0]
    assert "ends in none of .bin, .vec, .vec.gz" in FastTextEncoder(vectors="glove.6B.50d.txt").check()[0]
    assert FastTextEncoder().check() == []
    with pytest.raises(WeightsError, match=r"text_encoder\.vectors: no file .*none\.vec"):
        from_file(tmp_path / "none.vec")


@pytest.mark.parametrize("captions", [[], ["", "!!!"]])
def test_nothing_to_train_on(tmp_path: Path, captions: list[str]):
    with pytest.raises(WeightsError, match=rf"no word occurs 1 times .* in the {len(captions)} training captions"):
        FastTextEncoder(**SMALL).prepare(captions, tmp_path)


def test_is_an_encoder_that_workers_can_use(vec_file: Path):
    encoder = from_file(vec_file)
    encoder.to("cpu")
    assert isinstance(encoder, Encoder)
    assert len(pickle.dumps(encoder.preprocess)) < 1000
    with pytest.raises(RuntimeError, match=r"call prepare\(\) or restore\(\) first"):
        FastTextEncoder().encode([["dog"]])


def test_all_parameters_out_of_range_are_named():
    with pytest.raises(ConfigError) as caught:
        FastTextEncoder(vector_size=0, epochs=-1, seed=-2)
    assert caught.value.faults == (
        "text_encoder.vector_size must be positive, found 0.",
        "text_encoder.epochs must be positive, found -1.",
        "text_encoder.seed must not be negative, found -2.",
    )


def test_real_glove(real_data: Path, caplog: pytest.LogCaptureFixture):
    images = json.loads((real_data / "flickr8k" / "dataset.json").read_text())["images"]
    captions = [sentence["raw"] for image in images for sentence in image["sentences"]]
    with caplog.at_level(logging.INFO):
        encoder = from_file(real_data / "vectors" / "glove-50d.vec.gz", captions)
    coverage = float(caplog.messages[-1].split(" % of the running")[0].split()[-1])
    assert 99 < coverage < 100
    sets = encode(encoder, *captions)
    with gzip.open(real_data / "vectors" / "glove-50d.vec.gz", "rt") as file:
        oracle = {word: list(map(float, rest)) for word, *rest in map(str.split, file.readlines()[1:])}
    assert encoder.feature_dim == 50
    for caption, found in list(zip(captions, sets, strict=True))[::500]:
        expected = [oracle[word] for word in tokenize(caption) if word in oracle]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    running = [len(tokenize(caption)) for caption in captions]
    assert coverage == pytest.approx(100 * sum(map(len, sets)) / sum(running), abs=0.01)


def trainable(path: Path, captions: list[str], **options) -> FastTextEncoder:
    return from_file(path, captions, **{"trainable_layers": 1, **options})


def through(tail: torch.nn.Module, sets: list[torch.Tensor]) -> list[torch.Tensor]:
    rows = np.arange(len(sets))
    batch = RaggedFeatures.from_sets([found.numpy() for found in sets]).pad(rows, rows)
    x, mask = tail(batch.x, batch.mask)
    return [vectors[kept] for vectors, kept in zip(x, mask, strict=True)]


def test_at_the_cut_a_word_is_its_place_and_its_vector(vec_file: Path):
    encoder = trainable(vec_file, ["the zebra", "the red"])
    assert encoder.feature_dim == 4
    assert encoder.needs_float32
    [found] = encode(encoder, "red ball zebra the")
    assert found.tolist() == [[1, 0, 0, 1], [-1, 7, 8, 9], [0, 1, 2, 3]]
    tail = encoder.tail()
    assert tail.output_dim == 3
    assert tail.table.weight.tolist() == [[1, 2, 3], [0, 0, 1]]


@pytest.mark.parametrize("layers", [1, "all"])
def test_cut_and_tail_are_the_encoder(tmp_path: Path, layers: int | str):
    whole, cut = trained(tmp_path), trained(tmp_path, trainable_layers=layers)
    captions = ["the dog runs", "doggish beaches", "", "naïve 日本 dog on the grass", "q"]
    for found, expected in zip(through(cut.tail(), encode(cut, *captions)), encode(whole, *captions), strict=True):
        assert torch.equal(found, expected)


def test_gradients_reach_the_words_that_occur(vec_file: Path):
    encoder = trainable(vec_file, ["the dog is red"])
    tail = encoder.tail()
    torch.cat(through(tail, encode(encoder, "red ball the the", "red"))).sum().backward()
    assert tail.table.weight.grad.tolist() == [[2, 2, 2], [0, 0, 0], [2, 2, 2]]  # padding adds nothing
    tail.table.weight.data.zero_()
    assert encode(encoder, "the")[0].tolist() == [[0, 1, 2, 3]]  # the encoder's own table is another one


def test_training_from_the_cut_is_training_the_table(vec_file: Path):
    captions = ["the dog", "red ball the", "ball dog zebra red"]
    encoder = trainable(vec_file, captions[:2])
    tail, words = encoder.tail(), {"the": [1, 2, 3], "dog": [0.5, -1, 0], "red": [0, 0, 1], "ball": [7, 8, 9]}
    table = {word: torch.tensor(values, dtype=torch.float32, requires_grad=True) for word, values in words.items()}
    cached = [encode(encoder, caption) for caption in captions]
    optimizers = [torch.optim.SGD(tail.parameters(), lr=0.1), torch.optim.SGD(table.values(), lr=0.1)]
    for caption, sets in zip(captions, cached, strict=True):
        by_hand = torch.stack([table[word] for word in caption.split() if word in table])
        for found, optimizer in zip((through(tail, sets)[0], by_hand), optimizers, strict=True):
            optimizer.zero_grad()
            found.sin().mean().backward()
            optimizer.step()
    torch.testing.assert_close(tail.table.weight, torch.stack([table[word] for word in ("the", "dog", "red", "ball")]))


@pytest.mark.parametrize("embed_limit_mb", [0.0, 256.0])
def test_state_carries_the_trained_words(vec_file: Path, embed_limit_mb: float):
    first = trainable(vec_file, ["the zebra", "the red"], embed_limit_mb=embed_limit_mb)
    second = FastTextEncoder(vectors=str(vec_file), trainable_layers=1)
    second.restore(first.state())
    assert second.fingerprint() == first.fingerprint()
    assert torch.equal(encode(second, "red ball")[0], encode(first, "red ball")[0])
    assert torch.equal(second.tail().table.weight, first.tail().table.weight)


def test_fingerprint_tells_other_training_words(vec_file: Path):
    plain = from_file(vec_file, ["the dog"]).fingerprint()
    assert plain == from_file(vec_file, ["the red"]).fingerprint()
    assert plain.keys() == {"encoder", "weights"}
    one, other, same = (trainable(vec_file, [text]).fingerprint() for text in ("the dog", "the red", "the dog dog"))
    assert one["trainable_layers"] == 1
    assert one == same != other


def test_trained_words_need_training_captions(vec_file: Path):
    with pytest.raises(ConfigError, match=r"trainable_layers=1 trains .*no training captions.*trainable_layers=0"):
        trainable(vec_file, [])


@pytest.mark.parametrize("layers", [0, 1])
def test_table_of_distinct_words_gives_the_same_sets(vec_file: Path, layers: int):
    encoder = from_file(vec_file, ["the red", "the"], trainable_layers=layers)
    assert isinstance(encoder, WordTable)
    assert isinstance(encoder, Counting)
    caption = "The RED cat, the ball!"
    assert encoder.words(caption) == ["the", "red", "cat", "the", "ball"]
    names, vectors = encoder.known(["ball", "cat", "the", "red"])
    assert names == ["ball", "the", "red"]
    assert vectors.dtype == np.float32
    rows = [names.index(word) for word in encoder.words(caption) if word in names]
    np.testing.assert_array_equal(vectors[rows], encode(encoder, caption)[0].numpy())
    assert encoder.known([])[1].shape == (0, encoder.feature_dim)
    assert encoder.most_vectors([caption, "zebra"]) == 6
