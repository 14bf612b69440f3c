"""What an export would replace: an earlier one of the same run and kind, nothing else without a word."""

import json
import re
from pathlib import Path

import pytest

from xmodal.cli import main
from xmodal.export.destination import destination_faults, losses, run_of


@pytest.fixture
def shared(bert_checkpoint: Path, tmp_path: Path) -> Path:
    assert main(["export", str(bert_checkpoint), "--safetensors", str(tmp_path / "shared")]) == 0
    return tmp_path / "shared"


def test_the_same_run_and_kind_are_replaced(bert_checkpoint, shared):
    before = (shared / "config.json").stat().st_ino
    assert main(["export", str(bert_checkpoint), "--safetensors", str(shared)]) == 0
    assert (shared / "config.json").stat().st_ino != before


def test_another_run_is_replaced_only_where_that_is_said(bert_checkpoint, save_checkpoint, shared, capsys):
    other = save_checkpoint("text_encoder=words", "text_encoder.vector_size=5", "text_encoder.min_count=1")
    assert main(["export", str(other), "--safetensors", str(shared)]) == 2
    told = f"{shared} holds an export of the kind safetensors, of {run_of(bert_checkpoint)}, which would be replaced"
    assert told in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert json.loads((shared / "config.json").read_text())["run"] == run_of(bert_checkpoint)
    assert main(["export", str(other), "--safetensors", str(shared), "--overwrite"]) == 0
    assert json.loads((shared / "config.json").read_text())["run"] == run_of(other) != run_of(bert_checkpoint)


def test_another_kind_is_not_replaced(bert_checkpoint, shared, tmp_path):
    (fault,) = losses("--onnx", shared, "onnx", run_of(bert_checkpoint))
    assert fault.endswith("name another folder, or add --overwrite.")
    assert losses("--onnx", tmp_path / "new", "onnx", run_of(bert_checkpoint)) == []


def test_all_checkpoints_of_a_run_are_of_it(tmp_path):
    assert run_of(tmp_path / "run" / "checkpoints" / "best.ckpt") == f"{tmp_path.name}/run"
    assert run_of(tmp_path / "model.ckpt") == f"{tmp_path.name}/model.ckpt"


def test_the_folder_that_the_shell_is_in_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    for output in (Path(), Path(".."), tmp_path / "a"):
        (fault,) = destination_faults("--onnx", output)
        assert "is the folder that you are in, or above it" in fault
    assert destination_faults("--onnx", Path("new")) == []
