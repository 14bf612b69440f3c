"""A whole model as a folder of ONNX: encoders, what is left out and why, and use without xmodal."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoTokenizer

from xmodal.cli import main
from xmodal.models import checkpoint

VECTORS = {"red": [1.0, 2.0, 3.0], "dogs": [0.5, -1.0, 2.0], "square": [0.0, 1.0, -1.0]}


def exported(place: Path, folder: Path) -> dict:
    assert main(["export", str(place), "--onnx", str(folder)]) == 0
    return json.loads((folder / "config.json").read_text())


def run(file: Path, **inputs: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(file).run(None, inputs)


def test_captions_are_embedded_with_nothing_but_the_folder(bert_checkpoint, tmp_path):
    described = exported(bert_checkpoint, tmp_path / "onnx")
    sentences = ["two dogs", "a red circle is left of nobody, over the green square"]
    told = described["text_encoder"]["preprocessing"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "onnx" / told["tokenizer"])
    limits = {name: told[name] for name in ("padding", "truncation", "max_length")}
    found = tokenizer(sentences, return_tensors="np", **limits)
    inputs = {name: found[name].astype(np.int64) for name in described["text_encoder"]["inputs"]}
    sets, mask = run(tmp_path / "onnx" / "text_encoder.onnx", **inputs)
    (embeddings,) = run(tmp_path / "onnx" / "text_tower.onnx", features=sets, mask=mask)
    expected = checkpoint.load(bert_checkpoint).encode_texts(sentences)
    np.testing.assert_allclose(embeddings, expected, atol=1e-4)
    assert embeddings.shape[1] == described["embedding_dim"] == 8
    assert described["similarity"] == "cosine"
    assert 0 < described["largest_deviation"] <= described["tolerance"] == 1e-4


def test_an_encoder_that_is_not_known_is_left_out_in_words(bert_checkpoint, tmp_path, capsys):
    described = exported(bert_checkpoint, tmp_path / "onnx")
    assert "image_encoder.made_by" in described["image_encoder"]["left_out"]
    assert "image_encoder: left out. The image features of this model were read from" in capsys.readouterr().out
    assert sorted(file for file in described["files"] if file.endswith(".onnx")) == [
        "image_tower.onnx",
        "text_encoder.onnx",
        "text_tower.onnx",
    ]
    present = {file.relative_to(tmp_path / "onnx").as_posix() for file in (tmp_path / "onnx").rglob("*.*")}
    assert present == {"config.json", *described["files"]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (["text_encoder=fasttext", "text_encoder.vector_size=6", "text_encoder.bucket=100"], "character n-grams"),
        (["text_encoder=phoc"], "spells words out by a rule"),
    ],
)
def test_encoders_that_are_no_networks_say_so(save_checkpoint, text, reason, tmp_path):
    described = exported(save_checkpoint(*text), tmp_path / "onnx")
    assert reason in described["text_encoder"]["left_out"]
    assert described["text_tower"]["deviation"] <= 1e-4


def test_words_of_a_table_are_looked_up(save_checkpoint, tmp_path):
    lines = [f"{word} {' '.join(map(str, vector))}" for word, vector in VECTORS.items()]
    (tmp_path / "tiny.vec").write_text("\n".join(["3 3", *lines]) + "\n")
    file = save_checkpoint("text_encoder=fasttext", f"text_encoder.vectors={tmp_path / 'tiny.vec'}")
    told = exported(file, tmp_path / "onnx")["text_encoder"]["preprocessing"]
    numbers = json.loads((tmp_path / "onnx" / told["vocabulary"]).read_text())
    words = np.array([[numbers["square"], numbers["red"]], [0, 0]])
    mask = np.array([[True, True], [False, False]])
    sets, kept = run(tmp_path / "onnx" / "text_encoder.onnx", words=words, word_mask=mask)
    np.testing.assert_array_equal(sets, np.float32([[VECTORS["square"], VECTORS["red"]], [[0, 0, 0]] * 2]))
    assert np.array_equal(kept, mask)
    assert told["unknown_words"] == "dropped"


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        ["text_encoder=words", "text_encoder.vector_size=5", "text_encoder.min_count=1"],
        ["text_encoder=fasttext", "text_encoder.vector_size=5", "text_encoder.bucket=99", "text_encoder.trainable_layers=1"],
        ["text_encoder=bert", "text_encoder.trainable_layers=1", "text_encoder.pooling=cls"],
        ["text_encoder=bert", "text_encoder.trainable_layers=all", "text_encoder.pooling=mean"],
        ["text_encoder=clip", "text_encoder.trainable_layers=all"],
        ["text_encoder=clip"],
    ],
    ids=lambda text: " ".join(line.removeprefix("text_encoder") for line in text),
)  # fmt: skip
def test_text_encoders_and_their_tails(save_checkpoint, text, tmp_path):
    sizes = [f"text_encoder.{size}" for size in ("hidden_size=16", "num_layers=2", "num_heads=2", "vocab_size=150")]
    needed = sizes if text[0].rpartition("=")[2] in ("bert", "clip") else []
    described = exported(save_checkpoint(text[0], *needed, *text[1:]), tmp_path / "onnx")
    assert ("left_out" in described["text_encoder"]) == ("fasttext" in text[0])
    assert described["largest_deviation"] <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "image",
    [
        ["image_encoder=timm", "image_encoder.model=resnet10t", "image_encoder.pooling=grid"],
        ["image_encoder=timm", "image_encoder.model=resnet10t", "image_encoder.trainable_layers=all"],
        ["image_encoder=clip", *(f"image_encoder.{size}" for size in ("hidden_size=16", "num_layers=1", "image_size=32"))],
        ["image_encoder=vgg", "image_encoder.trainable_layers=1"],
        ["image_encoder=frcnn", "image_encoder.trainable_layers=1", "image_encoder.min_size=64", "image_encoder.max_size=96"],
    ],
    ids=lambda image: " ".join(line.removeprefix("image_encoder") for line in image),
)  # fmt: skip
def test_image_encoders_and_their_tails(save_checkpoint, image, tmp_path):
    file = save_checkpoint(*image, "text_encoder=phoc")
    described = exported(file, tmp_path / "onnx")
    assert ("left_out" in described["image_encoder"]) == ("frcnn" in image[0])
    assert described["largest_deviation"] <= 1e-4
    if "left_out" not in described["image_encoder"]:
        size = described["image_encoder"]["inputs"]["pixels"]
        assert size[0] == "batch"
        assert size[1] == 3
        assert described["image_encoder"]["preprocessing"]


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
