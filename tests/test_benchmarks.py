"""Every benchmark runs with tiny settings, and prints a line of figures for each thing that it measures."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SPREAD = r"ratio (?P<ratio>[\d.]+) \((?P<low>[\d.]+) to (?P<high>[\d.]+) in (?P<count>\d+) alternations\)$"
RATES = re.compile(
    rf"^(?P<name>.+): xmodal (?P<ours>[\d.]+) (?P<unit>\w+/s), bare (?P<bare>[\d.]+) (?P=unit), {SPREAD}", re.MULTILINE
)
SECONDS = re.compile(rf"^(?P<name>.+): xmodal (?P<ours>[\d.]+) s, \w+ (?P<other>[\d.]+) s, {SPREAD}", re.MULTILINE)


@pytest.fixture
def run(start: Callable[..., Any], tmp_path: Path) -> Callable[..., str]:
    def finish(script: str, *options: str) -> str:
        done = start([str(FOLDER / script), "--device=cpu", *options], tmp_path, OMP_NUM_THREADS="1").finish()
        assert done.returncode == 0, done.stderr
        assert list(tmp_path.iterdir()) == []
        return done.stdout

    return finish


def comparisons(printed: str) -> list[dict[str, str]]:
    """The printed figures, each ratio checked against its own rates."""
    found = [match.groupdict() for match in RATES.finditer(printed)]
    for line in found:
        assert float(line["low"]) <= float(line["ratio"]) <= float(line["high"])
        if line["count"] == "1":  # otherwise a median of ratios stands beside medians of rates
            assert float(line["ratio"]) == pytest.approx(float(line["ours"]) / float(line["bare"]), rel=0.02)
    return found


@pytest.mark.slow
def test_training_measures_the_same_training_twice(run: Callable[..., str]) -> None:
    sizes = ("--steps=4", "--warmup=1", "--repeats=1", "--images=45")
    printed = run("training.py", *sizes, "--case=4096-256", "--case=lstm")
    found = comparisons(printed)
    assert [line["name"] for line in found] == ["4096-256, batch 128", "lstm, batch 128"]
    assert {line["unit"] for line in found} == {"steps/s"}
    losses = re.findall(r"last step: xmodal (\d\.\d+), bare (\d\.\d+)", printed)
    assert len(losses) == 2
    for ours, bare in losses:  # over several epochs: order, drop-out and learning rate agree
        assert float(ours) > 0
        assert float(ours) == pytest.approx(float(bare), rel=1e-3)


@pytest.mark.slow
def test_encoders_into_the_store(run: Callable[..., str]) -> None:
    """Without VGG, whose weights take seconds to digest."""
    sizes = ("--limit=4", "--captions=20", "--repeats=2", "--min-size=64", "--store")
    encoders = ("--encoder=frcnn", "--encoder=fasttext", "--encoder=bert")
    found = comparisons(run("encoders.py", *sizes, *encoders))
    assert [line["name"] for line in found] == ["frcnn, 4 items", "fasttext, 20 items", "bert, 20 items"]
    assert [line["unit"] for line in found] == ["images/s", "captions/s", "captions/s"]


def test_evaluation_against_other_ways_to_the_same_ranks(run: Callable[..., str]) -> None:
    sizes = ("--sizes", "12", "300", "--width=16", "--full-images=70")
    printed = run("evaluation.py", *sizes, "--repeats=1", "--threads=1")
    found = [match.groupdict() for match in SECONDS.finditer(printed)]
    loops = ["per-query argsort loop", "the loop in float32", "full-matrix argsort"]
    names = [f"{size}, {name}" for size in ("12 × 60", "300 × 1,500") for name in [*loops, "bare product"]]
    names.append("70 × 350, width 256, bare product")
    assert [re.sub("(?<=bare product).*", "", line["name"]) for line in found] == names
    for line in found:  # the times are printed to a tenth of a millisecond
        ratio, ours, other = (float(line[name]) for name in ("ratio", "ours", "other"))
        assert (other - 6e-5) / (ours + 6e-5) - 1e-3 <= ratio <= (other + 6e-5) / (ours - 6e-5) + 1e-3
    assert len(re.findall(r"^.+, bootstrap with 1,000 resamples: \d+\.\d\d s$", printed, re.MULTILINE)) == 2
    assert len(re.findall(r"^.+, by class, four directions: \d+\.\d\d s$", printed, re.MULTILINE)) == 2
    peak = re.search(r"^70 × 350, .* memory: ([\d.]+) MiB, or ([\d.]+) MiB .*\(embeddings: ([\d.]+) MiB", printed, re.M)
    assert peak is not None
    warm, fresh, embeddings = map(float, peak.groups())
    assert embeddings == pytest.approx((70 + 350) * 256 * 4 / 2**20, abs=0.05)
    assert embeddings < warm <= fresh < 200
