"""Sweeps on the command line: lists from files, lists that are typed, and what does not go together."""

import pytest

from xmodal.config import sweeping as module
from xmodal.config.command_line import check_command_line
from xmodal.config.sources import ConfigSource
from xmodal.config.sweeping import sweeping
from xmodal.errors import ConfigError

SWEEPS = [name for name in ConfigSource().groups()["sweep"] if name != "none"]


def lines(*typed: str) -> tuple[str, ...]:
    found = sweeping(typed, ConfigSource())
    assert found.faults == ()
    return found.lines


def faults(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as refusal:
        check_command_line(words)
    return list(refusal.value.faults)


def test_a_file_states_lists_and_those_that_are_typed_replace_them():
    both = ("embedding_dim=256,512,1024,2048,4096", "text_aggregator=sum,mean")
    assert lines("sweep=embedding_dim", "loss.margin=0.1,0.2") == both
    assert lines("sweep=embedding_dim", "embedding_dim=64,128") == both[1:]
    assert lines("sweep=embedding_dim", "text_aggregator=lstm") == both[:1]
    assert lines("embedding_dim=64,128") == lines("sweep=none") == ()


@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_job_of_every_sweep_composes(sweep: str):
    check_command_line(["-m", f"sweep={sweep}"])
    assert len(lines(f"sweep={sweep}")) >= 1


def test_every_job_is_checked():
    found = faults("-m", "sweep=embedding_dim", "text_aggregator=sum", "matryoshka=[300]")
    assert len(found) == 1
    assert "matryoshka=[300]: expected whole numbers from 1 to 255, smaller than embedding_dim=256" in found[0]


def test_a_sweep_without_multirun_says_so():
    assert faults("sweep=losses") == ["sweep=losses: a sweep is several runs: add -m."]
    check_command_line(["sweep=none"])
    check_command_line(["--cfg", "job", "sweep=losses"])
    check_command_line(["hydra.mode=MULTIRUN", "sweep=losses", "loss=triplet,infonce"])


def test_several_sweeps_at_a_time_are_refused():
    found = faults("-m", "sweep=losses,seeds")
    assert found == ["sweep=losses,seeds: one sweep at a time. Lists can be typed beside it: loss.margin=0.1,0.2."]


def test_bounds_need_a_sweeper_that_draws():
    found = faults("-m", "loss.margin=interval(0.1,0.2)")
    assert len(found) == 1
    assert "a grid takes single values" in found[0]
    assert found[0].endswith("hydra/sweeper=optuna.")
    check_command_line(["-m", "hydra/sweeper=optuna", "loss.margin=interval(0.1,0.2)"])


@pytest.mark.parametrize("choice", ["hydra/launcher=joblib", "hydra/launcher=slurm", "hydra/sweeper=optuna"])
def test_what_is_not_installed_is_named_with_the_command_that_brings_it(choice: str, monkeypatch):
    monkeypatch.setattr(module, "_NEEDED", dict.fromkeys(module._NEEDED, "no_such_package.at_all"))
    found = faults("-m", choice, "seed=1,2")
    assert len(found) == 1
    assert found[0].startswith(choice.partition("=")[0])
    assert "pip install 'xmodal[sweeps]'" in found[0]


def test_the_figure_that_is_optimised_is_one_of_validation():
    found = faults("optimized_metric=val/rsumm", "embedding_dim=8")
    assert found[0].startswith("optimized_metric=val/rsumm: no validation gives it. Did you mean 'val/rsum'?")
    assert "runs are not chosen by the test split" in faults("optimized_metric=test/rsum")[0]
    check_command_line(["optimized_metric=val/loss"])
