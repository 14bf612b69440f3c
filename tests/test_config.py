"""Faults of a command line: all found, each with what was meant; and everything that has to pass, passes."""

import json
import os
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from xmodal.config.annotations import accepted, signature
from xmodal.config.check import check
from xmodal.config.command_line import check_command_line, check_overrides, compose, compose_choice, report
from xmodal.config.compatible import monitors
from xmodal.config.sources import CONF_DIR, default_data_dir
from xmodal.config.suggestions import did_you_mean, likely_keys
from xmodal.config.values import absolute_paths, all_keys, has_key, resolved
from xmodal.errors import ConfigError
from xmodal.retrieval.evaluate import evaluate_retrieval

TRAIN = CONF_DIR.parent / "train.py"


def faults(*argv: str) -> tuple[str, ...]:
    """All faults of a command line; none where it passes."""
    try:
        check_command_line(argv)
    except ConfigError as error:
        return error.faults
    return ()


def run(command: Sequence[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    everything = {**os.environ, "PYTHONPATH": str(CONF_DIR.parent), **environment}
    return subprocess.run(command, cwd=folder, env=everything, capture_output=True, text=True, check=False)


# --- misspelt keys, options and values ---------------------------------------------------------------------------


def test_the_default_command_line_has_no_fault() -> None:
    assert faults() == ()
    assert check(compose([])) == []


MISSPELT = [
    ("embeding_dim=256", "there is no key 'embeding_dim'. Did you mean 'embedding_dim'?"),
    ("loss.margn=0.3", "there is no key 'loss.margn'. Did you mean 'loss.margin'?"),
    ("data.bach_size=3", "Did you mean 'data.batch_size'?"),
    ("lr=0.1", "there is no key 'lr'. Did you mean 'optimizer.lr'?"),
    ("margin=0.1", "Did you mean 'loss.margin'?"),
    ("max_epochs=3", "Did you mean 'trainer.max_epochs'?"),
    ("trainer.max_epoch=3", "Did you mean 'trainer.max_epochs'?"),
    ("features.chunk_size=9", "Did you mean 'features.text_chunk_size' or 'features.image_chunk_size'?"),
    ("unfreez_epoch=2", "Did you mean 'unfreeze_epoch'?"),
    ("tail_lr_factor=0.5", "or 'optimizer.tail_lr_factor'?"),
    ("optimiser=sgd", "there is no key 'optimiser'. Did you mean 'optimizer'?"),
    ("optimiser.lr=0.1", "Did you mean 'optimizer.lr'?"),
    ("model.image_tower.projection.num_layer=2", "Did you mean 'model.image_tower.projection.num_layers'?"),
    ("data=flicker8k", "there is no data 'flicker8k'. Did you mean 'flickr8k'"),
    ("text_encoder=brt", "there is no text_encoder 'brt'. Did you mean 'bert'?"),
    ("experiment=corse", "there is no experiment 'corse'. Did you mean 'course'?"),
    ("+experiment=corse", "there is no experiment 'corse'. Did you mean 'course'?"),
    ("debug=fsat", "there is no debug 'fsat'. Did you mean 'fast'?"),
    (
        "loss.negatives=hardst",
        "expected one of all, random, semihard, hardest, found 'hardst'. Did you mean 'hardest'?",
    ),
    ("text_aggregator.hidden_size=4", "It belongs to text_aggregator=gpo and text_aggregator=gru and"),
    ("text_aggregator/poling=gpo", "Did you mean 'text_aggregator/pooling'"),
    ("text_aggregator/pooling=gpi", "Did you mean 'gpo'? Choices: attention, gpo, max, mean, none, sum."),
    ("image_aggregator.pooling=gpo", "It belongs to image_aggregator=gru and image_aggregator=transformer."),
    ("model.image_tower.vector_projection=mlp", "with a slash: model/image_tower/vector_projection=mlp."),
    ("model.loss.margin=0.1", "there is no key 'model.loss.margin'. Did you mean 'loss.margin'?"),
    ("data=null", "a choice cannot be null."),
    ("fast", "expected key=value. Did you mean 'debug=fast'?"),
    ("seed=[1", "cannot be read"),
    ("qqqqqq.zzzzzz=1", "there is no key 'qqqqqq.zzzzzz'."),
]


@pytest.fixture(scope="module")
def faults_of_misspelt() -> tuple[str, ...]:
    """What one command line with all of MISSPELT gives."""
    return faults(*(override for override, _ in MISSPELT))


def test_every_misspelling_is_one_fault_in_the_order_typed(faults_of_misspelt: tuple[str, ...]) -> None:
    started = [next(o for o, _ in MISSPELT if fault.startswith(f"{o}: ")) for fault in faults_of_misspelt]
    assert started == [override for override, _ in MISSPELT]


@pytest.mark.parametrize(("override", "expected"), MISSPELT)
def test_a_misspelling_is_named_with_what_was_meant(
    override: str, expected: str, faults_of_misspelt: tuple[str, ...]
) -> None:
    own = [fault for fault in faults_of_misspelt if fault.startswith(f"{override}: ")]
    assert len(own) == 1
    assert expected in own[0]


def test_an_unknown_option_lists_the_choices() -> None:
    options = sorted(file.stem for file in (CONF_DIR / "trainer").glob("*.yaml"))
    assert faults("trainer=tpu")[0].endswith(f"Choices: {', '.join(options)}.")


def test_all_faults_are_reported_at_once() -> None:
    given_faults = [
        "embeding_dim=256",
        "loss.margn=0.3",
        "data=flicker8k",
        "embedding_dim=abc",
        "ckpt_path=nowhere.ckpt",
    ]
    found = faults(*given_faults)
    assert len(found) == 5
    for override in given_faults[:4]:
        assert sum(fault.startswith(f"{override}: ") for fault in found) == 1
    text = report(found)
    assert text.startswith("5 faults in the command line:\n  embeding_dim=256: there is no key")
    assert report(found[:1]).startswith("1 fault in the command line:\n  ")


MISTYPED = [
    ("seed=-1", "at least 0, found -1"),
    ("loss.margin=high", "expected a number, found 'high'"),
    ("trainer.max_epochs=1.5", "expected a whole number"),
    ("data.batch_size=0", "at least 1, found 0"),
    ("data.limit=0", "at least 1"),
    ("optimizer.lr=fast", "expected a number of at least 0, found 'fast'"),
    ("optimizer.betas=0.9", "expected a list"),
    ("features.dtype=float61", "Did you mean 'float16'"),
    ("features.precision=float61", "Did you mean 'float16'"),
    ("features.image_chunk_size=0", "at least 1, found 0"),
    ("features.text_chunk_size=many", "expected a whole number of at least 1, found 'many'"),
    ("features.num_workers=-1", "expected a whole number of at least 0 or null, found -1"),
    ("features.memory_gb=0", "expected a number of gigabytes above 0, found 0"),
    ("features.pool_once=1", "expected true or false, found 1"),
    ("augmentation.min_scale=2", "expected a share of the photo's area in (0, 1], found 2"),
    ("augmentation.flip=1.5", "expected a probability from 0 to 1, found 1.5"),
    ("optimizer.tail_lr_factor=-1", "expected a number of at least 0, found -1"),
    ("unfreeze_epoch=-2", "expected a whole number of at least 0, found -2"),
    ("image_encoder.trainable_layers=al", "expected one of all or a whole number, found 'al'. Did you mean 'all'?"),
    ("text_encoder.trainable_layers=-3", "expected a number of layers of at least 0, or all; found -3"),
    ("trainer.precision=32-tru", "Did you mean '32-true'"),
    ("test=1", "expected true or false, found 1"),
    ("name=2024", "Quote a number that is text"),
    ("scheduler.T_max=[1]", "expected a whole number"),
    ("logger.mode=ofline", "Did you mean 'offline'"),
    ("image_encoder.depth=sixteen", "expected"),
    ("matryoshka=[64,32,64]", "64 stands there more than once"),
    ("model.text_tower.projection.dropout=much", "expected a number, found 'much'"),
    ("embedding_dim=abc", "expected a whole number of at least 1, found 'abc'"),
]


@pytest.fixture(scope="module")
def faults_of_mistyped() -> tuple[str, ...]:
    """What one command line with all of MISTYPED gives."""
    return faults(*(override for override, _ in MISTYPED))


@pytest.mark.parametrize(("override", "expected"), MISTYPED)
def test_a_wrong_type_or_range_is_one_fault(override: str, expected: str, faults_of_mistyped: tuple[str, ...]) -> None:
    own = [fault for fault in faults_of_mistyped if fault.startswith(override.split("=")[0] + "=")]
    assert len(own) == 1, faults_of_mistyped
    assert expected in own[0]
    assert len(faults_of_mistyped) == len(MISTYPED)


@pytest.mark.parametrize("value", ["0", "1.5", "null", "true", "[3]", "''"])
def test_embedding_dim_is_a_positive_whole_number(value: str) -> None:
    found = check_overrides([f"embedding_dim={value}"])
    assert len(found) == 1
    assert "expected a whole number of at least 1, found" in found[0]


def test_what_an_interpolation_repeats_is_not_a_second_fault() -> None:
    """T_max and output_dim follow these two keys."""
    assert len(faults("trainer.max_epochs=x", "embedding_dim=y")) == 2


@pytest.mark.parametrize(
    "argv",
    [
        ["embedding_dim=1", "loss.margin=1", "ckpt_path=null", "name=trial", "tags=[a,b]", "data.limit=5"],
        ["trainer.devices=auto", "trainer.limit_train_batches=0.5", "trainer.gradient_clip_val=null", "scheduler=none"],
        ["trainer.devices=[0,1]", "trainer.limit_train_batches=3", "trainer.precision=bf16-mixed", "scheduler=plateau"],
        ["text_encoder.vectors=null", "logger=none", "debug=fast", "optimizer.lr=${loss.margin}", "optimizer=sgd"],
        ["image_encoder.trainable_layers=all", "text_encoder.trainable_layers=2", "unfreeze_epoch=3", "trainer=cpu"],
        ["features.num_workers=null", "features.memory_gb=0.5", "features.pool_once=false"],
        ["data.splits.val=[train]", "callbacks.learning_rate=null", "debug=overfit", "logger=csv", "trainer=cpu"],
    ],
)
def test_right_values_pass(argv: list[str]) -> None:
    assert faults(*argv) == ()


def test_an_interpolation_to_nowhere_is_a_fault() -> None:
    found = faults("optimizer.lr=${los.margin}")
    assert any("optimizer.lr" in fault and "los.margin" in fault for fault in found), found


TUNED = ("text_encoder.trainable_layers=1", "unfreeze_epoch=2")


@pytest.mark.parametrize(
    "settings",
    [
        ["trainer=ddp"],
        ["trainer.strategy=ddp_spawn"],
        ["trainer.devices=2"],
        ["trainer.devices=[0,1]"],
        ["trainer.devices='2'"],
        ["trainer.devices='0,1'"],
        ["trainer.num_nodes=2"],
        ["trainer.devices=auto"],
        ["trainer.devices=-1", "trainer.accelerator=gpu"],
    ],
    ids=" ".join,
)
def test_unfreezing_needs_a_strategy_that_expects_parameters_without_gradients(settings: list[str]) -> None:
    (found,) = faults(*settings, *TUNED)
    assert found.startswith("unfreeze_epoch=2: until then trainable layers have no gradients")
    assert "trainer.strategy=ddp_find_unused_parameters_true" in found
    assert faults(*settings, TUNED[0]) == faults(*settings, TUNED[1]) == ()
    assert faults(*settings, *TUNED, "trainer.strategy=ddp_find_unused_parameters_true") == ()


def test_unfreezing_says_where_the_number_of_devices_is_not_known() -> None:
    (found,) = faults("trainer.devices=auto", *TUNED)
    assert "if trainer.devices=auto found several devices (trainer.devices=1 takes one)" in found


@pytest.mark.parametrize("devices", ["1", "'1'", "[3]", "'0,'", "auto", "'auto'", "-1"])
def test_unfreezing_on_one_device_needs_nothing(devices: str) -> None:
    accelerator = "cpu" if devices.strip("'") in ("auto", "-1") else "auto"
    assert faults(*TUNED, f"trainer.devices={devices}", f"trainer.accelerator={accelerator}") == ()


def test_unfreezing_by_default_needs_nothing() -> None:
    assert faults(*TUNED) == ()
    assert len(faults("trainer=ddp", "image_encoder.trainable_layers=all", "unfreeze_epoch=1")) == 1


@pytest.mark.parametrize("epochs", [1, 2])
def test_layers_that_no_epoch_would_train(epochs: int) -> None:
    (found,) = faults(*TUNED, f"trainer.max_epochs={epochs}")
    assert found.startswith(f"unfreeze_epoch=2: epochs are counted from 0, so with trainer.max_epochs={epochs} no")
    assert faults(TUNED[1], f"trainer.max_epochs={epochs}") == ()
    assert faults(TUNED[0], f"trainer.max_epochs={epochs}") == ()


def test_layers_that_some_epoch_trains() -> None:
    assert faults(*TUNED, "trainer.max_epochs=3") == ()
    assert faults(*TUNED, "trainer.max_epochs=-1", "scheduler=none") == ()


# --- what has to pass --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        ["hydra.run.dir=somewhere", "hydra.verbose=true", "hydra/job_logging=disabled"],
        ["+anything.at_all=3"],
        ["++loss.margin=0.3"],
        ["~test"],
        ["~logger"],
        ["--help", "embeding_dim=3"],
        ["--hydra-help"],
        ["--info", "searchpath"],
        ["-sc", "query=fish"],
        ["--cfg", "job", "--resolve", "--package", "paths", "data=flickr8k"],
        ["--cfg", "all"],
        ["-m", "embedding_dim=64,128"],
        ["--multirun", "hydra/sweeper=optuna", "embedding_dim=choice(64,128)", "optimizer.lr=interval(0.1,0.2)"],
        ["-m", "seed=range(1,3)", "text_aggregator=glob(m*)"],
        ["-m", "text_aggregator=mean,lstm", "loss.margin=0.1,0.2"],
        ["hydra.mode=MULTIRUN", "seed=1,2"],
        ["--config-name", "train"],
        ["-cn", "train.yaml", "seed=3"],
        ["--config-path", "conf"],
    ],
)
def test_what_hydra_understands_passes(argv: list[str]) -> None:
    assert faults(*argv) == ()


