"""In which floating-point format encoders compute."""

from contextlib import AbstractContextManager, nullcontext

import torch

from xmodal.errors import ConfigError

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
FULL = "float32"


def used_precision(precision: str, device: torch.device, stored: str) -> str:
    """``float32``, ``bfloat16`` or ``float16``: what ``precision`` means on ``device``.

    ``auto`` is bfloat16 on a GPU that has it, where values are ``stored`` in float16 anyway, else float32.

    Raises:
        ConfigError: an unknown name, or a format that the device does not compute in.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"features.precision must be one of {', '.join(PRECISIONS)}, found {precision!r}.")
    if precision == "auto":
        return "bfloat16" if stored == "float16" and device.type == "cuda" and _has_bfloat16() else FULL
    if precision == "float16" and device.type == "cpu":
        raise ConfigError(
            "features.precision=float16 is for GPUs, and encoders run on the CPU here. "
            "Take features.precision=float32, or bfloat16 on a CPU that is fast at it."
        )
    if precision == "bfloat16" and device.type == "cuda" and not _has_bfloat16():
        raise ConfigError(
            f"features.precision=bfloat16: {torch.cuda.get_device_name(device)} does not compute in it. "
            "Take features.precision=float16, float32 or auto."
        )
    return precision


def precisions_of_auto(stored: str) -> tuple[str, ...]:
    """What ``auto`` may mean, on one device or another, for values ``stored`` in this type."""
    return (FULL, "bfloat16") if stored == "float16" else (FULL,)


def precision_in_key(used: str) -> str:
    """What goes into the key of a file: a half precision. Files of float32 have the keys that they always had."""
    return "" if used == FULL else used


def computing_in(used: str, device: torch.device) -> AbstractContextManager[object]:
    """Autocast to ``used``, what `used_precision` gave."""
    return nullcontext() if used == FULL else torch.autocast(device.type, getattr(torch, used))


def _has_bfloat16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)
