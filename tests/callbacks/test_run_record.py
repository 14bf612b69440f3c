"""The best row of a history, and the pace of training, on clocks that the test sets."""

import math

import pytest

from xmodal.callbacks.pace import Pace
from xmodal.callbacks.run_record import RunRecord


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pace(clock):
    return Pace(clock)


def test_pace_counts_loading_and_training(pace, clock):
    for seconds in (1.0, 3.0):
        clock.now += seconds
        pace.count(10)
    assert pace.pairs_per_second == 20 / 4


def test_validation_does_not_count(pace, clock):
    clock.now += 2.0
    pace.count(10)
    clock.now += 50.0
    pace.go_on()
    clock.now += 3.0
    pace.count(20)
    assert pace.pairs_per_second == 30 / 5


def test_each_epoch_has_a_pace_of_its_own(pace, clock):
    clock.now += 1.0
    pace.count(1000)
    clock.now += 7.0
    pace.begin()
    assert pace.pairs_per_second is None
    clock.now += 2.0
    pace.count(3)
    assert pace.pairs_per_second == 1.5


def test_best_row_is_the_first_of_the_highest(tmp_path):
    record = RunRecord(tmp_path, "val/rsum")
    assert record.best_row() == {}
    figures = (3.0, math.nan, 9.0, 9.0, 1.0)
    record.history = [{"epoch": n, "val/rsum": figure} for n, figure in enumerate(figures)] + [{"epoch": 5}]
    assert record.best_row() == {"epoch": 2, "val/rsum": 9.0}
