"""The files of conf/wandb: read by W&B's own code, and their command run as W&B's own agent runs it."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from wandb.apis.public.sweeps import _validate_config_and_fill_distribution
from wandb.sdk.launch.sweeps.utils import load_sweep_config
from wandb.wandb_agent import Agent

from xmodal.config.command_line import check_command_line, check_overrides
from xmodal.config.sources import CONF_DIR

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((CONF_DIR / "wandb").glob("*.yaml"))
METHODS = ("grid", "random", "bayes")
TINY = [
    "data.train_size=8", "data.val_size=4", "data.test_size=4", "data.image_size=32", "image_encoder=precomputed",
    "text_encoder.vector_size=16", "text_encoder.epochs=1", "text_encoder.bucket=500", "debug=fast", "trainer=cpu",
]  # fmt: skip


def proposals(config: dict) -> list[dict[str, object]]:
    """Values that W&B may give out: the least of each parameter, and the greatest."""
    ends = {
        name: (of["values"][0], of["values"][-1]) if "values" in of else (of["min"], of["max"])
        for name, of in config["parameters"].items()
    }
    return [{name: pair[end] for name, pair in ends.items()} for end in (0, 1)]


def test_there_is_a_grid_and_a_search():
    assert {load_sweep_config(str(file))["method"] for file in FILES} == {"grid", "bayes"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_wandb_accepts_the_file_and_every_proposal_is_a_command_line(file: Path):
    config = _validate_config_and_fill_distribution(load_sweep_config(str(file)))
    assert config["method"] in METHODS
    assert config["metric"] == {"name": "val/rsum", "goal": "maximize"}
    assert (ROOT / config["program"]).is_file()
    assert config["command"] == ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"]
    for values in proposals(config):
        check_command_line([f"{key}={value}" for key, value in values.items()])


def test_no_choice_of_hydra_is_made_of_these_files():
    assert "there is no key 'wandb'" in check_overrides(["wandb=embedding_dim"])[0]


@pytest.mark.slow
def test_an_agent_runs_the_command(tmp_path: Path, monkeypatch):
    """What the agent does on receiving a run, without the server that would send it.

    Of one file: all have the same command (above), and this one's values are numbers of any kind, written by the agent.
    """
    config = load_sweep_config(str(CONF_DIR / "wandb" / "margin_and_rate.yaml"))
    values = proposals(config)[0]
    monkeypatch.chdir(ROOT)
    for name, value in {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "WANDB_SWEEP_ID": "abc12345",
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "WANDB_RUN_ID": "",
        "WANDB_SWEEP_PARAM_PATH": "",
    }.items():
        monkeypatch.setenv(name, value)
    np.save(tmp_path / "photos.npy", np.eye(16, dtype=np.float32))
    agent = Agent(None, None, sweep_id="abc12345")
    agent._sweep_command = [
        *config["command"],
        *TINY,
        f"image_encoder.path={tmp_path}/photos.npy",
        f"paths.output_dir={tmp_path}/out",
    ]
    given = {name: {"value": value} for name, value in values.items()}
    agent._command_run({"run_id": "run00001", "program": config["program"], "args": given})
    assert agent._run_processes["run00001"]._popen.wait(600) == 0
    (provenance,) = tmp_path.glob("out/runs/scenes/*/provenance.json")
    told = json.loads(provenance.read_text())
    assert told["status"] == "finished"
    assert told["overrides"][: len(values)] == [f"{key}={value}" for key, value in values.items()]
    (record,) = provenance.parent.glob("wandb/offline-run-*/*.wandb")
    assert record.stem == "run-run00001"
