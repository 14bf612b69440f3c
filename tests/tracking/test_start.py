"""When W&B goes online, and how a configuration becomes columns; nothing here reaches a server."""

import pytest

from xmodal.tracking.columns import flat_config
from xmodal.tracking.key import chosen_mode


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """No W&B variable, and a home folder without a key."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


def netrc_with(folder, host):
    file = folder / "keys"
    file.write_text(f"machine {host}\n  login user\n  password {'0' * 40}\n", encoding="utf-8")
    file.chmod(0o600)
    return str(file)


def test_without_a_key_auto_is_offline(bare):
    assert chosen_mode("auto") == "offline"


def test_with_a_key_in_the_environment_auto_is_online(bare):
    bare.setenv("WANDB_API_KEY", "0" * 40)
    assert chosen_mode("auto") == "online"


def test_with_a_key_in_the_netrc_file_auto_is_online(bare, tmp_path):
    bare.setenv("NETRC", netrc_with(tmp_path, "api.wandb.ai"))
    assert chosen_mode("auto") == "online"


def test_key_of_another_server_does_not_count(bare, tmp_path):
    bare.setenv("NETRC", netrc_with(tmp_path, "wandb.example.org"))
    assert chosen_mode("auto") == "offline"
    bare.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert chosen_mode("auto") == "online"


@pytest.mark.parametrize("content", [b"machine", b"\xff\xfe\x00"])
def test_damaged_netrc_file_is_no_key(bare, tmp_path, content):
    (tmp_path / "keys").write_bytes(content)
    bare.setenv("NETRC", str(tmp_path / "keys"))
    assert chosen_mode("auto") == "offline"


def test_netrc_that_is_a_folder_is_no_key(bare, tmp_path):
    bare.setenv("NETRC", str(tmp_path))
    assert chosen_mode("auto") == "offline"


def test_environment_decides_before_the_key(bare):
    bare.setenv("WANDB_API_KEY", "0" * 40)
    bare.setenv("WANDB_MODE", "offline")
    assert chosen_mode("auto") == "offline"


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_named_mode_stays(bare, mode):
    assert chosen_mode(mode) == mode


def test_flat_config():
    nested = {"loss": {"margin": 0.2, "more": {}}, "tags": ["a", "b"], "name": None}
    assert flat_config(nested) == {"loss.margin": 0.2, "loss.more": {}, "tags": ["a", "b"], "name": None}
