"""Ctrl-C in training, and going on from where it stopped."""

import math
import shutil

import pytest
import pytorch_lightning as pl
import torch

from xmodal.errors import ConfigError, DataError
from xmodal.models import checkpoint

OF_TIME = ("seconds", "pairs_per_second")
PLAIN = ("trainer.max_epochs=4", "model.image_tower.feature_dropout=0.4")  # whose masks go on where they were


@pytest.fixture(scope="module")
def whole(workshop):
    return workshop.run("whole", *PLAIN)


@pytest.fixture(scope="module")
def stopped(workshop, stop_after):
    """Two of four epochs, then Ctrl-C."""
    return workshop.interrupted("stopped", stop_after(epoch=1), *PLAIN)


def last_of(experiment):
    return experiment.folder / "checkpoints" / "last.ckpt"


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=0, atol=0, msg=name)


def test_ctrl_c_leaves_with_130_and_says_how_to_go_on(stopped):
    experiment, leaving, printed = stopped
    assert leaving.code == 130
    assert f"ckpt_path={last_of(experiment)}" in printed
    assert checkpoint.read(last_of(experiment))["epoch"] == 1


@pytest.mark.parametrize("order", ["data.group_by_length=true", "data.captions_together=2", "data.num_workers=1"])
def test_resumed_run_goes_on_with_the_order_of_the_next_epoch(workshop, stop_after, order):
    options = (order, "trainer.max_epochs=2")
    name = order.partition("=")[0]
    whole = workshop.run(f"whole-{name}", *options)
    stopped, _, _ = workshop.interrupted(f"stopped-{name}", stop_after(epoch=0), *options)
    resumed = workshop.run(f"resumed-{name}", *options, f"ckpt_path={last_of(stopped)}")
    ends = [checkpoint.read(last_of(run.experiment))["state_dict"] for run in (resumed, whole)]
    assert_same(*ends)


def test_resumed_run_ends_where_an_uninterrupted_one_does(workshop, stopped, whole):
    resumed = workshop.run("resumed", *PLAIN, f"ckpt_path={last_of(stopped[0])}")
    assert resumed.experiment.trainer.global_step == whole.experiment.trainer.global_step == 16
    ends = [checkpoint.read(last_of(run.experiment)) for run in (resumed, whole)]
    assert_same(ends[0]["state_dict"], ends[1]["state_dict"])
    assert ends[0]["lr_schedulers"] == ends[1]["lr_schedulers"]
    states = [end["optimizer_states"][0]["state"] for end in ends]
    for parameter, state in states[0].items():
        assert_same(state, states[1][parameter])
    rows = [run.experiment.record.history for run in (resumed, whole)]
    without_time = [[{k: v for k, v in row.items() if k not in OF_TIME} for row in history] for history in rows]
    assert without_time[0] == without_time[1]
    seconds = [row["seconds"] for row in rows[0]]
    assert seconds == sorted(seconds)
    assert resumed.experiment.metrics == whole.experiment.metrics


def test_resumed_run_begins_with_epoch_step_and_rate_of_the_checkpoint(stopped):
    content = checkpoint.read(last_of(stopped[0]))
    assert content["global_step"] == 8
    rate = content["optimizer_states"][0]["param_groups"][0]["lr"]
    assert rate == pytest.approx(0.005 * (1 + math.cos(math.pi * 2 / 4)) / 2)


def test_best_model_and_score_are_carried_over(workshop, stopped, tmp_path):
    """The score in the checkpoint is out of reach, so every later epoch is worse than the best so far."""
    first = stopped[0]
    content = torch.load(last_of(first), weights_only=True)
    state = next(s for s in content["callbacks"].values() if "best_k_models" in s)
    state["best_k_models"] = dict.fromkeys(state["best_k_models"], torch.tensor(601.0))
    state["best_model_score"] = state["kth_value"] = torch.tensor(601.0)
    torch.save(content, tmp_path / "last.ckpt")
    resumed = workshop.run("carried", *PLAIN, f"ckpt_path={tmp_path / 'last.ckpt'}")
    assert resumed.folder != first.folder
    kept = [checkpoint.read(run.folder / "checkpoints" / "best.ckpt") for run in (first, resumed.experiment)]
    assert_same(kept[0]["state_dict"], kept[1]["state_dict"])
    assert resumed.experiment.metrics["best_epoch"] == kept[0]["epoch"]
    assert resumed.experiment.metrics["val/rsum"] == first.record.row_of(kept[0]["epoch"])["val/rsum"]
    assert checkpoint.read(last_of(resumed.experiment))["epoch"] == 3


def test_checkpoint_of_a_finished_run_is_only_tested_again(workshop, whole):
    again = workshop.run("tested-again", *PLAIN, f"ckpt_path={last_of(whole.experiment)}")
    assert again.experiment.metrics == whole.experiment.metrics
    best = [checkpoint.read(run.folder / "checkpoints" / "best.ckpt") for run in (again, whole)]
    assert_same(best[0]["state_dict"], best[1]["state_dict"])


