"""`xmodal features list | verify | remove`, as typed."""

import os
import pty
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from xmodal.cli import main
from xmodal.features.lock import only_one
from xmodal.features.store import FeatureOrigin, FeatureStore, finish_file

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("list", …)``: exit code, what was printed, what was complained of.

    The folder is named unless ``composed``: then the configuration tells it, which takes a second.
    """

    def typed(*words: str, composed: bool = False) -> tuple[int, str, str]:
        named = composed or any("_dir" in word or "-dir" in word for word in words)
        code = main(["features", *words, *([] if named else ["--features-dir=outputs/features"])])
        return code, *capsys.readouterr()

    return typed


def stored(root: Path, encoder: str, value: float = 1.0, data_name: str = "toy") -> Path:
    """A file of two sets, three vectors, width 4."""
    origin = FeatureOrigin({"encoder": encoder}, "d")
    path = FeatureStore(root).path(data_name, encoder, origin.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        values = np.full((3, 4), value, dtype=np.float16)
        file.create_dataset("values", data=values, chunks=(3, 4), fletcher32=True)
        finish_file(file, origin, ["a", "b"], np.array([0, 1, 3]))
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of features of the current folder, with a sound file, a damaged one, and one that was begun."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "outputs" / "features"
    stored(root, "text-bert")
    stored(root, "image-vgg", np.nan)
    (root / "toy" / "image-frcnn-0123456789abcdef.h5.parts").mkdir()
    return root


def test_the_table_says_what_there_is(run: Run, root: Path) -> None:
    code, out, _ = run("list", composed=True)
    assert code == 0
    [bert] = [line.split() for line in out.splitlines() if "text-bert" in line]
    assert bert[:6] == ["toy", "text-bert", "2", "3", "4", "float16"]
    assert bert[-1] == "complete"
    assert FeatureOrigin({"encoder": "text-bert"}, "d").key in bert
    assert "unfinished, 0 of ? chunks" in out
    assert f"3 in {root}" in out
    assert run("list", f"--features-dir={root}")[1] == out
    assert run("list", f"paths.output_dir={root.parent}")[1] == out


def test_an_empty_folder_is_no_fault(run: Run, tmp_path: Path) -> None:
    for words in (["list"], ["verify"]):
        assert run(*words, f"--features-dir={tmp_path / 'none'}")[:2] == (0, f"No features in {tmp_path / 'none'}.\n")


def test_verify_lists_what_is_wrong_and_says_so_by_its_exit_code(run: Run, root: Path) -> None:
    code, out, _ = run("verify")
    assert code == 1
    assert "values: NaN or infinity in 3 of 3 vectors" in out
    assert "1 of 3 are damaged" in out
    code, out, _ = run("verify", next(root.rglob("text-bert*.h5")).name)
    assert (code, out.count("sound")) == (0, 1)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["remove"], "Say what to remove: NAME"),
        (["remove", "--all", "abc"], "abc --all: name files, or say"),
        (["remove", "--dammaged", "--yes"], "Did you mean '--damaged'?"),
        (["remove", "text-bret", "--yes"], "no features of that key, file name or path"),
        (["list", "data.root=x"], "takes no names"),
        (["verify", "paths.cache_dir=x"], "paths.features_dir=…"),
        (["list", "--features-dir=a", "paths.features_dir=b"], "leave one out"),
        (["remove", "--all"], "Add --yes"),
    ],
)
def test_faults_are_explained_and_nothing_goes(run: Run, root: Path, words: list[str], complaint: str) -> None:
    before = sorted(root.rglob("*"))
    code, _, err = run(*words)
    assert code == 2
    assert complaint in err
    assert sorted(root.rglob("*")) == before


def test_damaged_and_unfinished_ones_are_removed_by_their_state(run: Run, root: Path) -> None:
    size = next(root.rglob("image-vgg*.h5")).stat().st_size
    assert run("remove", "--damaged", "--yes")[:2] == (0, f"Removed 1 of 1: {size:,} bytes freed.\n")
    assert run("remove", "--unfinished", "--yes")[:2] == (0, "Removed 1 of 1: 0 bytes freed.\n")
    assert [path.name[:9] for path in root.rglob("*.h5*")] == ["text-bert"]
    assert run("remove", "--unfinished", "--damaged", "--yes")[:2] == (0, f"Nothing to remove in {root}.\n")


def test_names_may_follow_the_flag(run: Run, root: Path) -> None:
    code, out, _ = run("remove", "--yes", next(root.rglob("image-vgg*.h5")).stem, "0123456789abcdef")
    assert (code, out.partition(":")[0]) == (0, "Removed 2 of 2")
    assert run("remove", "--all", "--yes")[0] == 0
    assert not list(root.iterdir())


def test_what_is_being_written_is_left_alone(run: Run, root: Path) -> None:
    path = next(root.rglob("text-bert*.h5"))
    with only_one(path):
        assert run("remove", "--damaged", "--unfinished", "--yes")[1].startswith("Removed 2 of 2")
        code, out, _ = run("remove", "--all", "--yes")
    assert code == 1
    assert f"{path} is being written by another process" in out
    assert path.exists()


@pytest.mark.parametrize(("answer", "code"), [("n", 1), ("", 1), ("y", 0)])
def test_on_a_terminal_the_user_is_asked(
    run: Run, root: Path, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    path = next(root.rglob("text-bert*.h5"))
    size = path.stat().st_size
    keyboard, terminal = pty.openpty()
    os.write(keyboard, f"{answer}\n".encode())
    with os.fdopen(terminal) as stream:
        monkeypatch.setattr("sys.stdin", stream)
        found, out, _ = run("remove", path.stem)
    os.close(keyboard)
    assert found == code
    assert f"{path}, {size:,} bytes" in out
    assert path.exists() == (code == 1)
