"""`xmodal report` from the command line to the files."""

import subprocess
import sys
from pathlib import Path

import pytest

from xmodal.cli import main
from xmodal.commands.report import _default_output


@pytest.fixture
def sweep(make_run):
    for number, size in enumerate((64, 128, 256)):
        said = {"command": f"python train.py embedding_dim={size}", "error": None}
        make_run(f"sweep/{number}", {"embedding_dim": size}, skill=0.05 * (number + 1), draw=number, provenance=said)
    return make_run


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_sweep_with_a_failure_becomes_a_report(sweep, tmp_path, capsys):
    sweep.failed("sweep/3", "RuntimeError: out of memory")
    (sweep.root / "sweep" / "1" / "history.csv").write_text("epoch\none\n")
    assert main(["report", str(sweep.root / "sweep"), "--output", str(tmp_path / "report")]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("4 runs, 3 with figures.\n")
    assert f"Report: {tmp_path / 'report'}/report." in printed.out
    assert "Without figures: 3: failed: RuntimeError: out of memory" in printed.err
    assert "At fault: 1: history.csv can't be read" in printed.err
    made = contents(tmp_path / "report")
    assert "report.json" in made
    table = made["tables/made-up-test_image-to-text_all.md"].decode()
    assert "| Embedding size | Train loss | Validation loss | R@1 (accuracy) | R@5 | R@10 | medR | mAP |" in table
    assert "out of memory" in made["tables/left-out.md"].decode()


@pytest.mark.slow
def test_two_reports_of_the_same_runs_are_identical_wherever_they_lie(sweep, tmp_path):
    assert main(["report", str(sweep.root), "--output", str(tmp_path / "a")]) == 0
    first = contents(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert main(["report", str(sweep.root), "--output", str(tmp_path / "b")]) == 0  # over the first one
    assert first == contents(tmp_path / "b")


def test_the_usual_place_is_called_after_the_runs():
    runs = [Path("runs/sweep/0"), Path("runs/sweep/1"), Path("runs/sweep/2")]
    assert _default_output([Path("runs/sweep")]) == Path("outputs/reports/sweep")
    assert _default_output(runs) == Path("outputs/reports/0-and-2-more")


def test_all_faults_of_the_command_line_at_once(sweep, capsys):
    run = sweep.root / "sweep" / "0"
    assert main(["report", str(run), "--output", str(run / "report"), "--split", "../x", "--spilt", "val"]) == 2
    said = capsys.readouterr().err
    assert "--spilt: `xmodal report` has no such option. Did you mean '--split'?" in said
    assert "--split '../x' names no evaluation" in said
    assert "lies in the run" in said
    assert not (run / "report").exists()


def test_paths_without_runs(tmp_path, capsys):
    assert main(["report", str(tmp_path / "absent"), "--output", str(tmp_path / "report")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_runs_without_any_figures(make_run, tmp_path, capsys):
    make_run.failed("a", "no disk")
    make_run("b", split="val")
    arguments = ["report", str(make_run.root), "--split", "test", "--output", str(tmp_path / "report")]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("None of 2 runs has figures to report:")
    assert "a: failed: no disk" in said
    assert "b: finished: no figures of test in metrics.json (evaluations kept: val)" in said


@pytest.mark.slow
def test_a_report_at_its_usual_place_never_imports_torch(sweep, tmp_path):
    """Which alone takes seconds."""
    program = (
        "import sys; from xmodal.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(code or [name for name in ('torch', 'pytorch_lightning', 'wandb') if name in sys.modules] or 0)"
    )
    words = [sys.executable, "-c", program, "report", "runs/sweep"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "outputs" / "reports" / "sweep" / "tables" / "all_runs.csv").is_file()
