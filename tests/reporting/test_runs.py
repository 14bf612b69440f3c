"""What is found in folders, whole and damaged."""

import json
import os
import re

import pytest

from xmodal.errors import ConfigError
from xmodal.reporting.runs import find_runs


def test_a_run_is_read_whole(make_run):
    folder = make_run(
        "one", {"loss.margin": 0.2, "embedding_dim": 64}, seed=7, provenance={"command": "python train.py"}
    )
    [run] = find_runs([folder])
    written = json.loads((folder / "metrics.json").read_text())
    assert (run.folder, run.name, run.split, run.seed, run.status) == (folder, "one", "test", 7, "finished")
    assert run.config["loss.margin"] == 0.2
    assert run.metrics == written
    assert run.figure("i2t_R1") == written["test/i2t_R1"]
    assert run.history[1] == {"epoch": 1, "seconds": 20, "train/loss": run.history[1]["train/loss"]} | {
        "val/loss": run.history[1]["val/loss"]
    }
    assert "val/loss" not in run.history[0]
    assert (run.command, run.error, run.faults, run.data_name) == ("python train.py", None, (), "made-up")
    assert len(run.evaluation.queries["t2i"].ranks) == 200


def test_runs_stand_in_natural_order_each_once_whatever_the_order_asked_in(make_run):
    for number in (10, 9, 1):
        make_run(f"sweep/{number}")
    sweep = make_run.root / "sweep"
    found = find_runs([sweep])
    assert [run.name for run in found] == ["1", "9", "10"]
    again = find_runs([sweep / "10", make_run.root, sweep / "9" / ".." / "9", sweep])
    assert [run.folder for run in again] == [run.folder for run in found]


def test_a_link_to_a_run_is_that_run(make_run, tmp_path):
    folder = make_run("one")
    os.symlink(folder, tmp_path / "link")
    assert [run.folder for run in find_runs([folder, tmp_path / "link"])] == [folder]


def test_names_tell_runs_of_two_sweeps_apart(make_run):
    make_run("a/0")
    make_run("b/0")
    make_run("b/1")
    assert [run.name for run in find_runs([make_run.root])] == ["a/0", "b/0", "b/1"]


def test_folders_inside_a_run_are_no_runs(make_run):
    folder = make_run("one")
    (folder / "wandb" / "files").mkdir(parents=True)
    (folder / "wandb" / "files" / "metrics.json").write_text("{}")
    assert [run.name for run in find_runs([make_run.root])] == ["one"]


def test_test_is_reported_before_val_and_another_evaluation_on_request(make_run, evaluation):
    from dataclasses import replace

    from xmodal.retrieval.metrics import named_figures
    from xmodal.retrieval.record import write_record

    folder = make_run("one", split="val")
    assert find_runs([folder])[0].split == "val"
    record = replace(evaluation(5, 0.3), name="test_folds5")
    write_record(folder / "evaluation_test_folds5.npz", record)
    [run] = find_runs([folder], "test_folds5")
    assert run.split == "test_folds5"
    assert run.figure("rsum") == named_figures(record.queries)["rsum"]  # metrics.json says nothing of it
    [run] = find_runs([folder], "test")
    assert (run.is_finished, run.split) == (False, None)
    assert run.error == "no figures of test in metrics.json (evaluations kept: test_folds5, val)"


def test_failed_running_and_unfinished_runs_say_so(make_run):
    make_run.failed("failed", "CUDA out of memory")
    (make_run.root / "running").mkdir()
    (make_run.root / "running" / "provenance.json").write_text('{"format": 1, "status": "running", "error": null}')
    (make_run.root / "bare" / ".hydra").mkdir(parents=True)
    (make_run.root / "bare" / ".hydra" / "config.yaml").write_text("seed: 3\ndata:\n  name: ${nowhere}\n")
    bare, failed, running = find_runs([make_run.root])
    assert (failed.status, failed.error) == ("failed", "CUDA out of memory")
    assert failed.config == {"embedding_dim": 4096}  # of its command
    assert (running.status, running.error) == ("running", "still running, or ended without a word")
    assert (bare.status, bare.seed) == ("unfinished", 3)
    assert bare.error == "metrics.json is absent: it failed, was killed, or is still running"
    assert not any(run.is_finished for run in (bare, failed, running))


def test_results_kept_without_their_folder_have_the_settings_of_their_command(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "metrics.json").write_text('{"val/rsum": 100.0, "val/i2t_R1": 10}')
    (kept / "command.txt").write_text(
        "python train.py data=flickr8k seed=3 +optimizer.lr=1e-3 \\\n 'tags=[a]' ~callbacks.x\n"
    )
    [run] = find_runs([tmp_path])
    assert run.is_finished
    assert run.data_name == "flickr8k"
    assert run.seed == 3
    assert set(run.config) >= {"data", "seed", "optimizer.lr"}


