"""`xmodal doctor`, as typed; with libraries that can't be imported, too."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xmodal.cli import main

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ["versions", "devices", "index library", "tracking", "weights", "data", "disk"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XMODAL_DATA", raising=False)

    def typed(*words: str) -> tuple[int, str, str]:
        return main(["doctor", *words]), *capsys.readouterr()

    return typed


def by_name(printed: str) -> dict[str, dict[str, Any]]:
    return {line["what"]: line for line in json.loads(printed)["lines"]}


def test_json_alone_is_printed_and_nothing_is_written(run: Run, flickr8k: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = run("--data-dir", str(flickr8k.parent), "data=flickr8k", "--json")
    found = json.loads(out)
    assert (code, found["sound"]) == (0, True), [
        line for line in found["lines"] if line["mark"] in ("missing", "fault")
    ]
    assert list(dict.fromkeys(line["section"] for line in found["lines"])) == SECTIONS
    assert all(set(line) == {"section", "what", "mark", "found", "advice", "values"} for line in found["lines"])
    assert by_name(out)["data=flickr8k"]["values"]["captions"] == 12
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_can_not_start_is_not_told_that_all_is_here(run: Run, flickr8k: Path) -> None:
    words = ("--data-dir", str(flickr8k.parent), "data=flickr8k", "image_encoder=clip", "data.image_folder=zzz")
    code, out, _ = run(*words)
    assert code == 1
    assert "data=flickr8k photos" in out.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--thorogh"], "Did you mean '--thorough'?"),
        (["data=flickr8k,scenes"], "one configuration at a time"),
        (["data=flicker8k"], "Did you mean 'flickr8k'"),
        (["--json", "data=flickr8k"], "xmodal doctor data=flickr8k --json"),
        (["--json", "no/such/folder.json"], "there is no folder"),
        (["--data-dir", "a", "paths.data_dir=b"], "leave one out"),
    ],
)
def test_faults_of_the_command_line_are_explained(run: Run, words: list[str], complaint: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert complaint in err


def with_broken(library: str, folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command in an interpreter of its own that finds a library which can't be imported before the real one."""
    (folder / "first" / library).mkdir(parents=True)
    (folder / "first" / library / "__init__.py").write_text(
        f"raise ImportError('lib{library}.so: broken on purpose')\n"
    )
    path = os.pathsep.join([str(folder / "first"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "TORCH_HOME": str(folder / "torch"), **variables}
    line = [sys.executable, "-m", "xmodal.cli", "doctor", *words]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_with_a_broken_faiss_all_other_lines_are_there(flickr8k: Path, tmp_path: Path) -> None:
    bert = tmp_path / "home" / "hub" / "models--bert-base-uncased"
    (bert / "snapshots" / "1").mkdir(parents=True)
    (bert / "refs").mkdir()
    (bert / "refs" / "main").write_text("1")
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        (bert / "snapshots" / "1" / file).touch()
    variables = {"HF_HOME": str(tmp_path / "home"), "XMODAL_DATA": str(flickr8k.parent)}
    done = with_broken("faiss", tmp_path, "data=flickr8k", "--json", **variables)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    found = by_name(done.stdout)
    assert found["faiss"]["mark"] == "fault"
    assert "ImportError: libfaiss.so: broken on purpose" in found["faiss"]["found"]
    assert found["faiss"]["advice"]
    assert [what for what, line in found.items() if line["mark"] in ("missing", "fault")] == ["faiss"]
    assert found["torch with torchvision"]["mark"] == "ok"
    assert found["data=flickr8k"]["values"]["images"] == 6
    assert found["text_encoder=bert"]["values"]["cached"] is True
    assert found["image_encoder=vgg"]["values"] == {
        "name": "vgg16-397923af.pth",
        "folder": f"{tmp_path}/torch/hub/checkpoints",
        "cached": False,
        "needed": True,
    }


def test_with_a_broken_torch_what_needs_none_is_told(flickr8k: Path, tmp_path: Path) -> None:
    (flickr8k / "images" / "1.jpg").unlink()
    words = ("data=flickr8k", "--json", "found.json")
    done = with_broken("torch", tmp_path, *words, XMODAL_DATA=str(flickr8k.parent))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "→ fetch them into" in done.stdout
    assert "to put right: torch with torchvision, " in done.stdout.splitlines()[-1]
    found = by_name((tmp_path / "found.json").read_text())
    together = found["torch with torchvision"]
    assert (together["mark"], together["advice"].split()[:2]) == ("fault", ["pip", "install"])
    assert "broken on purpose" in together["found"]
    for sound in ("python", "processor", "memory", "faiss", "exact search", "W&B key", "HF_HOME", "data=flickr8k"):
        assert found[sound]["mark"] in ("ok", "optional"), found[sound]
    assert found["data=flickr8k photos"]["mark"] == "fault"
