"""W&B's key (never shown), what a run would do, and runs that wait to be synced."""

from pathlib import Path

import pytest

from xmodal.config.command_line import compose
from xmodal.doctor.tracking import key, library, mode, offline_runs

SECRET = "0123456789" * 4


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No W&B variable, and a home folder without a key."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


def test_without_a_key_a_run_is_offline_and_nothing_is_at_fault(bare: pytest.MonkeyPatch) -> None:
    (configured,), (chosen,) = key(), mode(compose())
    assert (configured.mark, configured.advice) == ("optional", "wandb login")
    assert (chosen.mark, chosen.values["mode"]) == ("ok", "offline")


def test_a_key_is_told_by_its_place_and_never_shown(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {SECRET}\n")
    (tmp_path / ".netrc").chmod(0o600)
    (of_file,) = key()
    bare.setenv("WANDB_API_KEY", SECRET)
    (of_variable,), (chosen,) = key(), mode(compose())
    assert of_file.found == f"for api.wandb.ai, from {tmp_path}/.netrc"
    assert of_variable.found == "for api.wandb.ai, from WANDB_API_KEY"
    assert chosen.values["mode"] == "online"
    assert SECRET not in repr([of_file, of_variable, chosen])


def test_a_file_of_keys_that_cannot_be_read_is_named(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("nonsense here\n")
    (line,) = key()
    assert line.mark == "warning"
    assert f"{tmp_path}/.netrc can't be read" in line.found


@pytest.mark.parametrize("way", ["variable", "setting"])
def test_online_without_a_key_would_fail(bare: pytest.MonkeyPatch, way: str) -> None:
    if way == "variable":
        bare.setenv("WANDB_MODE", "online")
    (line,) = mode(compose([] if way == "variable" else ["logger.mode=online"]))
    assert line.mark == "fault"
    assert line.advice.startswith("wandb login")


def test_another_logger_needs_none_of_it(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("WANDB_MODE", "online")
    (line,) = mode(compose(["logger=csv"]))
    assert line.mark == "ok"


def test_offline_runs_are_counted_until_they_are_synced(tmp_path: Path) -> None:
    assert next(iter(offline_runs(tmp_path))).values == {"unsynced": 0}
    runs = ["runs/scenes/a/wandb/offline-run-1-x", "multirun/b/0/wandb/offline-run-2-y"]
    for run in runs:
        (tmp_path / run).mkdir(parents=True)
    (line,) = offline_runs(tmp_path)
    assert line.values == {"unsynced": 2}
    assert line.advice == f"wandb sync {tmp_path / runs[1]}"
    (tmp_path / runs[1] / "run-y.wandb.synced").touch()
    assert next(iter(offline_runs(tmp_path))).values == {"unsynced": 1}


def test_its_version_is_told() -> None:
    (line,) = library()
    assert line.mark == "ok"
