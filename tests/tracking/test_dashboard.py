"""The standard dashboard as it is sent to W&B, and `xmodal dashboard`; nothing here reaches a server."""

import json
import os
import subprocess
import sys

import pytest

from xmodal.cli import main
from xmodal.tracking.dashboard import spec_of, standard_dashboard

KEY = "0" * 40


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """No key, and a home folder of its own."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


@pytest.fixture(scope="module", autouse=True)
def in_vain(tmp_path_factory):
    """A command whose server is not there; W&B tries for 20 seconds, in which the other tests run."""
    home = {"HOME": str(tmp_path_factory.mktemp("home"))}
    environment = os.environ | home | {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY}
    words = [sys.executable, "-m", "xmodal.cli", "dashboard", "--entity", "team", "--project", "retrieval"]
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def section_of(spec, name):
    (found,) = [s for s in spec["section"]["panelBankConfig"]["sections"] if s["name"] == name]
    return found


def charts(section):
    return {panel["config"].get("chartTitle"): panel for panel in section["panels"]}


def test_a_section_for_every_question():
    sent = spec_of(standard_dashboard("team", "retrieval"))
    assert (sent["entity"], sent["project"], sent["displayName"]) == ("team", "retrieval", "xmodal")
    sections = sent["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == [
        "Overview", "Image → text", "Text → image", "Training", "Space of the embeddings",
    ]  # fmt: skip
    assert [section["pinned"] for section in sections] == [True, False, False, False, False]


@pytest.mark.parametrize(("way", "title"), [("i2t", "Image → text"), ("t2i", "Text → image")])
def test_a_direction_has_its_charts_and_its_table(way, title):
    section = section_of(spec_of(standard_dashboard("team", "retrieval"))["spec"], title)
    shown = charts(section)
    assert shown["R@5, validation (%)"]["config"]["metrics"] == [f"{way}/val_R5"]
    assert shown["R@5, validation (%)"]["config"]["xAxis"] == "epoch"
    assert shown["Ranks of matches, log10, validation"]["config"]["metrics"] == [f"{way}/val_log10_rank"]
    (table,) = [panel for panel in section["panels"] if panel["viewType"] == "Weave"]
    assert f'"{way}/test_retrieved"' in json.dumps(table)


def test_runs_stand_by_the_monitored_figure_with_their_parts_as_columns():
    (runs,) = spec_of(standard_dashboard("team", "retrieval", monitor="val/t2i_R1"))["spec"]["section"]["runSets"]
    (key,) = runs["sort"]["keys"]
    assert (key["key"]["section"], key["key"]["name"], key["ascending"]) == ("summary", "val/t2i_R1", False)
    pinned = runs["runFeed"]["columnPinned"]
    assert {"run:displayName", "config:image_encoder.value", "config:loss.value", "summary:test/rsum"} <= set(pinned)


def test_one_sweep_alone():
    everything, one = (
        json.dumps(spec_of(standard_dashboard("team", "retrieval", group=group))["spec"]["section"]["runSets"])
        for group in (None, "2026-01-01_embedding_dim")
    )
    assert "2026-01-01_embedding_dim" not in everything
    assert "2026-01-01_embedding_dim" in one


def test_command_writes_the_definition_without_key_or_network(bare, tmp_path, capsys):
    file = tmp_path / "dashboard.json"
    assert main(["dashboard", "--entity", "team", "--name", "mine", "--json", str(file)]) == 0
    assert str(file) in capsys.readouterr().out
    sent = json.loads(file.read_text(encoding="utf-8"))
    assert (sent["entity"], sent["project"], sent["displayName"]) == ("team", "xmodal", "mine")


def test_without_a_key_the_command_says_what_to_do(bare, capsys):
    assert main(["dashboard", "--entity", "team", "--projet", "x"]) == 2
    said = capsys.readouterr().err
    assert "W&B has no key for api.wandb.ai: type `wandb login`, or set WANDB_API_KEY" in said
    assert "--projet: `xmodal dashboard` has no such option. Did you mean '--project'?" in said
    assert "Traceback" not in said


def test_without_the_library_the_command_says_how_to_install_it(tmp_path):
    hidden = "import sys; sys.modules['wandb_workspaces'] = None; from xmodal.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", hidden, "dashboard", "--entity", "team", "--json", str(tmp_path / "x.json")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install -c constraints.txt -e '.[dashboards]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x.json").exists()


def test_command_does_not_wait_for_torch(tmp_path):
    look = "import sys; from xmodal.cli import main; code = main(); sys.exit(code or int('torch' in sys.modules))"
    words = [sys.executable, "-c", look, "dashboard", "--entity", "team", "--json", str(tmp_path / "x.json")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_server_that_can_not_be_reached_is_said(in_vain):
    _, said = in_vain.communicate(timeout=300)
    assert in_vain.returncode == 2
    assert "The dashboard of team/retrieval was not saved: " in said
    assert "Traceback" not in said
