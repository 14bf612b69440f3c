"""What a run takes for granted is looked at before its features are made."""

import pytest
from omegaconf import OmegaConf

from xmodal.config.command_line import compose
from xmodal.data.items import Caption, ImageItem, Items
from xmodal.errors import ConfigError, DataError
from xmodal.experiment.premises import check_premises

LABELS = {"train": "aabb", "val": "cd"}


def items_of(labels=LABELS, captions: int = 1) -> Items:
    roles = [(role, label) for role, named in labels.items() for label in named]
    images = tuple(ImageItem(row, role, label=label) for row, (role, label) in enumerate(roles))
    rows = [row for row in range(len(images)) for _ in range(captions)]
    return Items("few", images, tuple(Caption(at, row, "a word") for at, row in enumerate(rows)))


@pytest.fixture(scope="module")
def composed():
    return compose(["data.batch_size=2", "trainer.max_epochs=3"])


@pytest.fixture
def config(composed):
    def changed(**values):
        cfg = composed.copy()
        for key, value in values.items():
            OmegaConf.update(cfg, key.replace("__", "."), value)
        return cfg

    return changed


def test_labels_that_tell_nothing_apart(config):
    cfg = config(relevance="label")
    check_premises(cfg, items_of(), 1)
    alike = items_of({"train": "aaaa", "val": "cd"})
    check_premises(config(), alike, 1)
    with pytest.raises(DataError, match=r"relevance=label: all items of few to train on have the label a, so that"):
        check_premises(cfg, alike, 1)


@pytest.mark.parametrize("monitor", ["val/i2i_mAP", "val/t2t_R1", "val/dim8/i2i_R5"])
def test_a_monitored_search_in_which_nothing_has_a_match(config, monitor):
    cfg = config(monitor=monitor)
    check_premises(cfg, items_of({"train": "ab", "val": "cdc"}), 1)
    with pytest.raises(ConfigError, match=r"no two of the 2 \w+s of few to validate on share a label") as raised:
        check_premises(cfg, items_of(), 1)
    assert raised.value.faults[0].startswith(f"monitor={monitor}: ")


def test_texts_of_one_image_have_its_label(config):
    check_premises(config(monitor="val/t2t_mAP"), items_of(captions=2), 1)
    check_premises(config(), items_of(), 1)


def test_statistics_of_each_process_are_told(config, caplog):
    key = "model.text_tower.projection.batch_norm"
    normed = config(model__text_tower__projection__batch_norm=True)
    check_premises(normed, items_of(), 1)
    check_premises(config(), items_of(), 4)
    synced = normed.copy()
    OmegaConf.update(synced, "trainer.sync_batchnorm", True, force_add=True)
    check_premises(synced, items_of(), 4)
    assert caplog.text == ""
    check_premises(normed, items_of(), 4)
    assert f"{key}=true: each of the 4 processes normalises over its own pairs alone" in caplog.text
    assert "trainer.sync_batchnorm=true" in caplog.text


@pytest.mark.parametrize(
    ("values", "processes", "steps"),
    [
        ({}, 1, 6),  # 3 epochs of 4 captions in batches of 2
        ({}, 2, 3),
        ({"trainer__accumulate_grad_batches": 2}, 1, 3),
        ({"trainer__max_steps": 4}, 1, 4),
        ({"trainer__max_epochs": -1, "trainer__max_steps": 5}, 1, 5),
    ],
)
def test_a_warm_up_that_the_run_does_not_see_the_end_of(config, caplog, values, processes, steps):
    def checked(warmup):
        settings = config(scheduler__interval="epoch", **values)
        OmegaConf.update(settings, "scheduler.warmup_steps", warmup, force_add=True)
        check_premises(settings, items_of(), processes)

    for warmup in (0, 0.9, steps - 1):
        checked(warmup)
    assert caplog.text == ""
    checked(steps)
    assert f"scheduler.warmup_steps={steps}: the run has {steps} optimizer steps" in caplog.text


def test_a_warm_up_of_the_loss_that_outlasts_the_run(config, caplog):
    for warmup, is_told in ((3, False), (4, True)):
        settings = config(trainer__max_epochs=-1, trainer__max_steps=3)
        OmegaConf.update(settings, "loss.warmup_steps", warmup, force_add=True)
        check_premises(settings, items_of(), 1)
        assert (f"loss.warmup_steps={warmup}: the run has 3 optimizer steps" in caplog.text) == is_told


def test_a_run_without_end_sees_the_end_of_its_warm_up(config, caplog):
    settings = config(trainer__max_epochs=-1)
    OmegaConf.update(settings, "scheduler.warmup_steps", 9999, force_add=True)
    check_premises(settings, items_of(), 1)
    assert caplog.text == ""
