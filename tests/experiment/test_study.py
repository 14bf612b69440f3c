"""Searches by Optuna: their space, and their study on disk."""

import math
from pathlib import Path

import optuna
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import GridSampler, TPESampler
from optuna.trial import TrialState

from xmodal.config.sources import CONF_DIR
from xmodal.errors import ConfigError
from xmodal.experiment.search_space import name_of, space_of
from xmodal.experiment.study import Search, direction_of, open_study, seeded, storage_of

FOLDER = Path("sweep")
LINES = ["embedding_dim=256,512", "seed=1", "loss.margin=interval(0.1,0.4)"]


def read(*lines: str):
    return space_of(lines, ConfigLoaderImpl(create_config_search_path(str(CONF_DIR))))


def search(folder: Path, resume: bool = False) -> Search:
    space, fixed = read(*LINES)
    name = name_of("val/rsum", space, fixed)
    return Search(open_study(name, storage_of(None, folder, name), "maximize", resume), space, fixed)


def test_lists_and_bounds_become_distributions_and_later_ones_count():
    space, fixed = read(
        "a=1,2", "a=3,4", "b=interval(0.1,1)", "c=tag(log,interval(1e-4,1e-2))", "d=range(1,9,2)",
        "e=int(interval(1,5))", "f=x", "g=range(1.0,2.5,0.5)", "text_aggregator=glob(l*)",
    )  # fmt: skip
    assert fixed == ("f=x",)
    assert space == {
        "a": CategoricalDistribution(["3", "4"]),
        "b": FloatDistribution(0.1, 1.0),
        "c": FloatDistribution(1e-4, 1e-2, log=True),
        "d": IntDistribution(1, 7, step=2),
        "e": IntDistribution(1, 5),
        "g": CategoricalDistribution(["1.0", "1.5", "2.0"]),
        "text_aggregator": CategoricalDistribution(["lstm"]),
    }


def test_nothing_to_look_for_is_said():
    with pytest.raises(ConfigError, match=r"nothing to look for\. Type lists or bounds: loss\.margin="):
        read("seed=1")


def test_a_search_has_one_name_wherever_its_runs_are_kept():
    names = {
        name_of("val/rsum", *read(*lines))
        for lines in (LINES, LINES[::-1], [*LINES, "paths.output_dir=/a", "resume=true"])
    }
    assert len(names) == 1
    others = [("val/rsum", [*LINES, "data=flickr8k"]), ("val/i2t_R1", LINES), ("val/rsum", LINES[:2])]
    assert len(names | {name_of(metric, *read(*lines)) for metric, lines in others}) == 4


def test_losses_and_ranks_are_made_small():
    assert direction_of("val/loss", "auto") == direction_of("val/i2t_medR", "auto") == "minimize"
    assert direction_of("val/rsum", "auto") == "maximize"
    assert direction_of("val/rsum", "minimize") == "minimize"
    with pytest.raises(ConfigError, match=r"direction=best: expected auto, minimize or maximize"):
        direction_of("val/rsum", "best")


def test_a_study_is_gone_on_with_and_what_has_no_figure_comes_first(tmp_path: Path):
    first = search(tmp_path)
    done, failed, cut_off = (first.ask(tmp_path / name) for name in ("one", "two", "two"))
    first.tell(done, 7.0)
    first.tell(failed, math.nan)
    assert first.completed == 1
    assert first.overrides(done) == ["seed=1", *(f"{key}={value}" for key, value in done.params.items())]
    with pytest.raises(ConfigError, match=r"has 3 trials already\. Add resume=true"):
        search(tmp_path)
    again = search(tmp_path, resume=True)
    assert again.completed == 1
    assert [again.ask(FOLDER).params for _ in range(2)] == [failed.params, cut_off.params]
    assert again.study.trials[cut_off.number].state == TrialState.FAIL
    assert again.sweeps() == []  # it is gone
    (tmp_path / "one").mkdir()
    assert again.sweeps() == [tmp_path / "one"]
    assert again.best()["best_value"] == 7.0
    assert again.best()["best_params"] == done.params
    third = search(tmp_path, resume=True)  # killed again: nothing is queued twice
    assert [third.ask(FOLDER).params for _ in range(2)] == [failed.params, cut_off.params]
    assert third.ask(FOLDER).params not in (failed.params, cut_off.params)


def test_a_study_without_figures_has_no_best(tmp_path: Path):
    assert search(tmp_path).best() is None


def test_a_database_keeps_a_study_too(tmp_path: Path):
    address = f"sqlite:///{tmp_path / 'studies.db'}"
    space, fixed = read(*LINES)
    for resume in (False, True):
        found = Search(open_study("one", storage_of(address, tmp_path, "one"), "maximize", resume), space, fixed)
        found.tell(found.ask(FOLDER), 1.0)
    assert found.completed == 2


def test_a_sampler_that_goes_on_does_not_draw_what_it_drew(tmp_path: Path):
    found = search(tmp_path)
    found.study.sampler = seeded(TPESampler, 3, found.study)
    first = found.ask(FOLDER)
    found.tell(first, 1.0)
    again = search(tmp_path, resume=True)
    again.study.sampler = seeded(TPESampler, 3, again.study)
    assert again.ask(FOLDER).params["loss.margin"] != first.params["loss.margin"]
    fresh = optuna.create_study()
    fresh.sampler = seeded(TPESampler, 3, fresh)
    assert fresh.ask(found.space).params == first.params
    assert isinstance(seeded(lambda: GridSampler({"a": [1]}), 3, fresh), GridSampler)
