"""What a run that goes on takes from the one before; the rest is in test_resume.py and test_fine_tuning.py."""

import logging

import pytest

from xmodal.config.command_line import compose
from xmodal.config.values import resolved
from xmodal.errors import ConfigError
from xmodal.experiment.resuming import EarlierRun


def earlier(*overrides: str) -> EarlierRun:
    return EarlierRun("last.ckpt", resolved(compose(list(overrides))), {})


@pytest.mark.parametrize(
    ("before", "typed", "expected"),
    [
        ("[]", [], ([], "error")),
        ("[3,x.jpg]", [], ([3, "x.jpg"], "error")),
        ("[3,x.jpg]", ["data.exclude=['3',7]"], ([3, "x.jpg", 7], "error")),
        ("[]", ["data.on_error=skip"], ([], "error")),
        ("[3]", ["data.on_error=skip"], ([3], "error")),
        ("[3]", ["data.on_error=skip", "data.name=another"], ([], "skip")),
    ],
)
def test_items_are_those_of_the_earlier_run(before: str, typed: list[str], expected: tuple[list, str]) -> None:
    cfg = earlier(f"data.exclude={before}").taken_up(compose(typed))
    assert (list(cfg.data.exclude), cfg.data.on_error) == expected


def test_a_run_from_before_photos_could_be_left_out_says_nothing_of_items() -> None:
    run = earlier()
    del run.config["data"]["exclude"], run.config["data"]["on_error"]
    assert run.taken_up(compose(["data.on_error=skip"])).data.on_error == "skip"


def test_taking_other_items_than_typed_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        earlier("data.exclude=[3]").taken_up(compose(["data.exclude=[3]"]))
        assert caplog.text == ""
        earlier("data.exclude=[3]").taken_up(compose([]))
    assert "Going on with the items of ckpt_path=last.ckpt: data.exclude has the 1 image that its run" in caplog.text


def test_a_run_from_before_towers_had_more_settings_goes_on() -> None:
    run = earlier()
    for tower in (run.config["model"]["image_tower"], run.config["model"]["text_tower"]):
        del tower["element_dropout"], tower["vector_projection"]
        del tower["projection"]["residual"], tower["projection"]["batch_norm"]
    run.taken_up(compose([]))
    with pytest.raises(ConfigError, match=r"element_dropout: None in the checkpoint, 0\.2 now"):
        run.taken_up(compose(["model.text_tower.element_dropout=0.2"]))


@pytest.mark.parametrize(
    ("before", "typed", "expected"),
    [
        ("loss=triplet", "loss=infonce", r"loss\._target_: xmodal\.losses\.triplet.* in the checkpoint"),
        ("loss=infonce", "loss.learn_temperature=false", r"loss\.learn_temperature: True in the checkpoint, False now"),
        ("loss=weighted", "loss@loss.losses.cross=siglip", r"loss\.losses\.cross\._target_: xmodal\.losses\.infonce"),
    ],
)
def test_a_loss_with_other_parameters_is_refused(before: str, typed: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        earlier(before).taken_up(compose([before, typed] if typed.split("=")[0] != "loss" else [typed]))


def test_a_term_that_is_left_out_or_new_is_refused() -> None:
    left_out = "loss.losses.text=null"
    with pytest.raises(ConfigError, match=r"loss\.losses\.text\._target_: xmodal\.losses\.within.* no such term now"):
        earlier("loss=weighted").taken_up(compose(["loss=weighted", left_out, "loss.weights={cross: 1.0}"]))
    with pytest.raises(ConfigError, match=r"loss\.losses\.text\._target_: None in the checkpoint"):
        earlier("loss=weighted", left_out).taken_up(compose(["loss=weighted"]))
    earlier("loss=weighted", left_out).taken_up(compose(["loss=weighted", left_out]))


def test_settings_of_a_loss_that_are_no_parameters_may_change() -> None:
    earlier("loss=infonce").taken_up(compose(["loss=infonce", "loss.siblings=positive"]))
