"""Where a report is put: complete or not at all, and never over something else."""

import json
import os

import pytest

from xmodal.errors import DataError
from xmodal.reporting.output import MANIFEST, complete_report, output_faults


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_report_takes_the_place_of_the_one_before_and_leaves_other_files(tmp_path):
    output = tmp_path / "deep" / "report"
    with complete_report(output) as folder:
        fill(folder, ["report.html", "tables/a.md", "figures/a.pdf"])
    assert files(output) == ["figures/a.pdf", "report.html", MANIFEST, "tables/a.md"]
    (output / "notes.txt").write_text("mine")
    assert output_faults(output) == []
    with complete_report(output) as folder:
        fill(folder, ["report.html", "tables/b.md"])
    assert files(output) == ["notes.txt", "report.html", MANIFEST, "tables/b.md"]
    assert not (output / "figures").exists()
    assert json.loads((output / MANIFEST).read_text())["files"] == ["report.html", "tables/b.md"]
    assert os.listdir(output.parent) == ["report"]


def interrupted(folder):
    fill(folder, ["tables/a.md"])
    raise KeyboardInterrupt


def test_what_fails_half_way_leaves_the_earlier_report_as_it_was(tmp_path):
    output = tmp_path / "report"
    with complete_report(output) as folder:
        fill(folder, ["report.html"])
    with pytest.raises(KeyboardInterrupt), complete_report(output) as folder:
        interrupted(folder)
    assert files(tmp_path) == ["report/report.html", "report/" + MANIFEST]
    with pytest.raises(RuntimeError), complete_report(tmp_path / "new"):
        raise RuntimeError
    assert sorted(os.listdir(tmp_path)) == ["report"]


def test_an_empty_folder_may_be_a_file_system_of_its_own(tmp_path):
    """Files can't be moved from one to another, so that they are written where they will be."""
    output = tmp_path / "mounted"
    output.mkdir()
    with complete_report(output) as folder:
        assert output in folder.parents
        fill(folder, ["report.html"])
    assert files(output) == ["report.html", MANIFEST]
    killed = output / ".report-killed"
    killed.mkdir()
    (output / MANIFEST).unlink()
    (output / "report.html").unlink()
    assert output_faults(output) == []


def test_a_full_disk_is_a_fault_of_the_user(tmp_path):
    with pytest.raises(DataError, match=r"can't be written to .*--output"), complete_report(tmp_path / "r"):
        raise OSError(28, "No space left on device")


def test_no_report_inside_a_run(make_run):
    folder = make_run("one")
    for place in (folder, folder / "report", folder / "checkpoints" / "deep"):
        [fault] = output_faults(place)
        assert f"lies in the run {folder}" in fault
    assert output_faults(make_run.root / "report") == []


def test_no_report_over_something_else(make_run, tmp_path):
    make_run("one")
    assert "holds something else than a report of xmodal" in output_faults(make_run.root)[0]
    (tmp_path / "file").write_text("")
    assert f"{tmp_path / 'file'} is a file" in output_faults(tmp_path / "file")[0]
    assert f"{tmp_path / 'file'} is a file" in output_faults(tmp_path / "file" / "report")[0]
    (tmp_path / "empty").mkdir()
    assert output_faults(tmp_path / "empty") == []


@pytest.mark.parametrize("manifest", ["{", "[]", '{"files": []}', '{"made_by": "xmodal report", "files": ["../a"]}'])
def test_a_folder_with_another_report_json_is_something_else(tmp_path, manifest):
    (tmp_path / MANIFEST).write_text(manifest)
    assert "holds something else" in output_faults(tmp_path)[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path):
    tmp_path.chmod(0o555)
    assert "can't be written to" in output_faults(tmp_path / "report")[0]
