"""Folders that can be written, or not, and space below a limit."""

from pathlib import Path

import pytest

from xmodal.config.command_line import compose
from xmodal.doctor import disk


def found(tmp_path: Path) -> dict[str, disk.Finding]:
    return {line.what: line for line in disk.folders(compose([f"paths.output_dir={tmp_path}/outputs"]))}


def test_folders_need_not_be_there_and_nothing_is_left_in_them(tmp_path: Path) -> None:
    lines = found(tmp_path)
    assert list(lines) == ["paths.output_dir", "paths.features_dir", "paths.cache_dir", "TMPDIR"]
    assert {line.mark for line in lines.values()} <= {"ok", "warning"}
    assert lines["paths.features_dir"].values["folder"] == f"{tmp_path}/outputs/features"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outputs").write_text("a file")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "outputs" / "below"))
    lines = found(tmp_path)
    assert {line.mark for line in lines.values()} == {"fault"}
    assert "can't be written (Not a directory)" in lines["paths.output_dir"].found
    assert lines["paths.output_dir"].advice == "paths.output_dir=/path/with/space"


def test_little_space_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(disk._LEAST, "paths.features_dir", 10**18)
    line = found(tmp_path)["paths.features_dir"]
    assert line.mark == "warning"
    assert "less than 1.0 EB" in line.found
    assert line.advice.endswith("paths.features_dir=/path/with/space")
