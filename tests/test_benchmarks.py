"""Every benchmark runs with tiny settings, and prints a line of figures for each thing that it measures."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
LINE = re.compile(
    r"^(?P<name>.+): xmodal (?P<ours>[\d.]+) (?P<unit>\w+/s), bare (?P<bare>[\d.]+) (?P=unit), "
    r"ratio (?P<ratio>[\d.]+) \((?P<low>[\d.]+) to (?P<high>[\d.]+) in (?P<count>\d+) alternations\)$",
    re.MULTILINE,
)


def run(script: str, *options: str, folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / script), "--device", "cpu", *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def comparisons(printed: str) -> list[dict[str, str]]:
    """The printed figures, each ratio checked against its own rates."""
    found = [match.groupdict() for match in LINE.finditer(printed)]
    for line in found:
        assert float(line["low"]) <= float(line["ratio"]) <= float(line["high"])
        if line["count"] == "1":  # otherwise a median of ratios stands beside medians of rates
            assert float(line["ratio"]) == pytest.approx(float(line["ours"]) / float(line["bare"]), rel=0.02)
    return found


@pytest.mark.slow
def test_training_measures_the_same_training_twice(tmp_path: Path) -> None:
    printed = run("training.py", "--steps=4", "--warmup=1", "--repeats=1", "--images=45", folder=tmp_path)
    found = comparisons(printed)
    assert [line["name"] for line in found] == ["4096-1024, batch 256", "4096-256, batch 128", "lstm, batch 128"]
    assert {line["unit"] for line in found} == {"steps/s"}
    losses = re.findall(r"last step: xmodal (\d\.\d+), bare (\d\.\d+)", printed)
    assert len(losses) == 3
    for ours, bare in losses:  # over several epochs: order, drop-out and learning rate agree
        assert float(ours) > 0
        assert float(ours) == pytest.approx(float(bare), rel=1e-3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_encoders_into_the_store(tmp_path: Path) -> None:
    """Without VGG, whose weights take seconds to digest."""
    sizes = ("--limit=4", "--captions=20", "--repeats=2", "--min-size=64", "--store")
    encoders = ("--encoder=frcnn", "--encoder=fasttext", "--encoder=bert")
    found = comparisons(run("encoders.py", *sizes, *encoders, folder=tmp_path))
    assert [line["name"] for line in found] == ["frcnn, 4 items", "fasttext, 20 items", "bert, 20 items"]
    assert [line["unit"] for line in found] == ["images/s", "captions/s", "captions/s"]
    assert list(tmp_path.iterdir()) == []
