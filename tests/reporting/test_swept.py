"""What differs between runs, and what only follows."""

import pytest

from xmodal.reporting.runs import find_runs
from xmodal.reporting.swept import headline_keys, label, setting, shown, sortable, swept_keys

LSTM = {"_target_": "xmodal.aggregators.lstm.LSTMAggregator", "hidden_size": 512, "feature_dim": 300}
SUM = {"_target_": "xmodal.aggregators.sum.SumAggregator", "feature_dim": 300}


def aggregator(node: dict, prefix: str = "text_aggregator") -> dict:
    """As a resolved configuration has it: once for itself, once in the model."""
    copies = (prefix, "model.text_tower.aggregator")
    return {f"{place}.{key}": value for place in copies for key, value in node.items()}


def size(value: int) -> dict:
    return {"embedding_dim": value, "model.text_tower.projection.output_dim": value, "model.seed": value}


@pytest.fixture
def keys_of(make_run):
    def found(*settings: dict) -> list[str]:
        for number, one in enumerate(settings):
            make_run(f"{number}", one)
        return swept_keys(find_runs([make_run.root]))

    return found


def test_a_grid_of_sizes_and_aggregators(keys_of):
    grid = [{**size(width), **aggregator(node)} for width in (256, 512) for node in (SUM, LSTM)]
    assert keys_of(*grid) == ["embedding_dim", "text_aggregator"]


def test_settings_within_an_option_are_keys_of_their_own(keys_of):
    grid = [aggregator(LSTM), aggregator({**LSTM, "hidden_size": 64}), aggregator(SUM)]
    assert keys_of(*grid) == ["text_aggregator", "text_aggregator.hidden_size"]


def epochs(number, period):
    return {"trainer.max_epochs": number, "scheduler.T_max": period}


@pytest.mark.parametrize(
    ("runs", "keys"),
    [
        ([epochs(2, 2), epochs(5, 5)], ["trainer.max_epochs"]),
        ([epochs(2, 2), epochs(5, 5), {"trainer.max_epochs": 5}], ["trainer.max_epochs"]),
        ([epochs(2, 2), epochs(5, 3)], ["scheduler.T_max", "trainer.max_epochs"]),
        ([epochs(5, 5), epochs(5, 3)], ["scheduler.T_max"]),
    ],
)
def test_what_follows_from_another_setting_is_no_key_of_its_own(keys_of, runs, keys):
    assert keys_of(*runs) == keys


def test_two_sides_that_vary_together_are_both_named(keys_of):
    both = [{**aggregator(node), **aggregator(node, "image_aggregator")} for node in (SUM, LSTM)]
    assert keys_of(*both) == ["image_aggregator", "text_aggregator"]


def test_seed_places_and_what_only_watches_are_no_settings(keys_of):
    nothing = [
        {
            "seed": number, "paths.output_dir": f"/{number}", "data.root": f"/{number}", "tags": [number],
            "logger._target_": str(number), "features.memory_gb": number, "trainer.accelerator": str(number),
            "callbacks.health.patience": number, "text_encoder.seed": number, "reference.source": str(number),
            "image_encoder.path": f"/somewhere/{number}/vectors.mat",
        }
        for number in range(2)
    ]  # fmt: skip
    assert keys_of(*nothing) == []


def test_another_file_is_another_setting_wherever_it_lies(keys_of):
    assert keys_of({"image_encoder.path": "/a/vit.mat"}, {"image_encoder.path": "/b/vgg.mat"}) == ["image_encoder.path"]


def test_a_setting_that_an_earlier_version_did_not_know_does_not_differ(keys_of):
    assert keys_of({"relevance": "instance", "embedding_dim": 1}, {"embedding_dim": 2}) == ["embedding_dim"]


def test_a_node_against_none_differs(keys_of):
    pooled = {"text_aggregator.pooling._target_": "xmodal.aggregators.max.MaxAggregator"}
    assert keys_of(pooled, {"text_aggregator.pooling": None}) == ["text_aggregator.pooling"]


def test_an_option_against_none_differs_though_no_other_is_there(keys_of):
    cosine = {"scheduler._target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "scheduler.T_max": 5}
    assert keys_of(cosine, {"scheduler._target_": None}) == ["scheduler"]


def test_a_callback_that_one_run_has_differs_and_is_none_in_the_other(make_run):
    stopping = {"callbacks.early_stopping._target_": "pytorch_lightning.callbacks.EarlyStopping"}
    make_run("a", stopping | {"embedding_dim": 1})
    make_run("b", {"embedding_dim": 1})
    runs = find_runs([make_run.root])
    assert swept_keys(runs) == ["callbacks.early_stopping"]
    assert [setting(run, "callbacks.early_stopping") for run in runs] == ["EarlyStopping", "none"]


def test_the_seed_of_a_part_differs_where_it_is_not_that_of_the_run(keys_of):
    assert keys_of({"data.seed": 0}, {"data.seed": 99}) == ["data.seed"]


def test_a_setting_left_out_in_runs_of_the_same_code_differs(make_run):
    for name, settings, commit in (("a", {"optimizer.amsgrad": True}, "1f"), ("b", {}, "1f"), ("c", {}, "2e")):
        make_run(name, settings, provenance={"git": {"commit": commit}})
    [first, same, other] = find_runs([make_run.root])
    assert swept_keys([first, same]) == ["optimizer.amsgrad"]
    assert swept_keys([first, other]) == []


def test_of_commands_alone_what_is_not_typed_differs(make_run):
    for name, words in (("a", "text_aggregator=lstm"), ("b", "")):
        folder = make_run(name)
        (folder / "config.yaml").unlink()
        (folder / "command.txt").write_text(f"python train.py embedding_dim=64 {words}\n")
    assert swept_keys(find_runs([make_run.root])) == ["text_aggregator"]


def test_files_of_one_name_are_told_apart_within_a_sweep(make_run):
    for name, place, sweep in (("a", "/x/va/v.vec", "s"), ("b", "/x/vb/v.vec", "s"), ("c", "/y/w.vec", "s")):
        make_run(name, {"text_encoder.vectors": place}, provenance={"sweep": sweep})
    runs = find_runs([make_run.root])
    assert swept_keys(runs) == ["text_encoder.vectors"]
    assert [setting(run, "text_encoder.vectors") for run in runs] == ["va/v.vec", "vb/v.vec", "w.vec"]


def test_labels(make_run):
    make_run(
        "one", {"embedding_dim": 512, "optimizer.lr": 1e-5, "image_encoder.path": "/a/b.mat", "matryoshka": [1, 2]}
    )
    [run] = find_runs([make_run.root])
    keys = ["embedding_dim", "optimizer.lr", "image_encoder.path", "matryoshka"]
    assert label(run, keys) == "embedding_dim=512, optimizer.lr=1e-05, image_encoder.path=b.mat, matryoshka=[1,2]"
    assert label(run, ["absent"]) == label(run, []) == "one"
    assert setting(run, "absent") is None


def test_values_as_they_are_typed():
    assert [shown(value) for value in (None, True, 1, 0.1, "mean", [1, 2])] == [
        "null",
        "true",
        "1",
        "0.1",
        "mean",
        "[1,2]",
    ]


def test_numbers_stand_before_words_and_words_before_nothing():
    assert sorted([None, "b", 10, 9.5, "a", True], key=sortable) == [9.5, 10, "a", "b", True, None]


def test_many_keys_head_no_columns():
    assert headline_keys(["a", "b", "c", "d"]) == ["a", "b", "c", "d"]
    assert headline_keys(["a", "b", "c", "d", "e"]) == []
