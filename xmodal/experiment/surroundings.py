"""What a run is made by: the commit of the code, versions of libraries, the machine, and the command of this job."""

import os
import platform
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

import xmodal
from xmodal.experiment.launch import words_alone

_LIBRARIES = (
    "torch",
    "torchvision",
    "pytorch-lightning",
    "hydra-core",
    "omegaconf",
    "transformers",
    "timm",
    "numpy",
    "h5py",
    "gensim",
    "wandb",
)
_FAISS = ("faiss-gpu", "faiss-cpu")  # one library under two names
_PATIENCE = 10.0  # seconds for git, which may wait for a slow disk
_CPU_NAME = re.compile(r"^model name\s*:\s*(.+)$", re.MULTILINE)


def commit() -> dict[str, Any] | None:
    """The commit of xmodal's code, and whether files of it have been changed since; None outside a repository."""
    package = Path(xmodal.__file__).parent
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:  # the repository of something else
        return None
    name, changes = _git(package, "rev-parse", "HEAD"), _git(package, "status", "--porcelain", "--untracked-files=no")
    return None if name is None else {"commit": name, "dirty": bool(changes)}


def versions() -> dict[str, str]:
    """Versions of xmodal, Python, and the libraries that figures may depend on; absent ones are left out."""
    found = {name: _version(name) for name in _LIBRARIES}
    found["faiss"] = next((known for name in _FAISS if (known := _version(name))), None)
    stated = {name: known for name, known in found.items() if known is not None}
    return {"xmodal": xmodal.__version__, "python": platform.python_version(), **stated}


def machine() -> dict[str, Any]:
    """Operating system, processor, cores that this process may use, threads that torch takes, names of the GPUs."""
    import torch

    return {
        "system": platform.platform(),
        "processor": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())],
    }


def command() -> str:
    """What starts this job alone, as words quoted for a shell: of a multirun, without what belongs to the sweep."""
    if not HydraConfig.initialized():
        return shlex.join(["python", *sys.argv])
    chosen = HydraConfig.get()
    if chosen.mode != RunMode.MULTIRUN:
        return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
    return shlex.join(["python", "train.py", *words_alone()])


def overrides() -> list[str]:
    """What the command line of this job sets; empty outside a program of Hydra's."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def sweep_of(folder: Path) -> str | None:
    """The name of the sweep whose job has this run folder; None for a run of its own."""
    in_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    return folder.parent.name if in_sweep else None


def _git(folder: Path, *words: str) -> str | None:
    line = ["git", "--no-optional-locks", "-C", str(folder), *words]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=_PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """Name of the processor: Linux alone has its name in a file; Python's answer elsewhere."""
    try:
        named = _CPU_NAME.search(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        named = None
    return named.group(1).strip() if named else platform.processor() or platform.machine()


def cores() -> int:
    """Number of those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