def test_each_value_of_a_sweep_is_checked() -> None:
    found = faults("-m", "embedding_dim=64,x", "text_aggregator=mean,lstmm", "loss.negatives=all,hardst")
    assert len(found) == 3
    assert found[1].startswith("text_aggregator=mean,lstmm: there is no text_aggregator 'lstmm'. Did you mean 'lstm'?")
    assert [found[0].split(":")[0], found[2].split(":")[0]] == ["embedding_dim=x", "loss.negatives=hardst"]


def test_a_key_has_to_exist_in_every_job_of_a_sweep() -> None:
    assert faults("-m", "text_aggregator=lstm", "text_aggregator.hidden_size=8,16") == ()
    found = faults("-m", "text_aggregator=mean,lstm", "text_aggregator.hidden_size=8")
    assert len(found) == 1
    assert "and text_aggregator=lstm and" in found[0]


def test_a_large_sweep_is_checked_value_by_value() -> None:
    found = faults("-m", "seed=range(0,4)", "embedding_dim=1,2,3,4,x", "loss.margin=0.1,high")
    assert [fault.split(":")[0] for fault in found] == ["embedding_dim=x", "loss.margin=high"]


def test_a_sweep_without_multirun_says_so() -> None:
    assert faults("embedding_dim=64,128") == (
        "embedding_dim=64,128: several values make several runs: add -m. (A list is written key=[a,b].)",
    )


