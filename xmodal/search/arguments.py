"""What a search is asked with from Python, found fault with in a sentence rather than somewhere inside."""

import math
import operator
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from xmodal.errors import ConfigError
from xmodal.search.gallery import memory_of_machine

_SHARE_OF_MEMORY = 0.75  # where nothing else is said


def check_whole(k: Any) -> None:
    """Raises ConfigError for what is no whole number; those of numpy are some."""
    try:
        operator.index(k)
    except TypeError as error:
        raise ConfigError(f"k must be a whole number, found {k!r}.") from error


def check_list(queries: Any, name: str) -> None:
    """Raises ConfigError for one sentence or one photo in place of a list: letters would be taken as sentences."""
    if isinstance(queries, str | Path | Image):
        raise ConfigError(f"{name} must be a list, found {queries!r} alone. Pass [{queries!r}].")


def device_of(name: str) -> torch.device:
    """``auto`` is the GPU where there is one.

    Raises:
        ConfigError: nothing that torch knows, or a GPU that is not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, found {name!r}.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"device {name!r}: torch sees {count or 'no'} GPU here. Use 'auto' or 'cpu'.")
    return device


def bytes_of(memory_gb: float | None) -> int:
    """What an index may take of the main memory; raises ConfigError for what is no number above 0."""
    if memory_gb is None:
        return int(memory_of_machine() * _SHARE_OF_MEMORY)
    if not isinstance(memory_gb, int | float) or not 0 < memory_gb < math.inf:
        raise ConfigError(f"memory_gb must be a number above 0, found {memory_gb!r}.")
    return int(memory_gb * 1e9)
