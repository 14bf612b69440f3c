"""The `xmodal` command, as a user types it, from a checkout and from a wheel."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xmodal import __version__

REPOSITORY = Path(__file__).resolve().parents[1]
SMALL = (
    "data.train_size=6",
    "data.val_size=2",
    "data.test_size=2",
    "data.image_size=64",
    "image_encoder=frcnn",
    "image_encoder.min_size=64",
    "image_encoder.max_size=64",
    "text_encoder.epochs=1",
)


Command = Callable[..., subprocess.CompletedProcess[str]]


def run(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """An interpreter of its own, which finds whatever xmodal ``variables`` lead it to."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", **variables}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def python(start: Callable[..., Any]) -> Command:
    return lambda *words, folder: start(words, folder, OMP_NUM_THREADS="1", WANDB_MODE="offline").finish()


@pytest.fixture
def xmodal(python: Command) -> Command:
    return lambda *arguments, folder: python("-m", "xmodal.cli", *arguments, folder=folder)


def last_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What `xmodal extract` reports of both sides."""
    return done.stdout.splitlines()[-2:]


def feature_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Each file of the store with its inode and its time of change."""
    files = (folder / "outputs" / "features").rglob("*.h5")
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def test_the_installed_command_tells_its_version(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("xmodal")
    done = subprocess.run([command, "--version"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"xmodal {__version__}\n")


def test_help_names_the_commands_and_does_not_import_torch(tmp_path: Path) -> None:
    said = {
        ("--help",): "compute features ahead of training",
        ("extract", "-h"): "overrides",
        ("features", "-h"): "verify",
    }
    for arguments, expected in said.items():
        code = f"import sys; from xmodal.cli import main\ntry: main({list(arguments)!r})\nfinally: print(*sys.modules)"
        done = run("-c", code, folder=tmp_path)
        assert done.returncode == 0
        assert expected in done.stdout
        assert "torch" not in done.stdout.splitlines()[-1].split()


def test_without_a_command_it_says_what_to_type(xmodal: Command, tmp_path: Path) -> None:
    done = xmodal(folder=tmp_path)
    assert done.returncode == 2
    assert "usage: xmodal" in done.stderr
    assert "COMMAND" in done.stderr


def test_an_unknown_command_is_named_with_the_choices(xmodal: Command, tmp_path: Path) -> None:
    done = xmodal("extrat", folder=tmp_path)
    assert done.returncode == 2
    assert "invalid choice: 'extrat'" in done.stderr
    assert "extract" in done.stderr.rpartition("choose from")[2]


@pytest.mark.parametrize(
    ("overrides", "hint"),
    [
        (["embeding_dim=256"], "Did you mean 'embedding_dim'?"),
        (["image_encoder=vg"], "Did you mean 'vgg'?"),
        (["--featurs.dtype=float16"], "settings typed without dashes"),
        (["image_encoder.depth=17"], "image_encoder.depth must be one of [16, 19], found 17"),
    ],
)
def test_a_fault_is_explained_without_traceback(
    xmodal: Command, overrides: list[str], hint: str, tmp_path: Path
) -> None:
    done = xmodal("extract", *overrides, folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert hint in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_all_faults_come_in_one_message(xmodal: Command, tmp_path: Path) -> None:
    done = xmodal("extract", "embeding_dim=256", "loss.margn=0.3", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("2 faults in the command line:")
    assert "'embedding_dim'" in done.stderr
    assert "'loss.margin'" in done.stderr


def test_several_values_are_refused(xmodal: Command, tmp_path: Path) -> None:
    done = xmodal("extract", "-m", "image_encoder.depth=16,19", folder=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "one configuration at a time" in done.stderr


@pytest.mark.slow
def test_features_made_ahead_are_reused_by_training(python: Command, xmodal: Command, tmp_path: Path) -> None:
    first = xmodal("extract", *SMALL, folder=tmp_path)
    assert first.returncode == 0, first.stderr
    made = feature_files(tmp_path)
    assert len(made) == 2
    for line, side, count, width in zip(last_lines(first), ("image", "text"), (10, 50), (1024, 100), strict=True):
        found = re.fullmatch(rf"{side}: {count} items, [\d,]+ vectors of width {width}, [\d.]+ \w+ in (.*)", line)
        assert found, line
        assert Path(found[1]).name in made

    again = xmodal("extract", *SMALL, folder=tmp_path)
    assert last_lines(again) == last_lines(first)
    assert "Extracting" in first.stderr
    assert "Extracting" not in again.stderr

    settings = ("trainer.max_epochs=1", "logger=csv", "trainer.enable_progress_bar=false")
    trained = python(str(REPOSITORY / "train.py"), *SMALL, *settings, folder=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "Extracting" not in trained.stdout + trained.stderr
    assert feature_files(tmp_path) == made
    (metrics,) = (tmp_path / "outputs" / "runs").rglob("metrics.json")
    assert 0 < json.loads(metrics.read_text())["test/rsum"] <= 600


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), folder=REPOSITORY)
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the wheel's content."""
    folder = tmp_path_factory.mktemp("site")
    done = run(
        "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(folder), str(wheel), folder=folder
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_wheel_carries_every_file_of_conf(wheel: Path) -> None:
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("xmodal/conf/")}
    here = {f"xmodal/{file.relative_to(REPOSITORY).as_posix()}" for file in (REPOSITORY / "conf").rglob("*.yaml")}
    assert "xmodal/conf/train.yaml" in here
    assert shipped == here
    assert "hydra_plugins/xmodal_sweeps/optuna_sweeper.py" in zipfile.ZipFile(wheel).namelist()


@pytest.mark.slow
def test_the_wheel_carries_the_page_of_reports(wheel: Path) -> None:
    folder = REPOSITORY / "xmodal" / "reporting" / "templates"
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("xmodal/reporting/templates/")}
    assert shipped == {f"xmodal/reporting/templates/{file.name}" for file in folder.iterdir()}
    assert "xmodal/reporting/templates/report.html" in shipped


@pytest.mark.slow
def test_an_installed_wheel_composes_with_its_own_files(installed: Path, tmp_path: Path) -> None:
    code = (
        "from xmodal.config.sources import CONF_DIR; from xmodal.config.command_line import compose;"
        "cfg = compose(['embedding_dim=7']); print(CONF_DIR, cfg.embedding_dim, cfg.paths.data_dir, sep='\\n')"
    )
    done = run("-c", code, folder=tmp_path, PYTHONPATH=str(installed), XMODAL_DATA="")
    assert done.stdout.splitlines() == [str(installed / "xmodal" / "conf"), "7", str(tmp_path / "data")], done.stderr


@pytest.mark.slow
def test_an_installed_wheel_extracts_from_any_folder(installed: Path, tmp_path: Path) -> None:
    extract = ("-m", "xmodal.cli", "extract")
    faulty = run(*extract, "data=scens", folder=tmp_path, PYTHONPATH=str(installed))
    assert faulty.returncode == 2
    assert "Did you mean 'scenes'?" in faulty.stderr
    done = run(*extract, *SMALL, folder=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert len(feature_files(tmp_path)) == 2
