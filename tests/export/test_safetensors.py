"""A model as safetensors and JSON: the way back gives the same embeddings, bit for bit."""

import json
import re

import pytest
import torch
from safetensors import safe_open

from xmodal.cli import main
from xmodal.errors import DataError, FeatureError
from xmodal.export.safetensors import load
from xmodal.models import checkpoint

SENTENCES = ["two dogs", "a red circle is left of nobody, over the green square", "xyzzy"]
BERT = ["text_encoder=bert", *(f"text_encoder.{size}" for size in ("hidden_size=16", "num_layers=2", "num_heads=2"))]
TEXTS = {
    "bert": BERT,
    "bert with a tail": [*BERT, "text_encoder.trainable_layers=1"],
    "fasttext": ["text_encoder=fasttext", "text_encoder.vector_size=6", "text_encoder.bucket=100"],
    "words": ["text_encoder=words", "text_encoder.vector_size=5", "text_encoder.min_count=1", "text_aggregator=gru"],
}


@pytest.mark.parametrize("name", TEXTS)
def test_embeddings_come_back_bit_for_bit(name, save_checkpoint, tmp_path):
    file, folder = save_checkpoint(*TEXTS[name]), tmp_path / "shared"
    assert main(["export", str(file), "--safetensors", str(folder)]) == 0
    before, after = checkpoint.load(file), load(folder)
    assert torch.equal(after.encode_texts(SENTENCES), before.encode_texts(SENTENCES))
    x, mask = torch.randn(4, 3, 6), torch.rand(4, 3) > 0.3
    with torch.no_grad():
        assert torch.equal(after.image_tower(x, mask), before.image_tower(x, mask))
    assert not after.training
    expected = before.state_dict()
    assert list(after.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in after.state_dict().items())
    assert after.encoders.checkpoint()["fingerprints"] == before.encoders.checkpoint()["fingerprints"]
    with pytest.raises(FeatureError, match=r"image_encoder\.made_by"):
        after.encode_images([])


def test_the_folder_is_plain(bert_checkpoint, tmp_path):
    folder = tmp_path / "shared"
    assert main(["export", str(bert_checkpoint), "--safetensors", str(folder)]) == 0
    described = json.loads((folder / "config.json").read_text())
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1  # whoever reads one, reads the other
    assert described["config"]["embedding_dim"] == 8
    assert described["states"]["text"]["vocabulary"][0] == "[PAD]"
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        names = set(tensors.keys())
    assert {"model.image_tower.standardizer.mean", described["states"]["text"]["probe"]["$tensor"]} <= names


def test_a_folder_that_is_none_or_damaged_is_explained(bert_checkpoint, tmp_path):
    with pytest.raises(DataError, match="is no model that `xmodal export RUN --safetensors"):
        load(tmp_path)
    folder = tmp_path / "shared"
    assert main(["export", str(bert_checkpoint), "--safetensors", str(folder)]) == 0
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match=re.escape(f"{weights} is absent, damaged")):
        load(folder)


def test_both_formats_of_one_command(bert_folders):
    folders = {"onnx": bert_folders.onnx, "safetensors": bert_folders.safetensors}
    kinds = {name: json.loads((folder / "config.json").read_text())["kind"] for name, folder in folders.items()}
    assert kinds == {"onnx": "onnx", "safetensors": "safetensors"}
    assert {file.name for file in bert_folders.onnx.parent.iterdir()} == set(folders)
