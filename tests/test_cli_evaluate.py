"""`xmodal evaluate` and `xmodal compare` as a user types them; what they compute is tested in tests/experiment."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xmodal.cli import main


def write_embeddings(path: Path, noise: float) -> None:
    """40 images with two captions each, which tell their image the less the more noise there is."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(40, 8)).astype(np.float32)
    texts = np.repeat(images, 2, axis=0) + noise * rng.normal(size=(80, 8)).astype(np.float32)
    np.savez(
        path,
        image_embeddings=images,
        text_embeddings=texts,
        image_ids=np.arange(40),
        text_image_ids=np.repeat(np.arange(40), 2),
    )


def xmodal(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).with_name("xmodal")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_installed_command_evaluates_a_file(tmp_path):
    write_embeddings(tmp_path / "mine.npz", noise=0.5)
    done = xmodal("evaluate", "--embeddings", "mine.npz", "--json", "figures.json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["test/i2t_R1_low"] <= figures["test/i2t_R1"] <= figures["test/i2t_R1_high"]
    assert f"{figures['test/rsum']:.1f}" in done.stdout
    assert "Loading faiss" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "figures.json",
        "mine.evaluation_test.npz",
        "mine.npz",
    ]


def test_help_and_faults_come_without_torch(tmp_path):
    code = (
        "import sys; from xmodal.cli import main\n"
        "for words in (['evaluate', '-h'], ['compare', '-h'], ['evaluate', 'x', '--folds', '1'], ['compare', 'x']):\n"
        "    try: print('code', main(words))\n"
        "    except SystemExit as leaving: print('code', leaving.code)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert [line for line in done.stdout.splitlines() if line.startswith("code")] == [
        "code 0",
        "code 0",
        *["code 2"] * 2,
    ]
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    assert "--folds must be at least 2, found 1" in done.stderr
    assert "--gallery {split,train,all}" in done.stdout


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    """Records of two systems on the same queries, a good one and a bad one."""
    folder = tmp_path_factory.mktemp("evaluated")
    for name, noise in (("good", 0.3), ("bad", 2.0)):
        write_embeddings(folder / f"{name}.npz", noise)
        kept = ["--record", str(folder / f"{name}.evaluation_test.npz")]
        assert main(["evaluate", "--embeddings", str(folder / f"{name}.npz"), "--bootstrap", "0", *kept]) == 0
    return folder


def records(folder: Path) -> list[str]:
    return [str(folder / f"{name}.evaluation_test.npz") for name in ("bad", "good")]


def test_comparison_tells_the_good_from_the_bad(evaluated, tmp_path, capsys):
    target = tmp_path / "difference.json"
    assert main(["compare", *records(evaluated), "--resamples", "500", "--json", str(target)]) == 0
    found = json.loads(target.read_text())["test/t2i_R1"]
    assert found["difference"] == pytest.approx(found["second"] - found["first"])
    assert found["low"] > 0
    assert found["p_value"] < 0.01
    assert "t2i_R1" in capsys.readouterr().out


def test_comparison_with_itself_finds_nothing(evaluated, capsys):
    [record, _] = records(evaluated)
    assert main(["compare", record, record, "--resamples", "100", "--split", "test"]) == 0
    assert "1.0000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--resamples", "3"], "--resamples must be at least 40, found 3"),
        (["--seed", "-1"], "--seed must be at least 0, found -1"),
        (["--splt=test"], "Did you mean '--split'?"),
        (["data.limit=3"], "`xmodal compare` has no such option"),
        (["--json", "/nowhere/x.json"], "there is no folder /nowhere"),
        (["--split", "val"], "val"),
    ],
)
def test_a_wrong_comparison_is_explained(evaluated, words, fault, capsys):
    capsys.readouterr()
    assert main(["compare", *records(evaluated), *words]) == 2
    said = capsys.readouterr()
    assert fault in said.err
    assert said.out == ""


def test_a_comparison_replaces_nothing_that_it_reads(evaluated, capsys):
    before = [Path(record).read_bytes() for record in records(evaluated)]
    for record in records(evaluated):
        assert main(["compare", *records(evaluated), "--json", record]) == 2
        assert f"--json {record} would replace the file that is read" in capsys.readouterr().err
    assert [Path(record).read_bytes() for record in records(evaluated)] == before
    shutil.copy(records(evaluated)[0], inside := evaluated / "evaluation_test.npz")
    assert main(["compare", str(evaluated), str(evaluated), "--json", str(inside)]) == 2
    assert "would replace an evaluation" in capsys.readouterr().err


def test_a_run_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert f"{tmp_path / 'a'}: there is no such run" in capsys.readouterr().err
