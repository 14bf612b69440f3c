"""Ways of doing the same work, measured in turns, so that a busy machine slows all of them alike."""

import time
from collections.abc import Callable, Iterator, Mapping
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

    def line(self, name: str, unit: str, other: str = "bare") -> str:
        """Medians, the median ratio and its spread; ``other`` is what the way beside xmodal is called."""
        low, high = min(self.ratios), max(self.ratios)
        return (
            f"{name}: xmodal {median(self.ours):.2f} {unit}, {other} {median(self.bare):.2f} {unit}, "
            f"ratio {median(self.ratios):.3f} ({low:.3f} to {high:.3f} in {len(self.ratios)} alternations)"
        )


def take_turns(ways: Mapping[str, Rate], repeats: int) -> dict[str, tuple[float, ...]]:
    """Measure all ``repeats`` times, each time in the opposite order, because a later one may find warmer caches."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        for name in list(ways) if repeat % 2 == 0 else reversed(ways):
            rates[name].append(ways[name]())
    return {name: tuple(measured) for name, measured in rates.items()}


def alternate(ours: Rate, bare: Rate, repeats: int) -> Comparison:
    """Two ways in turns."""
    return Comparison(**take_turns({"ours": ours, "bare": bare}, repeats))


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


def gpu_memory(work: Callable[[], object], device: torch.device) -> Iterator[str]:
    """A line on the most memory that the work takes on a graphics card, weights included; none without one."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        yield f"  GPU memory: {torch.cuda.max_memory_allocated(device) / 2**20:.0f} MiB"
