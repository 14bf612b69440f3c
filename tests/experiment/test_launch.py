"""Which processes share a run folder; that those of torchrun do so is tested with torchrun itself (test_train.py)."""

import socket

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from torch.distributed import TCPStore

from xmodal.errors import ConfigError
from xmodal.experiment import launch
from xmodal.experiment.launch import require_one_start, words_for_this_process

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
