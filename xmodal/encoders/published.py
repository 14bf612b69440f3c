"""Where published weights are kept once they were fetched, and whether they are there; nothing is loaded or fetched."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.parse import urlparse

import torch
from huggingface_hub import constants, try_to_load_from_cache

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # the names that they have on the Hub
_SHARDED = tuple(f"{name}.index.json" for name in WEIGHT_FILES)
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Published:
    """Weights that somebody published.

    Args:
        name: of the file, or of the model on the Hub.
        folder: the cache that they are looked for in.
        moved_by: the environment variable that moves this cache.
        is_there: whether they are in it.
    """

    name: str
    folder: Path
    moved_by: str
    is_there: bool


@runtime_checkable
class Fetching(Protocol):
    """An encoder that may be given published weights, which are fetched once."""

    def published(self) -> Published | None:
        """Those that its parameters ask for; None where they name a file or folder, or random weights."""
        ...


def torch_file(url: str) -> Path:
    """The place in torch's cache of what is published at ``url``."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def of_torch(url: str) -> Published:
    """A file of torch's cache."""
    file = torch_file(url)
    return Published(file.name, file.parent, "TORCH_HOME", file.exists())


def of_timm(repository: str) -> Published:
    """A model of timm in the cache of the Hub: its weights alone are needed."""
    return _of_hub(repository, hub_file(repository, WEIGHT_FILES) is not None)


def of_transformers(name: str, modality: str) -> Published:
    """A model of transformers in the cache of the Hub: configuration, weights, and what prepares its inputs."""
    prepares = _PROCESSORS if modality == "image" else _TOKENIZERS
    needed = (("config.json",), prepares)
    return _of_hub(name, all(hub_file(name, files) for files in needed) and _has_weights(name))


def hub_file(name: str, files: Sequence[str]) -> Path | None:
    """The first of these files of a model that is in the cache of the Hub."""
    found = (try_to_load_from_cache(name, file) for file in files)
    return next((Path(file) for file in found if isinstance(file, str)), None)


def _of_hub(name: str, is_there: bool) -> Published:
    return Published(name, Path(constants.HF_HUB_CACHE), "HF_HOME", is_there)


def _has_weights(name: str) -> bool:
    """In one file, or in all the parts that an index lists."""
    if hub_file(name, WEIGHT_FILES):
        return True
    index = hub_file(name, _SHARDED)
    if index is None:
        return False
    parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all(hub_file(name, [part]) for part in parts)
