"""Weights: digests, files that fit or don't, random numbers that leave no trace."""

import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from xmodal.encoders import weights
from xmodal.errors import WeightsError


def small_network(seed: int = 0) -> nn.Module:
    with weights.seeded(seed):
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_seeded_is_reproducible_and_leaves_the_global_state():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with weights.seeded(1):
        first = torch.rand(5)
    assert torch.equal(torch.rand(3), expected)
    with weights.seeded(1):
        assert torch.equal(torch.rand(5), first)


def test_digest_depends_on_every_name_type_shape_and_value_but_not_on_order_or_layout():
    tensors = {"a": torch.arange(24.0).reshape(1, 2, 3, 4), "b": torch.tensor(3), "c": torch.zeros(0)}
    found = weights.digest(tensors)
    assert found == weights.digest(dict(reversed(tensors.items())))
    assert found == weights.digest({**tensors, "a": tensors["a"].to(memory_format=torch.channels_last)})
    changed = tensors["a"].clone()
    changed[0, 1, 2, 3] += 1e-5
    others = [
        {**tensors, "a": changed},
        {**tensors, "a": tensors["a"].double()},
        {**tensors, "a": tensors["a"].reshape(2, 1, 3, 4)},
        {"d": tensors["a"], "b": tensors["b"], "c": tensors["c"]},
    ]
    assert len({found, *map(weights.digest, others)}) == 5


def test_digest_of_bfloat16():
    assert weights.digest({"a": torch.ones(2, dtype=torch.bfloat16)}) != weights.digest({"a": torch.ones(2).half()})


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.safetensors"])
def test_state_dict_files_are_read(tmp_path: Path, name: str):
    state = small_network().state_dict()
    (save_file if name.endswith("safetensors") else torch.save)(dict(state), tmp_path / name)
    assert weights.digest(weights.read_state_dict(tmp_path / name, "image_encoder")) == weights.digest(state)


def test_absent_file_is_named(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"image_encoder\.weights: no file .*nothing\.pt; .*null"):
        weights.read_state_dict(tmp_path / "nothing.pt", "image_encoder")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello there, this is no tensor", bytes(range(256)) * 40])
def test_damaged_file_is_named(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=rf"can't read .*{name}.*expected"):
        weights.read_state_dict(tmp_path / name, "image_encoder")


def test_truncated_file_is_named(tmp_path: Path):
    torch.save(small_network().state_dict(), tmp_path / "w.pt")
    content = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match=r"can't read .*w\.pt"):
        weights.read_state_dict(tmp_path / "w.pt", "image_encoder")


def test_a_training_checkpoint_is_not_a_state_dict(tmp_path: Path):
    torch.save({"epoch": 3, "state_dict": small_network().state_dict()}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="holds a dictionary with epoch, state_dict; expected a flat state_dict"):
        weights.read_state_dict(tmp_path / "w.pt", "image_encoder")


def test_code_in_a_file_is_refused(tmp_path: Path):
    torch.save(small_network(), tmp_path / "whole_module.pt")
    with pytest.raises(WeightsError, match=r"can't read .*whole_module\.pt"):
        weights.read_state_dict(tmp_path / "whole_module.pt", "image_encoder")


def test_load_strictly_copies_and_tolerates_only_a_missing_counter():
    state = small_network(1).state_dict()
    del state["1.num_batches_tracked"]
    network = small_network(2)
    weights.load_strictly(network, state, "test")
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in state.items())


def test_load_strictly_names_missing_unexpected_and_shapes():
    state = small_network().state_dict()
    state["2.scale"] = state.pop("2.bias")
    with pytest.raises(
        WeightsError, match=r"test does not fit Sequential .*1 missing: 2\.bias; 1 unexpected: 2\.scale"
    ):
        weights.load_strictly(small_network(), state, "test")
    state = small_network().state_dict() | {"0.weight": torch.zeros(4, 5)}
    with pytest.raises(WeightsError, match=r"1 of wrong shape: 0\.weight \(4, 5\) instead of \(4, 3\)"):
        weights.load_strictly(small_network(), state, "test")


def test_probe_recognises_other_weights():
    state = weights.frozen_state(small_network(0), embed=False)
    assert set(state) == {"probe"}
    weights.check_probe(small_network(0), state, "net")
    with pytest.raises(WeightsError, match="weights of net are not those"):
        weights.check_probe(small_network(1), state, "net")
    with pytest.raises(WeightsError, match="weights of net are not those"):
        weights.check_probe(nn.Linear(2, 2), state, "net")


def test_unreachable_gives_up_on_a_silent_host():
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections, never answers
        start = time.monotonic()
        fault = weights.unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}/file", seconds=0.3)
    assert fault is not None
    assert "127.0.0.1" in fault
    assert time.monotonic() - start < 30  # by itself a socket waits forever; the machine may be busy


def test_unreachable_says_why_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "can't be reached" in str(weights.unreachable(f"http://127.0.0.1:{port}/file", seconds=5.0))


def test_a_download_that_stalls_ends():
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, weights._stalls_end(0.2):
        connection = socket.create_connection(silent.getsockname())
        with connection, pytest.raises(TimeoutError):
            connection.recv(1)
    assert socket.getdefaulttimeout() is None