def test_flags_that_do_not_exist_are_faults() -> None:
    found = faults("--embedding_dim=3")
    assert found == ("--embedding_dim=3: there is no such flag. Settings are typed without dashes: embedding_dim=…",)
    assert "Did you mean '--multirun'?" in faults("--multi-run")[0]


def test_settings_on_both_sides_of_a_flag_are_one_fault() -> None:
    found = faults("seed=1", "-m", "embedding_dim=3,4", "loss.margin=0.1", "data=scenes")
    assert len(found) == 1
    assert found[0].startswith("embedding_dim=3,4, loss.margin=0.1, …: ")
    assert "first or last" in found[0]


def test_an_extra_config_folder_counts(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nembedding_dim: 7\n")
    assert faults("--config-dir", str(tmp_path), "experiment=mine") == ()
    assert "there is no experiment 'mine'" in faults("experiment=mine")[0]


# --- files and choices -------------------------------------------------------------------------------------------


def test_missing_files_are_faults_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "image_feats.mat").touch()
    found = faults(
        "image_encoder=precomputed",
        f"image_encoder.path={tmp_path}/image_feat.mat",
        f"text_encoder.vectors={tmp_path}/nowhere/glove.vec",
        f"ckpt_path={tmp_path}/last.ckpt",
    )
    assert len(found) == 3
    assert "Did you mean 'image_feats.mat'?" in found[0]
    assert f"no folder {tmp_path}/nowhere" in found[1]
    assert found[2] == f"ckpt_path={tmp_path}/last.ckpt: there is no such file in {tmp_path}."


