"""Two ways of doing the same work, measured in turns, so that a busy machine slows both alike."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

Rate = Callable[[], float]  # does the work once and returns items (or steps) per second


@dataclass(frozen=True)
class Comparison:
    """Rates of both ways, one of each per alternation."""

    ours: tuple[float, ...]
    bare: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """xmodal ÷ bare of each alternation: 1 means that xmodal costs nothing on top."""
        return [ours / bare for ours, bare in zip(self.ours, self.bare, strict=True)]

    def line(self, name: str, unit: str) -> str:
        """Medians, the median ratio and its spread."""
        low, high = min(self.ratios), max(self.ratios)
        return (
            f"{name}: xmodal {median(self.ours):.2f} {unit}, bare {median(self.bare):.2f} {unit}, "
            f"ratio {median(self.ratios):.3f} ({low:.3f} to {high:.3f} in {len(self.ratios)} alternations)"
        )


def alternate(ours: Rate, bare: Rate, repeats: int) -> Comparison:
    """Measure both ``repeats`` times, each time in the opposite order, because the second may find warmer caches."""
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    for repeat in range(repeats):
        turn = [("ours", ours), ("bare", bare)]
        for name, measure in turn if repeat % 2 == 0 else reversed(turn):
            rates[name].append(measure())
    return Comparison(tuple(rates["ours"]), tuple(rates["bare"]))


def choose_device(name: str) -> torch.device:
    """``auto`` is the graphics card where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def describe(device: torch.device) -> str:
    """Which processor it is, in words."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given; a clock read before that lies."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start
