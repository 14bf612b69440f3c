import pytest
import torch

from xmodal.errors import ConfigError
from xmodal.features.precision import computing_in, precision_in_key, precisions_of_auto, used_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpu_with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)


@pytest.fixture
def gpu_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")


def test_on_a_processor() -> None:
    assert [used_precision(name, CPU, "float16") for name in ("auto", "float32", "bfloat16")] == [
        "float32",
        "float32",
        "bfloat16",
    ]
    with pytest.raises(ConfigError, match=r"features.precision=float16 is for GPUs"):
        used_precision("float16", CPU, "float16")
    with pytest.raises(ConfigError, match=r"must be one of auto, float32, bfloat16, float16, found 'fp16'"):
        used_precision("fp16", CPU, "float16")


def test_on_a_gpu_with_bfloat16(gpu_with_bfloat16: None) -> None:
    assert used_precision("auto", GPU, "float16") == "bfloat16"
    assert used_precision("auto", GPU, "float32") == "float32"  # the user wants exact values
    assert used_precision("float16", GPU, "float32") == "float16"


def test_on_a_gpu_without_bfloat16(gpu_without_bfloat16: None) -> None:
    assert used_precision("auto", GPU, "float16") == "float32"
    with pytest.raises(ConfigError, match=r"bfloat16: Old GPU does not compute in it.*float16, float32 or auto"):
        used_precision("bfloat16", GPU, "float16")


def test_half_precision_belongs_to_the_key() -> None:
    assert [precision_in_key(name) for name in ("float32", "bfloat16", "float16")] == ["", "bfloat16", "float16"]


@pytest.mark.parametrize("stored", ["float16", "float32"])
def test_auto_means_one_of_these(stored: str, gpu_with_bfloat16: None) -> None:
    assert {used_precision("auto", device, stored) for device in (CPU, GPU)} == set(precisions_of_auto(stored))


def test_matrix_products_are_computed_in_it() -> None:
    x = torch.ones(2, 2)
    for used in ("float32", "bfloat16"):
        with computing_in(used, CPU):
            assert (x @ x).dtype == getattr(torch, used)