def test_a_missing_data_set_says_where_it_could_be_named(tmp_path: Path) -> None:
    found = faults("data=flickr8k", f"paths.data_dir={tmp_path}", "image_encoder.weights=null")
    assert len(found) == 1
    assert f"data.root={tmp_path}/flickr8k: there is no such folder" in found[0]
    assert "paths.data_dir=/path" in found[0]
    assert faults("--cfg", "job", "data=flickr8k", f"paths.data_dir={tmp_path}") == ()


def test_a_table_is_looked_for_from_where_the_command_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.csv").touch()
    assert faults("data=table", "data.file=pairs.csv") == ()
    assert compose(["data=table", "data.file=pairs.csv"]).data.file == str(tmp_path / "pairs.csv")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "more.csv").touch()
    assert faults("data=table", "data.file=more.csv", "data.root=photos") == ()
    assert "Did you mean 'pairs.csv'?" in faults("data=table", "data.file=pair.csv")[0]
    assert faults("data=table") == ("data.file: this choice of data needs a file: data.file=/path/to/file.",)


def test_wikipedia_has_features_alone(tmp_path: Path) -> None:
    found = faults("data=wikipedia", f"data.root={tmp_path}")
    assert [fault.split(",")[0] for fault in found] == ["data=wikipedia has no photos", "data=wikipedia has no texts"]
    path = tmp_path / "raw_features.mat"
    path.touch()
    sides = [
        f"{s}_encoder=precomputed {s}_encoder.path={path} {s}_encoder.key=[a,b]".split() for s in ("image", "text")
    ]
    assert faults("data=wikipedia", f"data.root={tmp_path}", *sides[0], *sides[1]) == ()


