"""Dependencies as a package's own metadata declare them; the package is made up, its metadata are real files."""

from pathlib import Path

import pytest

from xmodal.doctor.versions import dependencies, extras, python, torch_and_torchvision

METADATA = """Metadata-Version: 2.4
Name: madeup
Version: 1.2
Requires-Python: {python}
Requires-Dist: numpy>=1.0
Requires-Dist: pillow<2
Requires-Dist: nowhere-to-be-found>=3.1
Requires-Dist: also-nowhere; sys_platform == 'no such platform'
Requires-Dist: unheard-of>=2; extra == 'music'
Requires-Dist: numpy>=1.0; extra == 'plain'
Provides-Extra: music
Provides-Extra: plain
"""


@pytest.fixture
def madeup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "madeup-1.2.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(METADATA.format(python=">=3.11"))
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_what_is_absent_or_out_of_bounds_is_named_with_the_line_to_type(madeup: Path) -> None:
    found = {finding.what: finding for finding in dependencies("madeup")}
    assert {what: finding.mark for what, finding in found.items()} == {
        "nowhere-to-be-found": "missing",
        "numpy": "ok",
        "pillow": "fault",
    }
    assert found["nowhere-to-be-found"].advice == "pip install 'nowhere-to-be-found>=3.1'"
    assert "<2 is declared" in found["pillow"].found
    assert found["pillow"].advice == "pip install 'pillow<2'"
    assert found["numpy"].values["declared"] == ">=1.0"


def test_a_twin_of_faiss_is_no_fault(madeup: Path) -> None:
    lines = "Metadata-Version: 2.4\nName: {}\nVersion: 1.14\n"
    (madeup / "METADATA").write_text(lines.format("madeup") + "Requires-Dist: faiss-cpu>=99\n")
    (finding,) = dependencies("madeup")
    if finding.values["version"] is None:
        assert (finding.mark, finding.found.split()[0]) == ("warning", "faiss-gpu")
    else:
        assert finding.mark == "fault"


def test_extras_are_optional(madeup: Path) -> None:
    music, plain = extras("madeup")
    assert (music.what, music.mark) == ("extra music", "optional")
    assert "unheard-of is absent, >=2 is declared" in music.found
    assert "[music]" in music.advice
    assert "pip install" in music.advice
    assert plain.mark == "ok"


def test_python_is_compared(madeup: Path) -> None:
    assert [finding.mark for finding in python("madeup")] == ["ok"]
    (madeup / "METADATA").write_text(METADATA.format(python=">=4"))
    (finding,) = python("madeup")
    assert finding.mark == "fault"
    assert "Python >=4" in finding.advice


def test_what_runs_these_tests_has_all_dependencies_of_xmodal() -> None:
    found = list(dependencies())
    assert {"torch", "hydra-core", "pillow", "wandb"} <= {finding.what for finding in found}
    assert not [finding for finding in found if finding.is_failing]
    assert [finding.mark for finding in torch_and_torchvision()] == ["ok"]
