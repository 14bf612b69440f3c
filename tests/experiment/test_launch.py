"""Which processes share a run folder; that those of torchrun do so is tested with torchrun itself (test_train.py)."""

import json
import os
import socket
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from torch.distributed import TCPStore

from xmodal.config.sources import CONF_DIR
from xmodal.errors import ConfigError
from xmodal.experiment import launch
from xmodal.experiment.launch import one_run, require_one_start, words_for_this_process, words_of_job

WORDS = ["seed=1", "trainer=ddp"]


@pytest.fixture
def torchrun(monkeypatch):
    """The environment of rank 1 of 2, with the store that torchrun's agent keeps."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    found = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in (found | {"RANK": "1", "WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(name, value)
    return store


def test_other_ranks_take_the_folder_of_rank_0(torchrun, monkeypatch):
    torchrun.set("xmodal/run_folder/0", '/a folder/"x"')
    added = ['hydra.run.dir="/a folder/\\"x\\""', "hydra.job.name=train_rank_1", "hydra.output_subdir=null"]
    assert words_for_this_process(WORDS) == WORDS + added
    for shown in (["--help"], ["--cfg", "job"], ["hydra.run.dir=/here"]):
        assert words_for_this_process(WORDS + shown) == WORDS + shown
    monkeypatch.setenv("RANK", "0")
    assert words_for_this_process(WORDS) == WORDS


def test_one_process_and_those_of_lightning_are_left_alone(torchrun, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert words_for_this_process(WORDS) == WORDS
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK")
    assert words_for_this_process([*WORDS, "-m"]) == [*WORDS, "-m"]


def test_starts_that_would_make_several_folders_are_refused(torchrun, monkeypatch):
    with pytest.raises(ConfigError, match=r"can't start a multirun.*python train\.py trainer=ddp.*torchrun"):
        words_for_this_process([*WORDS, "-m"])
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    with pytest.raises(ConfigError, match=r"not by torchrun.*python train\.py trainer=ddp.*hydra\.run\.dir"):
        words_for_this_process(WORDS)


def test_a_rank_that_is_told_nothing_says_so(torchrun, monkeypatch):
    monkeypatch.setattr(launch, "_PATIENCE", launch.timedelta(milliseconds=300))
    with pytest.raises(ConfigError, match="Rank 1 was not told the run folder of rank 0"):
        words_for_this_process(WORDS)


def test_the_trainer_and_the_start_agree_on_the_number_of_processes(torchrun, monkeypatch):
    assert not HydraConfig.initialized()
    one, two = (OmegaConf.create({"trainer": {"num_nodes": nodes}}) for nodes in (1, 2))
    require_one_start(one, 2)
    require_one_start(two, 1)
    with pytest.raises(ConfigError, match=r"torchrun started 2 processes.*say 1 × 1\. Add trainer=ddp"):
        require_one_start(one, 1)
    monkeypatch.delenv("RANK")
    require_one_start(one, 2)
    with pytest.raises(ConfigError, match=r"trainer\.num_nodes=2: each node .*torchrun --nnodes 2"):
        require_one_start(two, 2)


def test_strategies_whose_processes_take_the_figures_with_them_are_refused():
    for strategy in ("ddp_spawn", "ddp_fork_find_unused_parameters_true", "ddp_notebook"):
        cfg = OmegaConf.create({"trainer": {"strategy": strategy}})
        with pytest.raises(ConfigError, match=rf"trainer\.strategy={strategy}: .*Choose trainer\.strategy=ddp\."):
            require_one_start(cfg, 2)


@pytest.fixture
def job(monkeypatch, tmp_path):
    """The second job of a multirun, in this process."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "XMODAL_JOB"):
        monkeypatch.delenv(name, raising=False)
    swept = ["sweep=embedding_dim", "seed=1,2", "data.batch_size=8", "hydra.verbose=[xmodal]"]
    swept += ["hydra.sweep.dir=/elsewhere"]
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "--config-name", "train", *swept])
    chosen = [
        "sweep=embedding_dim",
        "seed=2",
        "data.batch_size=8",
        "hydra.verbose=[xmodal]",
        "hydra.sweep.dir=/elsewhere",
        "hydra.mode=MULTIRUN",
    ]
    folder = f"{tmp_path}/a folder/1"
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("train", [*chosen, f"hydra.runtime.output_dir='{folder}'"], return_hydra_config=True)
    cfg.hydra.overrides.task, cfg.hydra.overrides.hydra = chosen[:3], chosen[3:]
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(cfg)
    yield folder
    HydraConfig.instance().cfg = before


def test_processes_of_a_job_are_told_that_job_alone(job, monkeypatch):
    inherited = ["-m", "seed=1,2", 'hydra.run.dir="/not/this"', "hydra.job.name=train_ddp_process_1"]
    with one_run():
        told = json.loads(os.environ["XMODAL_JOB"])
        assert words_of_job(inherited) == inherited  # rank 0 itself
        monkeypatch.setenv("LOCAL_RANK", "1")
        found = words_of_job(inherited)
    expected = ["--config-name", "train", "seed=2", "data.batch_size=8", "hydra.verbose=[xmodal]"]
    assert told == [*expected, f'hydra.run.dir="{job}"']
    assert found == [*told, "hydra.job.name=train_rank_1", "hydra.output_subdir=null"]


def test_the_next_job_finds_nothing_of_the_processes_of_the_last(job, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "1234")  # the user's own choice stays
    with one_run():
        os.environ |= {"LOCAL_RANK": "0", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "4321"}
    assert os.environ["MASTER_PORT"] == "1234"
    assert not {"LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "XMODAL_JOB"} & set(os.environ)


def fail_beside_others():
    os.environ["LOCAL_RANK"] = "0"
    raise ValueError("no such thing")


def test_a_job_of_several_processes_that_fails_says_why_and_ends_the_multirun(job, caplog):
    with pytest.raises(ValueError, match="alone"), one_run():
        raise ValueError("a job that was alone leaves the next ones to Hydra")
    with pytest.raises(SystemExit), one_run():
        fail_beside_others()
    assert "no such thing" in caplog.text
    assert "LOCAL_RANK" not in os.environ