def test_precomputed_features_need_a_file_and_a_known_maker(tmp_path: Path) -> None:
    assert faults("text_encoder=precomputed") == (
        "text_encoder.path: this choice of text_encoder needs a file: text_encoder.path=/path/to/file.",
    )
    path = tmp_path / "feats.mat"
    path.touch()
    chosen = ["image_encoder=precomputed", f"image_encoder.path={path}"]
    assert faults(*chosen, "image_encoder.made_by=vgg") == ()
    assert "Did you mean 'vgg'?" in faults(*chosen, "image_encoder.made_by=vggg")[0]


def test_weights_are_pretrained_null_or_a_path_that_exists(tmp_path: Path) -> None:
    assert faults("image_encoder.weights=pretrained") == ()
    assert "Did you mean 'pretrained'?" in faults("image_encoder.weights=pretraind")[0]
    assert "there is no such file" in faults(f"image_encoder.weights={tmp_path}/vgg.pt")[0]
    assert faults("text_encoder=bert", f"text_encoder.weights={tmp_path}") == ()
    assert faults("text_encoder=bert", "text_encoder.weights=org/some-bert") == ()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["trainer.max_epochs=3", "trainer.check_val_every_n_epoch=5"], "no epoch would be validated"),
        (["trainer=cpu", "trainer.precision=16-mixed"], "a CPU has no float16 training"),
        (["+data.splits.dev=[val]"], "data.splits.dev: there is no such role."),
        (["data.splits.val=[]"], "data.splits.val=[]: a run needs at least one split to select the best epoch by."),
        (
            ["monitor=val/rsun"],
            "monitor=val/rsun: no validation gives it. Did you mean 'val/rsum'? Choices: val/rsum, ",
        ),
        (["monitor=val/loss"], "monitor=val/loss: less of it is better, and the highest wins."),
        (["monitor=val/t2i_R20"], "monitor=val/t2i_R20: no validation gives it."),
        (
            ["monitor=val/i2i_mAP"],
            "monitor=val/i2i_mAP: images are found by images, and texts by texts, where data.relevance=class alone.",
        ),
        (["~data"], "data: a run needs one"),
        (["+loss.margine=3"], "takes no such parameter. Did you mean 'margin'?"),
        (["loss._target_=xmodal.losses.triplet.TripletLos"], "Did you mean 'TripletLoss'?"),
        (["loss._target_=xmodal.losses.triple.TripletLoss"], "there is no module xmodal.losses.triple."),
        (
            ["callbacks/averaging=swa", "callbacks.averaging.start_epoch=4", "trainer.max_epochs=4"],
            "callbacks.averaging.start_epoch=4: epochs are counted from 0, so with trainer.max_epochs=4 no weights",
        ),
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.patience=-1"],
            "callbacks.early_stopping.patience=-1: expected a whole number of at least 0, found -1.",
        ),
        (
            ["text_aggregator=gru", "text_aggregator.directions=mean"],
            "text_aggregator.directions=mean: a set that is read in one direction has no other reading",
        ),
        (
            ["model/image_tower/vector_projection=mlp", "model.image_tower.vector_projection.num_layers=0"],
            "or leave the projection out: model/image_tower/vector_projection=none.",
        ),
    ],
)
def test_choices_that_do_not_go_together(argv: list[str], expected: str) -> None:
    found = faults(*argv)
    assert any(expected in fault for fault in found), found


@pytest.mark.parametrize(
    ("loss", "distance", "reached", "missed"),
    [
        ("triplet", "cosine", 2, 2.1),
        ("triplet", "euclidean", 2, 2.1),
        ("triplet", "squared_euclidean", 4, 4.1),
        ("contrastive", "euclidean", 2.0, 3),
    ],
)
def test_margins_that_nothing_could_keep(loss: str, distance: str, reached: float, missed: float) -> None:
    argv = [f"loss={loss}", f"loss.distance={distance}"]
    assert faults(*argv, f"loss.margin={reached}") == ()
    (found,) = faults(*argv, f"loss.margin={missed}")
    assert found.startswith(f"loss.margin={missed}: no two embeddings of length 1 are further apart than")
    of_any_length = faults(*argv, f"loss.margin={missed}", "model.text_tower.normalize=false")
    assert bool(of_any_length) == (distance == "cosine")


def test_margins_of_losses_within_losses() -> None:
    (found,) = faults("loss=weighted", "loss@loss.losses.cross=triplet", "loss.losses.cross.margin=3")
    assert found.startswith("loss.losses.cross.margin=3: ")


@pytest.mark.parametrize(
    "argv",
    [
        ["callbacks/averaging=swa", "callbacks.averaging.start_epoch=3", "trainer.max_epochs=4"],
        ["callbacks/averaging=swa", "trainer.max_epochs=1"],
        ["callbacks/averaging=ema", "callbacks.averaging.start_epoch=9", "trainer.max_epochs=-1", "scheduler=none"],
        ["text_aggregator=gru", "text_aggregator.directions=mean", "text_aggregator.bidirectional=true"],
        ["matryoshka=[64,32]", "callbacks=early_stopping", "callbacks.early_stopping.patience=0"],
    ],
    ids=" ".join,
)
def test_choices_that_go_together(argv: list[str]) -> None:
    assert faults(*argv) == ()


