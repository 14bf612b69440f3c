"""A whole model as a folder of ONNX: encoders, what is left out and why, and use without xmodal."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoTokenizer

from xmodal.cli import main
from xmodal.encoders.fasttext import FastTextEncoder
from xmodal.export.graph import write_graph
from xmodal.export.parity import encoder_deviation
from xmodal.models import checkpoint

VECTORS = {"red": [1.0, 2.0, 3.0], "dogs": [0.5, -1.0, 2.0], "square": [0.0, 1.0, -1.0]}


def of(side: str, encoder: str, *settings: str) -> list[str]:
    return [f"{side}_encoder={encoder}", *(f"{side}_encoder.{setting}" for setting in settings)]


TRANSFORMER = ("hidden_size=16", "num_layers=2", "num_heads=2", "vocab_size=150")
PAIRS = {  # both sides at once, so that fewer models are built
    "vgg cut, bert cut": [
        *of("image", "vgg", "trainable_layers=1"),
        *of("text", "bert", *TRANSFORMER, "trainable_layers=1"),
    ],
    "timm grid, clip": [
        *of("image", "timm", "model=resnet10t", "pooling=grid"),
        *of("text", "clip", *TRANSFORMER),
    ],
    "clip whole, words": [
        *of("image", "clip", "hidden_size=16", "num_layers=1", "image_size=32", "trainable_layers=all"),
        *of("text", "words", "vector_size=5", "min_count=1"),
    ],
}
LEFT_OUT = {
    "frcnn cut, fasttext cut": [
        *of("image", "frcnn", "trainable_layers=1", "min_size=64", "max_size=96"),
        *of("text", "fasttext", "vector_size=5", "bucket=99", "trainable_layers=1"),
    ],
    "nothing known, phoc": of("text", "phoc"),
}
REASONS = {"frcnn": "as many boxes as it finds", "fasttext": "character n-grams", "phoc": "spells words out by a rule"}


def exported(place: Path, folder: Path) -> dict:
    assert main(["export", str(place), "--onnx", str(folder)]) == 0
    return json.loads((folder / "config.json").read_text())


def run(file: Path, **inputs: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(file).run(None, inputs)


def test_captions_are_embedded_with_nothing_but_the_folder(bert_checkpoint, bert_folders):
    folder = bert_folders.onnx
    described = json.loads((folder / "config.json").read_text())
    sentences = ["two dogs", "a red circle is left of nobody, over the green square"]
    told = described["text_encoder"]["preprocessing"]
    tokenizer = AutoTokenizer.from_pretrained(folder / told["tokenizer"])
    limits = {name: told[name] for name in ("padding", "truncation", "max_length")}
    found = tokenizer(sentences, return_tensors="np", **limits)
    inputs = {name: found[name].astype(np.int64) for name in described["text_encoder"]["inputs"]}
    sets, mask = run(folder / "text_encoder.onnx", **inputs)
    (embeddings,) = run(folder / "text_tower.onnx", features=sets, mask=mask)
    np.testing.assert_allclose(embeddings, checkpoint.load(bert_checkpoint).encode_texts(sentences), atol=1e-4)
    assert embeddings.shape[1] == described["embedding_dim"] == 8
    assert described["similarity"] == "cosine"
    assert 0 < described["largest_deviation"] <= described["tolerance"] == 1e-4


def test_an_encoder_that_is_not_known_is_left_out_in_words(bert_folders):
    described = json.loads((bert_folders.onnx / "config.json").read_text())
    assert "image_encoder.made_by" in described["image_encoder"]["left_out"]
    assert "image_encoder: left out. The image features of this model were read from" in bert_folders.printed
    assert sorted(file for file in described["files"] if file.endswith(".onnx")) == [
        "image_tower.onnx",
        "text_encoder.onnx",
        "text_tower.onnx",
    ]
    present = {file.relative_to(bert_folders.onnx).as_posix() for file in bert_folders.onnx.rglob("*.*")}
    assert present == {"config.json", *described["files"]}


def test_words_of_a_table_are_looked_up(tmp_path):
    lines = [f"{word} {' '.join(map(str, vector))}" for word, vector in VECTORS.items()]
    (tmp_path / "tiny.vec").write_text("\n".join(["3 3", *lines]) + "\n")
    encoder = FastTextEncoder(vectors=str(tmp_path / "tiny.vec"))
    encoder.prepare([], tmp_path)
    portable, file = encoder.portable(), tmp_path / "text_encoder.onnx"
    write_graph(portable.network, portable.tensors([["red", "dogs"], ["red"]]), portable.axes, ["sets", "m"], file)
    assert encoder_deviation(file, encoder, portable) == 0.0
    numbers = json.loads(portable.files[portable.preprocessing["vocabulary"]])
    words = np.array([[numbers["square"], numbers["red"]], [0, 0]])
    mask = np.array([[True, True], [False, False]])
    sets, kept = run(file, words=words, word_mask=mask)
    np.testing.assert_array_equal(sets, np.float32([[VECTORS["square"], VECTORS["red"]], [[0, 0, 0]] * 2]))
    assert np.array_equal(kept, mask)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_encoders_and_tails_give_what_torch_gives(name, save_checkpoint, tmp_path):
    described = exported(save_checkpoint(*PAIRS[name]), tmp_path / "onnx")
    for side in ("image", "text"):
        assert described[f"{side}_tower"]["deviation"] <= 1e-4
        assert described[f"{side}_encoder"]["deviation"] <= 1e-4
        assert described[f"{side}_encoder"]["preprocessing"]
    assert described["image_encoder"]["inputs"]["pixels"][:2] == ["batch", 3]


@pytest.mark.parametrize("name", LEFT_OUT)
def test_encoders_that_are_no_networks_say_so(name, save_checkpoint, tmp_path):
    described = exported(save_checkpoint(*LEFT_OUT[name]), tmp_path / "onnx")
    said = described["image_encoder"]["left_out"] + described["text_encoder"]["left_out"]
    assert all(reason in said for encoder, reason in REASONS.items() if encoder in name)
    assert described["largest_deviation"] <= 1e-4


@pytest.mark.slow
def test_a_detector_that_was_trained_from_pixels_is_refused_and_nothing_is_left(save_checkpoint, tmp_path, capsys):
    sizes = [f"image_encoder.{size}" for size in ("trainable_layers=all", "min_size=64", "max_size=64")]
    file = save_checkpoint("image_encoder=frcnn", *sizes, "text_encoder=phoc")
    assert main(["export", str(file), "--onnx", str(tmp_path / "a" / "onnx")]) == 2
    assert "image_tower can't be exported to ONNX" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_frozen_encoder_that_has_gone_is_left_out(bert_checkpoint, tmp_path):
    content = torch.load(bert_checkpoint, weights_only=True)
    content["xmodal"]["fingerprints"]["text"] = '{"weights": "0000"}'
    torch.save(content, tmp_path / "other.ckpt")
    described = exported(tmp_path / "other.ckpt", tmp_path / "onnx")
    assert "is not the one this model was trained with" in described["text_encoder"]["left_out"]
    assert not (tmp_path / "onnx" / "text_tokenizer").exists()
