"""`xmodal report` from the command line to the files."""

import subprocess
import sys

import pytest

from xmodal.cli import main


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
def test_two_reports_of_the_same_runs_are_identical(sweep, tmp_path):
    for name in ("a", "b"):
        assert main(["report", str(sweep.root), "--output", str(tmp_path / name)]) == 0
    first = contents(tmp_path / "a")
    assert first == contents(tmp_path / "b")
    assert main(["report", str(sweep.root), "--output", str(tmp_path / "a")]) == 0  # over itself
    assert first == contents(tmp_path / "a")


def test_the_usual_place_is_called_after_the_runs(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "runs/sweep"]) == 0
    assert (tmp_path / "outputs" / "reports" / "sweep" / "tables" / "all_runs.csv").is_file()
    assert main(["report", "runs/sweep/0", "runs/sweep/1", "runs/sweep/2"]) == 0
    assert (tmp_path / "outputs" / "reports" / "0-and-2-more" / "report.json").is_file()


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
    assert "None of 2 runs has figures to report" in said
    assert "a: failed: no disk" in said
    assert "b: finished: no figures of test in metrics.json (evaluations kept: val)" in said


def test_a_report_never_imports_torch(sweep, tmp_path):
    """Which alone takes seconds."""
    program = (
        "import sys; from xmodal.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(code or [name for name in ('torch', 'pytorch_lightning', 'wandb') if name in sys.modules] or 0)"
    )
    words = [sys.executable, "-c", program, "report", str(sweep.root), "--output", str(tmp_path / "report")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
