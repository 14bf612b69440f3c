"""What there is to compute with: cores, threads, memory, GPUs."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from rich.filesize import decimal

from xmodal.doctor.finding import Finding, reason
from xmodal.experiment.surroundings import cores, processor

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_DRIVER = Path("/proc/driver/nvidia/version")
_CPU_ONLY = "runs take the CPU (trainer=cpu is the same)"


def processor_and_cores() -> Iterator[Finding]:
    """The processor, the cores that this process may use, and the threads that OMP_NUM_THREADS allows."""
    threads = os.environ.get("OMP_NUM_THREADS")
    limit = f", OMP_NUM_THREADS={threads}" if threads else ""
    found = f"{processor()}, {cores()} of {os.cpu_count()} cores usable{limit}"
    yield Finding("processor", "ok", found, values={"cores": cores()})


def memory(memory_gb: float) -> Iterator[Finding]:
    """Main memory, beside what a run may take of it for features (``features.memory_gb``)."""
    total, free = _total(), _free()
    left = total if free is None else min(total, free)
    found = f"{decimal(left)} of {decimal(total)} free"
    values = {"total": total, "free": left}
    if left >= memory_gb * 10**9:
        yield Finding("memory", "ok", found, values=values)
        return
    advice = f"features.memory_gb={left / 2e9:.1f} reads large features from disk"
    yield Finding("memory", "warning", f"{found}, features.memory_gb={memory_gb:g}", advice, values)


def gpus() -> Iterator[Finding]:
    """A line for each GPU that torch sees; without any, why, and what to do about it."""
    import torch

    with warnings.catch_warnings(record=True) as said:  # torch warns of a driver that is too old for it
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for place in range(count):
        yield _gpu(place)
    if count == 0:
        yield _no_gpu([str(one.message) for one in said])


def _gpu(place: int) -> Finding:
    import torch

    known = torch.cuda.get_device_properties(place)
    with torch.cuda.device(place):
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        free, total = torch.cuda.mem_get_info()
    computes = "bfloat16" if has_bfloat16 else "no bfloat16"
    found = f"{known.name}, {decimal(free)} of {decimal(total)} free, compute {known.major}.{known.minor}, {computes}"
    values = {"name": known.name, "total": total, "free": free, "bfloat16": has_bfloat16}
    return Finding(f"GPU {place}", "ok", found, values=values)


def _no_gpu(said: list[str]) -> Finding:
    import torch

    if torch.backends.mps.is_available():
        return Finding("GPU", "ok", "Apple's MPS")
    if torch.version.cuda is None:
        found = f"torch {torch.__version__} is built for the CPU alone"
        return Finding("GPU", "optional", found, f"{_CPU_ONLY}; a GPU needs a build of torch with CUDA")
    built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
    if hidden := _hidden():
        return Finding("GPU", "optional", f"{built}, but {hidden}", "unset CUDA_VISIBLE_DEVICES")
    if not _DRIVER.exists():
        advice = f"{_CPU_ONLY}; with an NVIDIA GPU: install its driver for CUDA {torch.version.cuda}, see nvidia-smi"
        return Finding("GPU", "optional", f"{built}, but no NVIDIA driver is here", advice)
    advice = f"update the NVIDIA driver to one for CUDA {torch.version.cuda}, see nvidia-smi"
    return Finding("GPU", "warning", f"{built}, a driver is here, but: {' '.join(said) or _refusal()}", advice)


def _hidden() -> str | None:
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"CUDA_VISIBLE_DEVICES={value!r} hides GPUs" if value in ("", "-1") and _DRIVER.exists() else None


def _refusal() -> str:
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return reason(error)
    return "torch sees no GPU"


def _total() -> int:
    """Of the machine, or of the container where that is less."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [text for file in _LIMITS if file.is_file() and (text := file.read_text().strip()).isdecimal()]
    return min([found, *map(int, limits)])


def _free() -> int | None:
    """What programs may take without swapping; None where the system has no such file."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
