"""`xmodal search` in a terminal: sentences that are no UTF-8, readers who leave, disks that are full."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xmodal.cli import main
from xmodal.commands.output import as_json_text

LATIN = b"ein gr\xfcner Kreis\n"


@pytest.fixture(scope="module")
def index(shelf) -> Path:
    return shelf.index("queries", "--split", "test")


def in_a_shell(line: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "xmodal": f"{sys.executable} -m xmodal.cli", **variables}
    return subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, timeout=120)


def test_a_sentence_that_is_not_in_unicode_is_refused(capsys):
    assert main(["search", "x", "a dog", "\udcff dog"]) == 2
    told = capsys.readouterr().err
    assert r"Sentence 2 is not in UTF-8: '\udcff dog'" in told
    assert "x" not in told.split()


def test_standard_input_is_read_strictly_as_files_are(index, tmp_path):
    (tmp_path / "latin.txt").write_bytes(LATIN)
    words = [sys.executable, "-m", "xmodal.cli", "search", str(index), "--queries"]
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    for name in ("-", "latin.txt"):
        done = subprocess.run([*words, name], input=LATIN, cwd=tmp_path, env=environment, capture_output=True)
        assert done.returncode == 2
        assert done.stderr.decode().startswith(f"--queries {name} is not in UTF-8 ('utf-8' codec can't decode byte")


@pytest.mark.slow
def test_readers_who_leave_and_disks_that_are_full(index, tmp_path):
    """Long enough that a pipe does not hold it."""
    (tmp_path / "many.txt").write_text("a red circle\n" * 900)
    search = f"$xmodal search {index} --queries many.txt"
    for flag in ("", "--json"):
        left = in_a_shell(f"{search} {flag} | head -1; exit ${{PIPESTATUS[0]}}", tmp_path)
        assert left.returncode == 141
        assert len(left.stdout.splitlines()) == 1
        assert [line for line in left.stderr.decode().splitlines() if "queries in" not in line] == []
        full = in_a_shell(f"{search} {flag} > /dev/full", tmp_path)
        assert full.returncode == 2
        assert full.stderr.decode().splitlines()[-1] == (
            "Standard output can't be written to (No space left on device)."
        )
        assert b"Traceback" not in full.stderr


def test_json_is_ascii_where_nothing_else_can_say_it():
    assert as_json_text(["grün"]) == '[\n  "grün"\n]\n'
    for content, encoding in (["\udcff.jpg"], "utf-8"), (["grün ☂"], "latin-1"):
        text = as_json_text(content, encoding)
        assert text.isascii()
        assert json.loads(text) == content