def test_every_figure_of_which_more_is_better_can_be_monitored() -> None:
    random = np.random.default_rng(0)
    sides = random.normal(size=(2, 12, 3)), np.arange(12), np.arange(12)
    for labels, relevance in ((None, "instance"), (np.arange(12) % 3, "class")):
        result = evaluate_retrieval(*sides[0], *sides[1:], ks=(1, 5, 10, 20), image_labels=labels)
        figures = {f"val/{name}" for name in result.metrics if not name.endswith(("medR", "meanR"))}
        cfg = compose([f"data.relevance={relevance}", "callbacks.retrieval.ks=[20]"])
        assert set(monitors(cfg)) == figures
    assert faults("monitor=val/t2i_R20", "callbacks.retrieval.ks=[1,20]") == ()
    assert faults("monitor=val/t2t_mAP", "data.relevance=class") == ()


# --- paths and folders -------------------------------------------------------------------------------------------


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = compose(["paths.output_dir=out", "paths.data_dir=../here", "ckpt_path=a/b.ckpt", "data.root=scenes"])
    assert cfg.paths.output_dir == str(tmp_path / "out")
    assert cfg.paths.features_dir == str(tmp_path / "out" / "features")
    assert cfg.paths.cache_dir == str(tmp_path / "out" / "cache")
    assert cfg.paths.data_dir == str(tmp_path.parent / "here")
    assert cfg.ckpt_path == str(tmp_path / "a" / "b.ckpt")
    assert resolved(cfg)["data"]["root"] == str(tmp_path / "scenes")
    assert absolute_paths(compose([])).paths.output_dir == str(tmp_path / "outputs")


def test_data_dir_is_the_environment_variable_or_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XMODAL_DATA", str(tmp_path))
    assert compose([]).paths.data_dir == default_data_dir() == str(tmp_path)
    monkeypatch.delenv("XMODAL_DATA")
    assert compose([]).paths.data_dir == str(CONF_DIR.parent / "data")


def test_resolved_is_plain_and_keeps_what_is_missing() -> None:
    plain = resolved(compose(["embedding_dim=8"]))
    assert plain["model"]["image_tower"]["feature_dim"] == "???"
    assert plain["model"]["image_tower"]["projection"]["output_dim"] == 8
    assert json.loads(json.dumps(plain)) == plain


def test_two_runs_in_one_second_get_two_folders() -> None:
    with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = hydra.compose("train", return_hydra_config=True)
    folders = []
    for _ in range(50):
        OmegaConf.clear_cache(cfg)  # what a new process starts without
        folders.append(cfg.hydra.run.dir)
        assert cfg.hydra.run.dir == folders[-1]  # within a run it stays
    assert len(set(folders)) == 50
    assert len({folder.rpartition("-")[0] for folder in folders}) < 50
    assert all(re.search(r"/outputs/runs/scenes/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-[0-9a-f]{6}$", f) for f in folders)


def test_an_option_can_be_read_inside_another_config() -> None:
    cfg = compose(["data=flickr30k", "image_encoder=frcnn"])
    vgg = compose_choice(cfg, "image_encoder", "vgg")
    assert vgg["_target_"].endswith("vgg.VGGEncoder") or "vgg" in vgg["_target_"]
    assert vgg["weights"] == "pretrained"  # what data=flickr30k asks for
    with pytest.raises(ConfigError, match=r"there is no image_encoder 'vg'\. Did you mean 'vgg'\?"):
        compose_choice(cfg, "image_encoder", "vg")


def test_compose_refuses_what_is_misspelt() -> None:
    with pytest.raises(ConfigError, match="embeding_dim") as caught:
        compose(["embeding_dim=3", "loss.margn=2"])
    assert len(caught.value.faults) == 2


# --- processes ---------------------------------------------------------------------------------------------------


