"""`xmodal export` as a user types it: what is refused before any work, and what is left where."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from xmodal.cli import main
from xmodal.export.destination import complete_export, destination_faults, write_config


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ([], "Say what to write, and where: --onnx DIR, --safetensors DIR, or both."),
        (["--safetensor=there", "--onnx", "new", "x"], "`xmodal export` has no such option"),
        (["--onnx", "same", "--safetensors", "same"], "need a folder each"),
        (["--onnx", "same/inner", "--safetensors", "same"], "neither inside the other"),
        (["--onnx", "a.txt"], "a.txt is a file; name a folder."),
        (["--safetensors", "full"], "full holds something else than an export of xmodal"),
        (["--safetensors", "new"], "There is no file or folder run"),
    ],
)
def test_what_cannot_be_exported_is_explained(words, fault, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("mine")
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert main(["export", "run", *words]) == 2
    assert fault in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_checkpoint_is_explained(tmp_path, capsys):
    (tmp_path / "half.ckpt").write_bytes(b"PK no more")
    assert main(["export", str(tmp_path / "half.ckpt"), "--onnx", str(tmp_path / "onnx")]) == 2
    assert "half.ckpt can't be read as a checkpoint" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["half.ckpt"]


def test_help_and_faults_come_without_torch(tmp_path):
    code = (
        "import sys; from xmodal.cli import main\n"
        "for words in (['export', '-h'], ['export', 'x']):\n"
        "    try: print('code', main(words))\n"
        "    except SystemExit as leaving: print('code', leaving.code)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert [line for line in done.stdout.splitlines() if line.startswith("code")] == ["code 0", "code 2"]
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    assert "--safetensors DIR" in done.stdout


def test_missing_libraries_are_named(tmp_path):
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "import importlib.util as util; found = util.find_spec\n"
        "util.find_spec = lambda name: None if name == 'onnxruntime' else found(name)\n"
        "from xmodal.cli import main; main(['export', 'x', '--onnx', 'y'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "--onnx needs onnxruntime, not installed here: pip install -c constraints.txt -e '.[export]'" in done.stderr


def fill(output: Path, name: str) -> None:
    with complete_export(output) as folder:
        (folder / name).write_text(name)
        write_config(folder, "onnx", {})


def test_an_earlier_export_is_replaced_whole(tmp_path):
    output = tmp_path / "deep" / "export"
    fill(output, "first.onnx")
    assert destination_faults("--onnx", output) == []
    fill(output, "second.onnx")
    assert sorted(file.name for file in output.iterdir()) == ["config.json", "second.onnx"]
    assert json.loads((output / "config.json").read_text())["files"] == ["second.onnx"]
    assert [file.name for file in output.parent.iterdir()] == ["export"]


def test_files_beside_an_earlier_export_are_not_thrown_away(tmp_path):
    output = tmp_path / "export"
    fill(output, "first.onnx")
    (output / "notes.txt").write_text("mine")
    assert "holds notes.txt beside an earlier export" in destination_faults("--onnx", output)[0]


def test_a_failure_leaves_the_earlier_export_and_nothing_else(tmp_path):
    output = tmp_path / "export"
    fill(output, "first.onnx")
    with pytest.raises(TypeError), complete_export(output) as folder:
        write_config(folder, "onnx", {"half": object()})
    assert sorted(file.name for file in output.iterdir()) == ["config.json", "first.onnx"]
    assert [file.name for file in tmp_path.iterdir()] == ["export"]
    with pytest.raises(KeyboardInterrupt), complete_export(tmp_path / "a" / "b"):
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == ["export"]
