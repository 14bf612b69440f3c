"""Launchers that stand in conf/: they state what their plugins take, and what a cluster would be asked for."""

import os
from pathlib import Path

import pytest
import submitit
from hydra_plugins.hydra_joblib_launcher.config import JobLibLauncherConf
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf, LocalQueueConf, SlurmQueueConf
from omegaconf import OmegaConf

from xmodal.config.sources import ConfigSource

PLUGINS = {"joblib": JobLibLauncherConf, "slurm": SlurmQueueConf, "submitit_local": LocalQueueConf}


def launcher(*overrides: str):
    return ConfigSource().load_hydra(overrides).launcher


@pytest.mark.parametrize("option", PLUGINS)
def test_a_file_states_what_its_plugin_takes(option: str):
    stated, taken = launcher(f"hydra/launcher={option}"), OmegaConf.structured(PLUGINS[option])
    assert set(stated.keys()) == set(taken.keys())
    assert stated._target_ == taken._target_


def test_slurm_is_asked_for_what_is_typed(tmp_path: Path, monkeypatch):
    """submitit writes the file that sbatch would get; it wants a program called srun to be there."""
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    typed = {"partition": "gpu", "gpus_per_node": "1", "mem_gb": "32", "array_parallelism": "3"}
    cfg = launcher("hydra/launcher=slurm", *(f"hydra.launcher.{key}={value}" for key, value in typed.items()))
    given = OmegaConf.to_container(cfg, resolve=False)
    for own in ("_target_", "submitit_folder", "max_num_timeout", "name"):  # not of sbatch, or of the sweep's folder
        given.pop(own)
    named = {key if key in BaseQueueConf.__dataclass_fields__ else f"slurm_{key}": given[key] for key in given}
    executor = submitit.AutoExecutor(folder=tmp_path / "jobs", cluster="slurm", slurm_max_num_timeout=0)
    executor.update_parameters(**named)
    text = executor._executor._make_submission_file_text("python job.py", "one")
    for line in ("partition=gpu", "gpus-per-node=1", "mem=32GB", "cpus-per-task=4", "time=1440", "signal=USR2@120"):
        assert f"#SBATCH --{line}" in text, text
