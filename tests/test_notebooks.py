"""The notebooks run as they are, offline, and are committed without outputs."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_there_is_a_notebook() -> None:
    assert [path.name for path in NOTEBOOKS] == ["getting_started.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_without_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert outputs(notebook) == []
    assert {cell.get("execution_count") for cell in notebook.cells} == {None}


@pytest.mark.slow
def test_getting_started_runs_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the notebook keeps what it makes
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = read(FOLDER / "getting_started.ipynb")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()

    run = tmp_path / "xmodal-getting-started" / "runs" / "manual"
    assert (run / "metrics.json").is_file()
    pictures = [output for output in outputs(notebook) if "image" in str(output.get("data", {}).keys())]
    assert len(pictures) == 2  # the gallery and the photo
    printed = [output.text for output in outputs(notebook) if output.output_type == "stream"]
    lines = [line for text in printed for line in text.splitlines() if line[:1] in "+-" and line[:1]]
    assert [line.split("  ", 1)[1] for line in lines][-1] == "a photo of a dog"
    assert len(lines) == 3
    assert all(-1 <= float(line.split()[0]) <= 1 for line in lines)
