"""An index changes as a whole or not at all, whatever ends the process that changes it; damage is found."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from xmodal.errors import DataError
from xmodal.search.folder import Change, change_of, verified
from xmodal.search.manifest import NAME, Manifest, Side, read_manifest

FILES = ("images.faiss", "items.parquet")


def manifest(name: str = "run") -> Manifest:
    sides = {"images": Side(2, 2, "flat", {})}
    return Manifest(name, "scenes", ("test",), "cosine", 4, "/x.ckpt", "x.ckpt", "0" * 64, "/", sides, 0.1, "now", "1")


def fill(change: Change, text: str, names: tuple[str, ...] = FILES) -> None:
    for name in names:
        change.path(name).write_text(f"{name} {text}")
    change.commit(manifest(text))


def written(folder: Path, text: str = "old", names: tuple[str, ...] = FILES) -> Path:
    with change_of(folder) as change:
        fill(change, text, names)
    return folder


def half(folder: Path, fault: BaseException) -> None:
    with change_of(folder) as change:
        change.path("images.faiss").write_text("half")
        raise fault


def content(folder: Path) -> set[str]:
    """What the files of an index say, once it has been opened."""
    found = verified(folder)
    return {found.name, *((folder / name).read_text().split()[1] for name in found.files)}


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in (*FILES, NAME, f"{NAME}.lock"))


CHANGE = """
import os, resource, signal, sys, time
sys.path.insert(0, sys.argv[2])
from test_folder import Path, change_of, fill, manifest
folder, stage = Path(sys.argv[1]), int(sys.argv[3])
replace, done = os.replace, []
def stopping(source, target):
    if len(done) == stage:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(target)
    replace(source, target)
os.replace = stopping
with change_of(folder) as change:
    fill(change, "new")
"""


def start(code: str, folder: Path, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, str(folder), str(Path(__file__).parent), *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("stage", "expected"), [(0, "old"), (1, "new"), (2, "new"), (3, "new")])
def test_a_killed_change_is_whole_or_not_there(tmp_path: Path, stage: int, expected: str) -> None:
    """Killed before index.json (0), before each of the two files gets its name (1, 2), and never (3)."""
    folder = written(tmp_path / "index")
    process = start(CHANGE, folder, stage)
    assert process.wait(60) == (0 if stage == 3 else -signal.SIGKILL), process.stderr and process.stderr.read()
    assert bool(leftovers(folder)) == (stage != 3)
    assert content(folder) == {expected}
    assert content(written(folder, "newer")) == {"newer"}
    assert leftovers(folder) == []


def test_a_change_finishes_the_one_that_was_killed_before_it_begins_its_own(tmp_path: Path) -> None:
    folder = written(tmp_path / "index")
    assert start(CHANGE, folder, 1).wait(60) == -signal.SIGKILL
    with pytest.raises(ValueError, match="no"):
        half(folder, ValueError("no"))
    assert content(folder) == {"new"}
    assert leftovers(folder) == []


def test_an_unfinished_new_index_says_so_and_can_be_built_again(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    assert start(CHANGE, folder, 0).wait(60) == -signal.SIGKILL
    with pytest.raises(DataError, match="was never finished"):
        verified(folder)
    assert content(written(folder)) == {"old"}


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), DataError("no"), OSError(28, "No space left on device")])
def test_a_change_that_fails_leaves_the_old_index(tmp_path: Path, fault: BaseException) -> None:
    folder = written(tmp_path / "index")
    with pytest.raises((KeyboardInterrupt, DataError)):
        half(folder, fault)
    assert content(folder) == {"old"}
    assert leftovers(folder) == []
    with pytest.raises((KeyboardInterrupt, DataError)):
        half(tmp_path / "never", fault)
    assert not (tmp_path / "never").exists()


LIMITED = CHANGE.replace(
    "with change_of(folder)",
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (5, 5))\n"
    "with change_of(folder)",
)


def test_a_full_disk_is_told_and_the_old_index_stays(tmp_path: Path) -> None:
    folder = written(tmp_path / "index")
    process = start(LIMITED, folder, 9)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"DataError: The index can't be written to {folder}" in said
    assert "File too large" in said
    assert content(folder) == {"old"}
    assert leftovers(folder) == []


def test_a_place_that_takes_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Make room, or choose another: --output"), change_of(tmp_path / "file" / "in"):
        pass


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, r"Make it writable \(chmod -R u\+w .*index\), or copy the folder and change the copy"),
        (errno.EROFS, "or copy the folder and change the copy"),
        (errno.ENOSPC, "Make room, or copy the folder to where there is room"),
    ],
)
def test_advice_for_an_index_that_can_not_be_changed_can_be_followed(tmp_path: Path, number: int, advice: str) -> None:
    folder = written(tmp_path / "index")
    with pytest.raises(DataError, match=advice) as raised, change_of(folder, is_of_new=False):
        raise OSError(number, os.strerror(number))
    assert "--output" not in str(raised.value)


def test_files_that_an_index_no_longer_has_are_gone(tmp_path: Path) -> None:
    folder = written(tmp_path / "index", names=(*FILES, "bank.npz"))
    assert leftovers(written(folder, "new")) == []
    assert content(folder) == {"new"}


def test_a_change_of_one_file_keeps_the_others(tmp_path: Path) -> None:
    folder = written(tmp_path / "index")
    with change_of(folder) as change:
        change.path("items.parquet").write_text("items.parquet new")
        change.commit(manifest("new"), verified(folder).files)
    assert content(folder) == {"old", "new"}


BY_TURNS = """
import sys
sys.path.insert(0, sys.argv[2])
from test_folder import Path, change_of, manifest, verified
from dataclasses import replace
folder = Path(sys.argv[1])
for n in range(10):
    with change_of(folder) as change:
        before = verified(folder)
        change.path("items.parquet").write_text((folder / "items.parquet").read_text() + " +")
        change.commit(before, before.files)