DAMAGE = {
    "metrics.json": ('{"test/rsum": ', "metrics.json can't be read"),
    "provenance.json": ("[1]", "provenance.json holds list, expected names with values"),
    "history.csv": ("epoch,val/loss\n1,two\n", "history.csv can't be read"),
    "config.yaml": ("a: [", "config.yaml can't be read"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_a_fault_of_the_run_and_not_of_the_report(make_run, name):
    folder = make_run("one")
    text, fault = DAMAGE[name]
    (folder / name).write_text(text)
    [run] = find_runs([folder])
    assert len(run.faults) == 1
    assert run.faults[0].startswith(fault)
    assert run.is_finished  # without metrics.json, by its queries


def test_damaged_queries_are_a_fault(make_run):
    folder = make_run("one")
    (folder / "evaluation_test.npz").write_bytes((folder / "evaluation_test.npz").read_bytes()[:100])
    [run] = find_runs([folder])
    assert run.evaluation is None
    assert re.search("evaluation_test.npz can't be read", run.faults[0])
    assert run.is_finished


def test_figures_that_are_no_numbers_are_a_fault(make_run):
    folder = make_run("one", keep_queries=False)
    (folder / "metrics.json").write_text(
        '{"test/rsum": 1.5, "test/i2t_R1": "ten", "best_epoch": null, "train/loss": NaN}'
    )
    [run] = find_runs([folder])
    assert run.faults == ("metrics.json holds what is no number: best_epoch, test/i2t_R1",)
    assert run.figure("rsum") == 1.5
    assert run.metrics["train/loss"] != run.metrics["train/loss"]


def test_provenance_of_a_later_format_is_not_guessed_at(make_run):
    folder = make_run("one", provenance={"format": 2, "status": "failed"})
    [run] = find_runs([folder])
    assert run.provenance is None
    assert run.faults == ("provenance.json is of format 2, expected 1: it is not used",)


def test_all_paths_without_runs_are_said_at_once(make_run, tmp_path):
    file = make_run("one") / "metrics.json"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError) as caught:
        find_runs([tmp_path / "absent", tmp_path / "empty", file])
    absent, empty, is_file = caught.value.faults
    assert f"{tmp_path / 'absent'}: there is no such folder" in absent
    assert f"{tmp_path / 'empty'} holds no run: expected provenance.json, metrics.json or history.csv" in empty
    assert f"{file} is a file" in is_file


def test_an_option_has_one_name_in_all_runs(make_run):
    """Hydra's own record names options; without it in one of the runs, modules do, in all of them."""
    target = "xmodal.losses.triplet.TripletLoss"
    chosen, other = (make_run(name, {"loss._target_": target, "loss.margin": 0.2}) for name in ("a", "b"))
    for folder in (chosen, other):
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "hydra.yaml").write_text("hydra: {runtime: {choices: {loss: sum_of_hinges, debug: null}}}")
    assert [run.config["loss"] for run in find_runs([make_run.root])] == ["sum_of_hinges"] * 2
    (other / ".hydra" / "hydra.yaml").unlink()
    assert [run.config["loss"] for run in find_runs([make_run.root])] == ["triplet"] * 2


def test_queries_of_another_evaluation_are_a_fault(make_run):
    folder = make_run("one")
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(metrics | {"test/rsum": metrics["test/rsum"] + 5}))
    [run] = find_runs([folder])
    assert run.figure("rsum") == metrics["test/rsum"] + 5
    assert "they are of another evaluation" in run.faults[0]


def test_settings_that_hydra_has_not_resolved_are_not_stated(make_run):
    folder = make_run.failed("one", "no data")
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text("embedding_dim: 64\nmodel: {output_dim: '${embedding_dim}'}\n")
    assert find_runs([folder])[0].config == {"embedding_dim": 64}


def test_the_earlier_run_stands_for_a_job_that_was_not_run_again(make_run):
    earlier = make_run("runs/before", {"embedding_dim": 64})
    job = make_run.root / "sweep" / "0"
    (job / ".hydra").mkdir(parents=True)
    (job / "earlier_run.json").write_text('{"format": 1, "run": "../../runs/before"}')
    assert [run.folder for run in find_runs([make_run.root / "sweep"])] == [earlier]
    assert [run.folder for run in find_runs([make_run.root])] == [earlier]
    (job / "earlier_run.json").write_text('{"format": 1, "run": "../../runs/gone"}')
    [run] = find_runs([make_run.root / "sweep"])
    assert (run.is_finished, run.error) == (
        False,
        "it was finished before, in ../../runs/gone, which is not there any more",
    )
