"""Which features of a run are held in memory, and which are read from disk as training goes along."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from xmodal.features.memory import GB, PAIR_BYTES, budget, in_bytes, largest_set, least_buffer, resident
from xmodal.features.store import FeatureFile
from xmodal.types import FeatureSource, RaggedFeatures

log = logging.getLogger(__name__)


def open_features(
    paths: Mapping[str, Path],
    memory_gb: float,
    batch_size: int = 128,
    given: Mapping[str, FeatureSource] | None = None,
) -> dict[str, FeatureSource]:
    """Feature files by modality: all in memory where they fit into it together, else from disk what is large.

    What takes at most half of the budget is held in memory even where another file does not fit, as long as the rest
    is enough to read that one: more memory never makes a run impossible.

    Args:
        paths: complete files of the store.
        memory_gb: the budget, in 10⁹ bytes.
        batch_size: items of a batch, of which a few are under way at a time.
        given: features of the run's other modality, which are not in a file.

    Raises:
        ConfigError: a budget that is no positive number.
        FeatureError: a file that is absent, unfinished or damaged.
    """
    memory, others = in_bytes(memory_gb), dict(given or {})
    files = {name: _opened(path) for name, path in paths.items()}
    left = memory - sum(map(resident, others.values()))
    if sum(file.nbytes for file in files.values()) <= left:
        held = set(files)
    else:
        small = [name for name, file in files.items() if file.nbytes <= left / 2]
        held = {name for name in small if _leaves_room(name, files, memory_gb, batch_size, others)}
    places = ", ".join(
        f"{name} {file.nbytes / GB:.3f} GB {'in memory' if name in held else f'from disk ({file.path})'}"
        for name, file in files.items()
    )
    log.info("Features (features.memory_gb=%g): %s", memory_gb, places)
    return {name: _in_memory(file) if name in held else file for name, file in files.items()}


def _leaves_room(
    name: str,
    files: Mapping[str, FeatureFile],
    memory_gb: float,
    batch_size: int,
    others: Mapping[str, FeatureSource],
) -> bool:
    """Whether the other file can be read piece by piece beside ``name`` in memory, whatever the pairs are."""
    sources = {**others, **files}
    shares = budget(memory_gb, batch_size, list(sources.values()), [s for n, s in sources.items() if n != name])
    read = {other: largest_set(source) for other, source in sources.items() if other != name}
    needed = least_buffer(read.get("image", 0), sum(read.values()) + PAIR_BYTES)
    shares = replace(shares, resident=shares.resident + files[name].nbytes)
    return shares.memory >= shares.enough_for(needed)


def _opened(path: Path) -> FeatureFile:
    file = FeatureFile(path)
    file.verify()
    return file


def _in_memory(file: FeatureFile) -> RaggedFeatures:
    features = file.read()
    file.close()
    return features
