"""What makes two runs the same one: the settings that their outcome depends on, as a short hash."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROVENANCE = "provenance.json"

# where things lie, what watches, and what only says how a run is started, named or gone on with
_NO_MATTER = {
    "ckpt_path",
    "hydra",
    "logger",
    "name",
    "optimized_metric",
    "paths",
    "query_encoders",
    "reference",
    "resume",
    "sweep",
    "tags",
    "wandb",
    "data.num_workers",
    "features.device",
    "features.image_chunk_size",
    "features.num_workers",
    "features.store",
    "features.text_chunk_size",
    "trainer.default_root_dir",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.profiler",
}
_FOLDERS = ("output_dir", "data_dir", "features_dir", "cache_dir")  # below which files may move along
_DIGITS = 16


def identity(cfg: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the SHA-256 of a resolved configuration, without what does not change the outcome.

    A file or folder below one of ``paths`` counts by its place there, so that both may move together; any other by its
    whole path. A run that goes on from a checkpoint is the run that it goes on with, where the settings are the same.

    Args:
        cfg: plain nested mappings, as `xmodal.config.values.resolved` gives them before a run fills anything in.
    """
    folders = {name: str(place) for name, place in (cfg.get("paths") or {}).items() if name in _FOLDERS}
    counting = _counting(cfg, folders)
    own = _digest(counting)
    source = _source(cfg.get("ckpt_path"))
    return own if source in (None, own) else _digest({**counting, "ckpt_path": source})


def _source(checkpoint: str | None) -> str | None:
    """The identity of the run that a checkpoint is of; where that is not known, its place."""
    if checkpoint is None:
        return None
    try:
        stated = json.loads((Path(checkpoint).parent.parent / PROVENANCE).read_text(encoding="utf-8"))
        return str(stated["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return str(checkpoint)


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _counting(node: Mapping[str, Any], folders: Mapping[str, str], prefix: str = "") -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in node.items():
        if f"{prefix}{name}" in _NO_MATTER:
            continue
        if isinstance(value, Mapping):
            kept[str(name)] = _counting(value, folders, f"{prefix}{name}.")
        else:
            kept[str(name)] = _placed(value, folders)
    return kept


def _placed(value: Any, folders: Mapping[str, str]) -> Any:
    """A path below one of the folders as ``<name of the folder>/…``; anything else as it is."""
    above = [name for name, folder in folders.items() if isinstance(value, str) and value.startswith(f"{folder}/")]
    if not above:
        return value
    name = max(above, key=lambda name: len(folders[name]))  # the innermost folder
    return f"<{name}>{value[len(folders[name]) :]}"
