"""The table, the summary and the JSON of what was found."""

import json

import pytest

from xmodal.doctor.finding import Finding
from xmodal.doctor.report import as_json, is_sound, print_table, summary

SOUND = {
    "disk": [Finding("TMPDIR", "warning", "[bold]1 MB[/bold] free", "free some space", {"free": 10**6})],
    "data": [Finding("data=coco", "optional", "not there"), Finding("photos", "ok", "5 of 5")],
}


def test_optional_things_and_warnings_are_no_fault() -> None:
    assert is_sound(SOUND)
    assert summary(SOUND) == "All that is needed is here. 1 warning."


@pytest.mark.parametrize("mark", ["missing", "fault"])
def test_what_is_to_be_put_right_is_named(mark: str) -> None:
    found = {**SOUND, "versions": [Finding("torch", mark, "broken", "pip install torch")]}
    assert not is_sound(found)
    assert summary(found) == "1 to put right: torch. 1 warning."


def test_the_table_shows_texts_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(SOUND)
    lines = capsys.readouterr().out.splitlines()
    (row,) = [number for number, line in enumerate(lines) if "TMPDIR" in line]
    assert lines[row].split() == ["warning", "TMPDIR", "[bold]1", "MB[/bold]", "free"]
    assert lines[row + 1].strip() == "→ free some space"
    assert lines[-1] == summary(SOUND)


def test_json_holds_all_of_it() -> None:
    found = json.loads(as_json(SOUND))
    assert found["sound"] is True
    assert found["lines"][0] == {
        "section": "disk",
        "what": "TMPDIR",
        "mark": "warning",
        "found": "[bold]1 MB[/bold] free",
        "advice": "free some space",
        "values": {"free": 10**6},
    }
    assert [line["what"] for line in found["lines"]] == ["TMPDIR", "data=coco", "photos"]