def test_without_the_old_best_file_figures_are_those_of_a_model_that_exists(workshop, stopped, tmp_path):
    moved = tmp_path / "last.ckpt"
    content = torch.load(last_of(stopped[0]), weights_only=True)
    for state in content["callbacks"].values():
        if "best_model_path" in state:
            state["best_model_path"] = str(tmp_path / "gone" / "best.ckpt")
            state["dirpath"] = str(tmp_path / "gone")
    torch.save(content, moved)
    run = workshop.run("gone", *PLAIN, f"ckpt_path={moved}")
    assert run.experiment.metrics["best_epoch"] in (2, 3)
    best = checkpoint.read(run.folder / "checkpoints" / "best.ckpt")
    assert best["epoch"] == run.experiment.metrics["best_epoch"]
    assert run.experiment.record.row_of(best["epoch"])["val/rsum"] == run.experiment.metrics["val/rsum"]


def test_ctrl_c_in_the_first_epoch_keeps_a_checkpoint_too(workshop, stop_after):
    experiment, leaving, printed = workshop.interrupted("first-epoch", stop_after(step=2), *PLAIN)
    assert leaving.code == 130
    assert f"ckpt_path={last_of(experiment)}" in printed
    assert checkpoint.read(last_of(experiment))["global_step"] == 2
    resumed = workshop.run("from-first", *PLAIN, f"ckpt_path={last_of(experiment)}")
    assert [row["epoch"] for row in resumed.experiment.record.history] == [0, 1, 2, 3]
    assert resumed.experiment.trainer.global_step == 16


def test_ctrl_c_before_the_first_step_says_so(workshop, stop_after):
    experiment, leaving, printed = workshop.interrupted("no-step", stop_after(epoch=-1), *PLAIN)
    assert leaving.code == 130
    assert "before the first training step" in printed
    assert not last_of(experiment).exists()


def test_plateau_scheduler_goes_on_where_it_was(workshop, stop_after):
    settings = ("scheduler=plateau", "scheduler.patience=0", "scheduler.threshold=1000", *PLAIN)
    whole = workshop.run("plateau", *settings)
    stopped, _, _ = workshop.interrupted("plateau-stopped", stop_after(epoch=1), *settings)
    resumed = workshop.run("plateau-resumed", *settings, f"ckpt_path={last_of(stopped)}")
    rates = [[row["lr"] for row in run.experiment.record.history] for run in (resumed, whole)]
    assert rates[0] == pytest.approx(rates[1])


def test_by_another_figure_the_best_epoch_is_chosen_anew(workshop, stopped):
    """The best rsum so far is no value of mean average precision, for the checkpoint or for the scheduler."""
    run = workshop.run("other-figure", *PLAIN, f"ckpt_path={last_of(stopped[0])}", "monitor=val/i2t_mAP")
    later = [row for row in run.experiment.record.history if row["epoch"] >= 2]
    best = max(later, key=lambda row: row["val/i2t_mAP"])
    assert run.experiment.metrics["best_epoch"] == best["epoch"]
    assert run.score == best["val/i2t_mAP"]


def test_moved_run_folder_can_be_resumed(workshop, stopped, tmp_path):
    copy = shutil.copytree(stopped[0].folder, tmp_path / "elsewhere")
    run = workshop.run("from-copy", *PLAIN, f"ckpt_path={copy / 'checkpoints' / 'last.ckpt'}", "test=false")
    assert run.experiment.trainer.global_step == 16


def test_checkpoint_of_another_model_is_refused_before_anything_is_encoded(workshop, stopped):
    with pytest.raises(ConfigError, match=r"another model.*embedding_dim: 16 in the checkpoint, 24 now"):
        workshop.build("other", f"ckpt_path={last_of(stopped[0])}", "embedding_dim=24")


def test_file_that_is_no_checkpoint_is_refused(workshop, tmp_path):
    (tmp_path / "notes.ckpt").write_text("no checkpoint")
    with pytest.raises(DataError, match=r"notes\.ckpt can't be read as a checkpoint"):
        workshop.build("none", f"ckpt_path={tmp_path / 'notes.ckpt'}")


def test_weights_that_are_no_numbers_do_not_replace_the_last_that_were(workshop):
    class Poison(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if trainer.current_epoch == 2:
                with torch.no_grad():
                    next(pl_module.parameters()).mul_(math.nan)

    experiment = workshop.build("poisoned", *PLAIN, "callbacks.health.stop=true")
    experiment.trainer.callbacks.insert(0, Poison())
    experiment.fit()
    kept = checkpoint.read(last_of(experiment))
    assert kept["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in kept["state_dict"].values())
    assert experiment.metrics["best_epoch"] in (0, 1)
