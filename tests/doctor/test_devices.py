"""What there is to compute with, on whatever machine the tests run."""

import os
from pathlib import Path

import pytest
import torch

from xmodal.doctor.devices import gpus, memory, processor_and_cores


def test_processor_and_cores() -> None:
    (line,) = processor_and_cores()
    assert line.mark == "ok"
    assert 1 <= line.values["cores"] <= (os.cpu_count() or 1)


def test_memory_is_compared_with_what_a_run_may_take() -> None:
    (enough,), (little,) = memory(0.001), memory(1e6)
    assert (enough.mark, little.mark) == ("ok", "warning")
    assert 0 < enough.values["free"] <= enough.values["total"]
    assert little.advice.startswith("features.memory_gb=")


def test_a_line_for_each_gpu_or_one_that_says_why_there_is_none() -> None:
    lines = list(gpus())
    assert not any(line.is_failing for line in lines)
    if torch.cuda.is_available():
        assert [line.what for line in lines] == [f"GPU {place}" for place in range(torch.cuda.device_count())]
        assert all("bfloat16" in line.found for line in lines)
    else:
        assert [line.what for line in lines] == ["GPU"]
        assert f"torch {torch.__version__}" in lines[0].found or lines[0].mark == "ok"


@pytest.mark.skipif(torch.cuda.is_available() or torch.version.cuda is None, reason="of a build with CUDA, without GPU")
@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="of a machine without a driver")
def test_without_a_driver_it_is_said_what_to_install() -> None:
    (line,) = gpus()
    assert line.mark == "optional"
    assert f"driver for CUDA {torch.version.cuda}" in line.advice