def test_the_command_line_is_checked_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from xmodal.config.command_line import check_command_line\n"
        "check_command_line(['embedding_dim=3', 'debug=fast'])\n"
        "print([name for name in ('torch', 'numpy', 'pytorch_lightning', 'transformers') if name in sys.modules])"
    )
    done = run([sys.executable, "-c", code], tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


def test_help_explains_without_torch_in_under_three_seconds(tmp_path: Path) -> None:
    """Behind settings, too, whatever is wrong with them."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    typed = ["-m", "embedding_dim=64,128", "data=nope", "--help"]
    done = run([sys.executable, "-X", "importtime", str(TRAIN), *typed], tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| torch\n" not in done.stderr
    assert (
        after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 3.0
    )  # of a processor, however busy it is
    for text in ("data: ", "lstm, max, mean, sum", "python train.py debug=fast", "$XMODAL_DATA"):
        assert text in done.stdout


def test_the_examples_and_keys_of_the_help_are_real(tmp_path: Path) -> None:
    text = (CONF_DIR / "hydra" / "help" / "xmodal.yaml").read_text(encoding="utf-8")
    lines = [
        shlex.split(line.split("#")[0])[2:] for line in text.splitlines() if line.strip().startswith("python train.py")
    ]
    commands = [words for words in lines if words and "[group=option" not in words and "prints" not in words]
    assert len(commands) >= 7
    for words in commands:
        assert check_overrides([word for word in words if "=" in word and "<" not in word]) == [], words
    others = compose(["image_encoder=precomputed", "text_encoder=bert", "data=table"])
    keys = {*all_keys(compose([])), *all_keys(others), "text_encoder.path"}
    named = text.partition("KEYS")[2].partition("EXAMPLES")[0]
    found = [key for key in re.findall(r"\b[a-z_]+\.[a-z_]+\b", named) if key.partition(".")[0] in others]
    assert len(found) >= 14
    assert [key for key in found if key not in keys] == []


RELAUNCHING = """
import json, os, subprocess, sys
import hydra
from xmodal.config.sources import CONF_DIR
from xmodal.config.command_line import check_command_line
check_command_line(sys.argv[1:])

@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
def main(cfg):
    from hydra.core.hydra_config import HydraConfig
    print(json.dumps([HydraConfig.get().runtime.output_dir, cfg.embedding_dim, cfg.name]), flush=True)
    if "IS_CHILD" not in os.environ:
        from lightning_fabric.strategies.launchers.subprocess_script import _hydra_subprocess_cmd
        command, folder = _hydra_subprocess_cmd(local_rank=1)
        subprocess.run(command, cwd=folder, env={**os.environ, "IS_CHILD": "1"}, check=True)

main()
"""


@pytest.mark.slow
def test_lightnings_own_relaunch_passes_and_shares_the_folder(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(RELAUNCHING)
    argv = ["embedding_dim=9", "name='a, b'", "paths.output_dir=out", "debug=fast"]
    done = run([sys.executable, str(script), *argv], tmp_path)
    assert done.returncode == 0, done.stderr
    parent, child = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert parent == child
    assert parent[1:] == [9, "a, b"]
    assert Path(parent[0]).parent == tmp_path / "out" / "runs" / "scenes"
    assert len(list(Path(parent[0]).parent.iterdir())) == 1


def test_a_saved_config_can_be_the_source(tmp_path: Path) -> None:
    """Older launchers start the second process from the first one's saved config."""
    OmegaConf.save(compose(["embedding_dim=9"]), tmp_path / "config.yaml")
    assert faults("-cp", str(tmp_path), "-cn", "config.yaml", f'hydra.run.dir="{tmp_path}"') == ()
    assert "Did you mean 'embedding_dim'?" in faults("-cp", str(tmp_path), "-cn", "config", "embeding_dim=3")[0]


def test_each_job_of_a_multirun_has_its_folder(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(RELAUNCHING)
    argv = ["-m", "embedding_dim=3,4", "paths.output_dir=out"]
    done = run([sys.executable, str(script), *argv], tmp_path, IS_CHILD="1")
    assert done.returncode == 0, done.stderr
    jobs = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [job[1] for job in jobs] == [3, 4]
    assert [Path(job[0]).name for job in jobs] == ["0", "1"]
    assert {Path(job[0]).parent.parent for job in jobs} == {tmp_path / "out" / "multirun"}
    assert (Path(jobs[0][0]) / "train.log").exists()


# --- small parts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        ("int", [0, -3], [True, 1.0, "1", None, [1]]),
        ("float", [0, 1.5], [True, "1", None]),
        ("bool", [True], [0, "true"]),
        ("str", ["a"], [1, None]),
        ("int | None", [1, None], ["a"]),
        ("Optional[float]", [1, None], ["a"]),
        ("Union[int, str]", [1, "a"], [1.5]),
        ("Literal['a', 'b'] | None", ["a", None], ["c", 1]),
        ("Literal[1, 2]", [1], [True, 3, "1"]),
        ("Sequence[int]", [[1]], [1, "a"]),
        ("tuple[float, float]", [[1, 2]], [1]),
        ("dict[str, Any]", [{"a": 1}], [[1]]),
        ("'int | str'", [1, "a"], [None]),
        ("Unheard", [1, "a", None, [1]], []),
    ],
)
def test_annotations_admit_what_they_say(annotation: str, right: list[object], wrong: list[object]) -> None:
    kinds = accepted(annotation)
    assert [kinds.admits(value) for value in right] == [True] * len(right)
    assert [kinds.admits(value) for value in wrong] == [False] * len(wrong)


