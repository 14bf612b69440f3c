"""FAISS: whether it can be imported and finds anything, and how it was built."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from xmodal.doctor.finding import Finding

_ANEW = "pip uninstall -y faiss-gpu faiss-cpu; pip install"


def build() -> Iterator[Finding]:
    """Version, build for the GPU or the CPU alone, instructions that it uses, GPUs that it sees."""
    import faiss

    for_gpu = hasattr(faiss, "StandardGpuResources")
    seen = faiss.get_num_gpus() if for_gpu else 0
    options = " ".join(faiss.get_compile_options().split())
    kind = f"GPU build, {seen} GPUs seen" if for_gpu else "CPU build"
    found = f"{faiss.__version__}, {kind}, {_instructions(faiss)}compiled with {options}"
    yield Finding("faiss", "ok", found, values={"version": faiss.__version__, "gpu_build": for_gpu, "gpus": seen})
    yield _search(faiss)
    if for_torch := _gpus_of_torch():
        yield from _on_gpu(for_gpu, seen, for_torch)


def _search(faiss: Any) -> Finding:
    """An exact search of which the outcome is known: a library for other processors may be imported all the same."""
    import numpy as np

    index = faiss.IndexFlatIP(8)
    index.add(np.eye(8, dtype=np.float32))
    ids = index.search(np.eye(8, dtype=np.float32)[[5, 2]], 1)[1].ravel().tolist()
    if ids == [5, 2]:
        return Finding("exact search", "ok", "finds what it has to")
    return Finding("exact search", "fault", f"found {ids} instead of [5, 2]", f"{_ANEW} one of them")


def _on_gpu(for_gpu: bool, seen: int, for_torch: int) -> Iterator[Finding]:
    """Where torch sees GPUs and FAISS doesn't, searches run on the CPU, which is slower and no fault."""
    if seen:
        return
    why = "sees none" if for_gpu else "is built for the CPU"
    advice = f"searches run on the CPU; for the GPU: {_ANEW} faiss-gpu"
    yield Finding("faiss on GPU", "warning", f"torch sees {for_torch} GPUs, faiss {why}", advice)


def _instructions(faiss: Any) -> str:
    """``SIMD AVX512, ``: what is used on this processor; older versions don't tell."""
    level = getattr(getattr(faiss, "SIMDConfig", None), "get_level_name", None)
    return f"SIMD {level()}, " if level else ""


def _gpus_of_torch() -> int:
    with suppress(Exception):  # a torch that can't be imported has a line of its own
        import torch

        return torch.cuda.device_count()
    return 0
