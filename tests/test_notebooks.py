"""The notebooks are committed without outputs, and nbmake runs them with the other tests."""

import tomllib
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def test_the_notebooks_are_there_and_run_with_the_tests():
    assert [path.stem for path in NOTEBOOKS] == ["01_quickstart", "02_analyse_a_sweep", "03_your_own_encoder"]
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert "notebooks" in options["testpaths"]
    assert "--nbmake" in options["addopts"].split()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_without_outputs(path: Path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert [output for cell in notebook.cells for output in cell.get("outputs", [])] == []
    assert {cell.get("execution_count") for cell in notebook.cells} == {None}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_writes_into_a_temporary_folder_alone(path: Path):
    code = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "code")
    assert "tempfile.mkdtemp(" in code
    assert "paths.output_dir=" in code  # without it, runs go into the checkout