def test_signatures_follow_imports_and_aliases() -> None:
    trainer = signature("pytorch_lightning.Trainer")
    assert trainer is not None
    assert trainer.parameters["precision"].admits("bf16-mixed")
    assert not trainer.parameters["precision"].admits("bf17")
    adam = signature("torch.optim.Adam")
    assert adam is not None
    assert not adam.parameters["amsgrad"].admits("yes")
    assert signature("torch.optim.Adamm") is None
    assert signature("nowhere.at.all.Thing") is None


@given(st.lists(st.sampled_from("abcdefghijklmn"), min_size=4, max_size=12, unique=True), st.data())
def test_one_wrong_letter_is_always_recognised(letters: list[str], data: st.DataObject) -> None:
    word = "".join(letters)
    at = data.draw(st.integers(0, len(word) - 1))
    slip = word[:at] + "z" + word[at + 1 :]
    assert likely_keys(f"loss.{slip}", [f"loss.{word}", "trainer.other_key"]) == [f"loss.{word}"]
    assert did_you_mean(slip, [word]) == f" Did you mean '{word}'?"


def test_keys_are_found_whatever_their_value() -> None:
    cfg = OmegaConf.create({"a": {"b": None, "c": "???", "d": "${a.e}", "e": {"f": [1]}}})
    present = ["a", "a.b", "a.c", "a.d", "a.e", "a.e.f", "a.e.f.0"]
    assert [has_key(cfg, key) for key in present] == [True] * len(present)
    absent = ["b", "a.x", "a.b.x", "a.e.f.1", "a.c.x", "a.d.f"]
    assert [has_key(cfg, key) for key in absent] == [False] * len(absent)
    assert list(all_keys(cfg)) == ["a", "a.b", "a.c", "a.d", "a.e", "a.e.f"]


def test_a_name_of_the_hub_is_left_to_encoders_that_have_a_model_and_no_others_take_one():
    name = "image_encoder.weights=google/siglip-base-patch16-224"
    assert check(compose(["image_encoder=clip", name])) == []
    [fault] = check(compose(["image_encoder=vgg", name]))
    assert "there is no such file or folder. Expected pretrained, null (seeded random) or a path." in fault


# --- groups within groups ----------------------------------------------------------------------------------------


def test_the_states_of_an_aggregator_are_pooled_by_an_aggregator_of_choice() -> None:
    chosen = ["text_aggregator=gru", "text_aggregator/pooling=gpo", "text_aggregator.pooling.temperature=0.2"]
    assert faults(*chosen, "image_aggregator=transformer", "image_aggregator/pooling=max") == ()
    cfg = compose(chosen)
    assert cfg.text_aggregator.pooling._target_ == "xmodal.aggregators.gpo.GPOAggregator"
    assert cfg.text_aggregator.pooling.temperature == 0.2
    assert compose(["text_aggregator=gru"]).text_aggregator.pooling is None


@pytest.mark.parametrize("side", ["image", "text"])
def test_an_aggregator_without_states_has_nothing_to_pool(side: str) -> None:
    argv = [f"{side}_aggregator=mean", f"{side}_aggregator/pooling=gpo"]
    expected = (
        f"{side}_aggregator/pooling: xmodal.aggregators.mean.MeanAggregator has no pooling. Choose "
        f"{side}_aggregator=gru or {side}_aggregator=transformer, or leave it out: {side}_aggregator/pooling=none."
    )
    assert faults(*argv) == (expected,)
    with pytest.raises(ConfigError, match=re.escape(expected)):
        compose(argv)
    assert faults(argv[0], f"{side}_aggregator/pooling=none") == ()


def test_a_nested_choice_is_typed_with_a_slash_and_its_values_are_checked() -> None:
    found = faults("text_aggregator=gru", "text_aggregator.pooling=gpo")
    assert found == ("text_aggregator.pooling=gpo: a choice is written with a slash: text_aggregator/pooling=gpo.",)
    argv = ["text_aggregator=gru", "text_aggregator/pooling=gpo", "text_aggregator.pooling.temperature=hot"]
    assert faults(*argv) == ("text_aggregator.pooling.temperature=hot: expected a number, found 'hot'.",)
    assert faults("-m", "text_aggregator=gru,transformer", "text_aggregator/pooling=gpo,mean") == ()


def test_a_vector_projection_states_the_width_that_it_gives() -> None:
    key, projection = "model.image_tower.vector_projection", "_target_:xmodal.models.projection.Projection"
    assert faults("model/image_tower/vector_projection=mlp", f"{key}.num_layers=3", f"{key}.output_dim=64") == ()
    assert faults(f"{key}={{{projection},_partial_:true,output_dim:64}}") == ()
    (found,) = faults(f"{key}={{{projection}}}")
    assert found.startswith(f"{key}: expected _target_, _partial_: true and output_dim")
    assert found.endswith("The usual one is model/image_tower/vector_projection=mlp.")
