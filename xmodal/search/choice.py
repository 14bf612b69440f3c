"""Which index suits so many vectors and so much memory, and with which settings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from xmodal.config.command_line import compose
from xmodal.errors import ConfigError
from xmodal.experiment.opened_run import constructed
from xmodal.features.disk_space import readable
from xmodal.retrieval.index import Index

KINDS = ("flat", "hnsw", "ivf_pq")
MOST_EXACT = 1_000_000  # vectors up to which search is exact unless something else is asked for
GOOD_RECALL = 95.0  # percent of the exact top 10 that settings of a search are chosen for

_NUMBER = 8  # bytes that the number of a vector takes
_LISTS_PER_ROOT = 4  # clusters per √N, as FAISS advises from 4 to 16
_LEAST_PER_LIST = 39  # vectors, for FAISS to learn a cluster from


@dataclass(frozen=True)
class Asked:
    """What the user typed: an option of ``conf/index`` (None: none), and settings of it by name."""

    kind: str | None = None
    settings: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, words: Sequence[str]) -> "Asked":
        """From ``index=hnsw index.ef_search=64``.

        Raises:
            ConfigError: an unknown option, key or value, as for train.py; a number out of its range; settings without
                an option.
        """
        if not words:
            return cls()
        kinds = [word.partition("=")[2] for word in words if word.startswith("index=")]
        settings = [word for word in words if not word.startswith("index=")]
        if not kinds:
            raise ConfigError(f"{' '.join(settings)}: say which index it is a setting of: index=hnsw or index=ivf_pq.")
        composed = compose(list(words)).index
        typed = {word.partition("=")[0].partition(".")[2] for word in settings}
        if "_target_" in typed:
            raise ConfigError(f"index._target_ is not a setting. Name the index: index={' or index='.join(KINDS)}.")
        constructed(composed)
        return cls(kinds[-1], {name: int(composed[name]) for name in sorted(typed)})


@dataclass(frozen=True)
class Choice:
    """An index for one side.

    Attributes:
        kind: ``flat``, ``hnsw`` or ``ivf_pq``.
        settings: of it, all of them.
        size: bytes that it will take, about.
        on_disk: whether its clusters are made and kept on disk, for they don't fit into memory.
        reason: why this one, in a few words.
        tunes: whether how widely it searches (``ef_search``, ``probes``) is still to be found by trying.
        notes: of settings that can't be what was asked for, by name: what was asked for, and why not.
    """

    kind: str
    settings: Mapping[str, int]
    size: int
    on_disk: bool
    reason: str
    tunes: bool
    notes: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        noted = {name: f" ({note})" for name, note in self.notes.items()}
        settings = "".join(f" {name}={value}{noted.get(name, '')}" for name, value in self.settings.items())
        place = ", clusters on disk" if self.on_disk else ""
        return f"{self.kind}{settings}, about {readable(self.size)}{place} ({self.reason})"

    def index(self) -> Index:
        """The index of these settings, as ``conf/index`` has it."""
        made: Index = constructed({**_config(self.kind), **self.settings})
        return made


def choose(count: int, width: int, memory_bytes: int, asked: Asked) -> Choice:
    """The index for ``count`` vectors of ``width`` numbers within a budget of memory.

    Exact up to a million vectors, then a graph; clusters of codes where memory does not hold the vectors themselves.
    What the user asked for is kept.
    """
    kind, reason = (asked.kind, "asked for") if asked.kind else _kind(count, width, memory_bytes)
    chosen = {"flat": {}, "hnsw": _graph(width), "ivf_pq": _clusters(count, width, memory_bytes)}[kind]
    settings = {**chosen, **asked.settings}
    if kind == "ivf_pq":
        settings = _lowered(settings, count, width)
    notes = _notes(settings, asked.settings, count, width)
    size = _size(kind, count, width, settings)
    on_disk = kind == "ivf_pq" and size > memory_bytes
    if size > memory_bytes and not on_disk:
        reason += f", more than the budget of {readable(memory_bytes)}"
    tunes = {"flat": "", "hnsw": "ef_search", "ivf_pq": "probes"}[kind] not in {"", *asked.settings}
    return Choice(kind, settings, size, on_disk, reason, tunes, notes)


def _kind(count: int, width: int, memory_bytes: int) -> tuple[str, str]:
    exact, graph = _size("flat", count, width, {}), _size("hnsw", count, width, _graph(width))
    if count <= MOST_EXACT and exact <= memory_bytes:
        return "flat", "exact: no more than a million vectors"
    if graph <= memory_bytes:
        return "hnsw", "more than a million vectors, which fit into memory"
    return "ivf_pq", f"the vectors take {readable(exact)}, the budget is {readable(memory_bytes)}"


def _graph(width: int) -> dict[str, int]:
    defaults = _defaults("hnsw")
    return {**defaults, "ef_search": 32}


def _clusters(count: int, width: int, memory_bytes: int) -> dict[str, int]:
    lists = 2 ** round(math.log2(max(1.0, _LISTS_PER_ROOT * math.sqrt(count))))
    lists = max(1, min(lists, count // _LEAST_PER_LIST))
    settings = {**_defaults("ivf_pq"), "lists": lists, "probes": min(8, lists)}
    return {**settings, "codes": _codes(count, width, settings, memory_bytes)}


def _lowered(settings: Mapping[str, int], count: int, width: int) -> dict[str, int]:
    """What `xmodal.retrieval.index.IVFPQIndex` makes of settings that so few or so narrow vectors don't allow."""
    lists = min(settings["lists"], max(1, count // _LEAST_PER_LIST))
    codes = max(d for d in range(1, min(settings["codes"], width) + 1) if width % d == 0)
    bits = max(1, min(settings["bits"], int(math.log2(max(count, 1)))))
    return {**settings, "lists": lists, "probes": min(settings["probes"], lists), "codes": codes, "bits": bits}


def _notes(settings: Mapping[str, int], asked: Mapping[str, int], count: int, width: int) -> dict[str, str]:
    """What was asked for and can't be, and why not."""
    lists = settings.get("lists", 0)
    clusters = "1 cluster" if lists == 1 else f"{lists:,} clusters"
    why = {
        "lists": f"{count:,} vectors are enough for {clusters}, {_LEAST_PER_LIST} for each",
        "probes": f"there is only {clusters}" if lists == 1 else f"there are only {clusters}",
        "codes": f"it must divide the width of {width:,}",
        "bits": f"{count:,} vectors are too few for more",
    }
    lowered = {name: value for name, value in asked.items() if settings[name] != value}
    return {name: f"{value} asked for; {why[name]}" for name, value in lowered.items()}


def _codes(count: int, width: int, settings: Mapping[str, int], memory_bytes: int) -> int:
    """Bytes per vector: a code for every two numbers; fewer where that makes it fit, down to one for eight.

    Where not even these fit, clusters go to disk, which has room for the finest.
    """
    divisors = [d for d in range(1, width + 1) if width % d == 0 and width // 8 <= d <= max(1, width // 2)] or [width]
    fitting = [d for d in divisors if _size("ivf_pq", count, width, {**settings, "codes": d}) <= memory_bytes]
    return max(fitting or divisors)


def _size(kind: str, count: int, width: int, settings: Mapping[str, int]) -> int:
    if kind == "ivf_pq":
        codes = math.ceil(settings["codes"] * settings["bits"] / 8)
        return count * (codes + _NUMBER) + 4 * width * (settings["lists"] + 2 ** settings["bits"])
    links = 4 * 2 * settings["neighbours"] + 16 if kind == "hnsw" else 0
    return count * (4 * width + _NUMBER + links)


def _defaults(kind: str) -> dict[str, int]:
    return {name: value for name, value in _config(kind).items() if name != "_target_"}


@cache
def _config(kind: str) -> dict[str, Any]:
    config = OmegaConf.to_container(compose([f"index={kind}"]).index)
    assert isinstance(config, dict)
    return {str(name): value for name, value in config.items()}