"""


def test_two_processes_that_change_it_at_once_both_do(tmp_path: Path) -> None:
    folder = written(tmp_path / "index")
    processes = [start(BY_TURNS, folder) for _ in range(2)]
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    verified(folder)
    assert (folder / "items.parquet").read_text().count("+") == 20


def test_opening_while_it_is_changed_finds_a_whole_index(tmp_path: Path) -> None:
    folder, faults, done = written(tmp_path / "index"), [], threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                verified(folder)
            except Exception as fault:
                faults.append(fault)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(60):
        written(folder, f"n{number}")
    done.set()
    for reader in readers:
        reader.join()
    assert faults == []
    assert content(folder) == {"n59"}


def test_every_flipped_bit_of_the_manifest_is_found(tmp_path: Path) -> None:
    folder = written(tmp_path / "index")
    whole = (folder / NAME).read_bytes()
    for place in range(len(whole)):
        (folder / NAME).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DataError):
            verified(folder)
    (folder / NAME).write_bytes(whole)
    assert content(folder) == {"old"}


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (
            lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
            "has another content",
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"has \d+ bytes, and \d+ when it was written"),
        (lambda path: path.unlink(), "is absent"),
    ],
    ids=["flipped", "cut off", "removed"],
)
@pytest.mark.parametrize("name", FILES)
def test_every_damaged_file_is_named(tmp_path: Path, name: str, damage, expected: str) -> None:
    folder = written(tmp_path / "index")
    damage(folder / name)
    with pytest.raises(DataError, match=f"is damaged: {name} {expected}"):
        verified(folder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "can't be read"),
        ("[1]", "has the format None, this version of xmodal reads 1"),
        (json.dumps({"format": 2}), "has the format 2, this version of xmodal reads 1"),
        (json.dumps({"format": 1}), "is damaged"),
        ("\xff", "can't be read"),
    ],
)
def test_a_manifest_that_is_none(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / NAME).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=expected):
        read_manifest(tmp_path)


def test_places_without_an_index_say_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no folder"):
        verified(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        verified(tmp_path / "file")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(DataError, match="is a run, and no index of it yet: xmodal index"):
        verified(tmp_path / "run")
    written(tmp_path / "index")
    with pytest.raises(DataError, match=f"Did you mean {tmp_path / 'index'}"):
        verified(tmp_path)


def test_what_a_manifest_says_comes_back(tmp_path: Path) -> None:
    found = verified(written(tmp_path / "index", "ünï"))
    assert (found.name, found.sides["images"], found.counts) == (
        "ünï",
        Side(2, 2, "flat", {}),
        {"images": 2, "captions": 0},
    )
