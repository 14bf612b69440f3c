"""What training is told about its evaluation, refused before anything is loaded."""

import pytest

from xmodal.config.command_line import check_command_line
from xmodal.config.evaluation import FEWEST_RESAMPLES, EvaluationOptions
from xmodal.errors import ConfigError


def faults(*words: str) -> tuple[str, ...]:
    try:
        check_command_line(words)
    except ConfigError as error:
        return error.faults
    return ()


@pytest.mark.parametrize(
    ("ks", "found"), [("[0]", "found 0."), ("[a]", "found 'a'."), ("[1,2.5,-3]", "found 2.5, -3."), ("[true]", "True.")]
)
def test_a_cutoff_is_a_positive_whole_number(ks, found):
    [fault] = faults(f"callbacks.retrieval.ks={ks}")
    assert "expected cut-offs K of recall@K, whole numbers of at least 1" in fault
    assert fault.endswith(found)


def test_good_cutoffs_pass_and_name_monitors():
    assert faults("callbacks.retrieval.ks=[3,20]", "monitor=val/i2t_R20") == ()
    assert len(faults("callbacks.retrieval.ks=[0,20]", "monitor=val/i2t_R0")) == 2
    assert len(faults("callbacks.retrieval.ks=3")) == 1


@pytest.mark.parametrize("callback", ["checkpoint", "health", "record", "resume"])
def test_each_callback_monitors_what_there_is(callback):
    [fault] = faults(f"callbacks.{callback}.monitor=val/i2t_R2")
    assert fault.startswith(f"callbacks.{callback}.monitor=val/i2t_R2: no validation gives it. Did you mean")
    assert faults(f"callbacks.{callback}.monitor=val/i2t_R1") == ()


def test_a_search_within_one_side_needs_classes():
    [fault] = [one for one in faults("monitor=val/i2i_mAP") if one.startswith("monitor=")]
    assert "where data.relevance=class alone" in fault


@pytest.mark.parametrize("resamples", [1, 5, FEWEST_RESAMPLES - 1])
def test_training_and_evaluation_refuse_the_same_numbers_of_resamples(resamples):
    rule = f"must be a number of resamples, at least 40 for a 95 % interval, or 0 for none; found {resamples}."
    [of_training] = faults(f"bootstrap={resamples}")
    [of_evaluation] = EvaluationOptions(bootstrap=resamples).faults("run")
    assert of_training == f"bootstrap={resamples}: it {rule}"
    assert of_evaluation == f"--bootstrap {rule}"


@pytest.mark.parametrize("resamples", [0, FEWEST_RESAMPLES, 1000])
def test_no_resamples_or_enough_of_them_pass(resamples):
    assert faults(f"bootstrap={resamples}") == ()
    assert EvaluationOptions(bootstrap=resamples).faults("run") == []


def test_a_negative_number_of_resamples_is_said_once():
    assert faults("bootstrap=-1") == ("bootstrap=-1: expected a whole number of at least 0, found -1.",)


@pytest.mark.parametrize(("images", "folds", "offered"), [(60, 7, "4 or 5 or 6 or 10"), (9, 9, "3"), (10, 5, None)])
def test_folds_that_would_do_are_offered(images, folds, offered):
    fault = EvaluationOptions(folds=folds).folds_fault(images)
    assert fault is None if offered is None else fault.endswith(f"Possible: --folds {offered}.")
