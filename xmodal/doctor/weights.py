"""Published weights: the caches that they are kept in, and which encoder's are there; nothing is loaded or fetched."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.filesize import decimal

from xmodal.config.sources import CONF_DIR, ConfigSource
from xmodal.config.values import plain
from xmodal.doctor.disk import free_space, unwritable
from xmodal.doctor.finding import Finding, Mark

SIDES = ("image_encoder", "text_encoder")
_PRETRAINED = "pretrained"


def torch_cache() -> Iterator[Finding]:
    """The folder of torch's files, torchvision's weights among them."""
    import torch

    yield _cache("TORCH_HOME", Path(torch.hub.get_dir()))


def hub_cache() -> Iterator[Finding]:
    """The folder of Hugging Face's models, and whether the Hub may be asked at all."""
    from huggingface_hub import constants

    yield _cache("HF_HOME", Path(constants.HF_HUB_CACHE))
    if constants.HF_HUB_OFFLINE:
        found = f"HF_HUB_OFFLINE={os.environ.get('HF_HUB_OFFLINE')}: models come from the cache alone"
        yield Finding("HF_HUB_OFFLINE", "ok", found, values={"offline": True})


def options(side: str) -> list[str]:
    """The encoders of one side that may have published weights; read from their files, so that nothing is imported."""
    return [name for name in ConfigSource().groups()[side] if "weights" in _file(side, name)]


def encoder(cfg: DictConfig, side: str, option: str, is_run_meant: bool = False) -> Iterator[Finding]:
    """Whether the weights of an encoder are there: those that the settings name, else its default ones.

    Args:
        is_run_meant: whether the settings describe a run: where it has this encoder, its weights are needed, for an
            encoder is made ready also where all features are stored.
    """
    config = _settings(cfg, side, option)
    made = instantiate(config)
    what = f"{side}={option}"
    for fault in made.check():
        yield Finding(what, "missing", fault)
        return
    published = made.published()
    if published is None:
        yield Finding(what, "ok", f"weights={config['weights']}")
        return
    values = {"name": published.name, "folder": str(published.folder), "cached": published.is_there}
    if published.is_there:
        yield Finding(what, "ok", f"{published.name} is in the cache ({published.moved_by})", values=values)
        return
    found = f"{published.name} is not in {published.folder}"
    is_needed = is_run_meant and _is_chosen(cfg, side, option) and cfg[side].weights is not None
    mark: Mark = "optional"
    if is_needed:
        mark, found = ("missing" if _is_offline(published.moved_by) else "warning"), f"{found}, and is needed"
    yield Finding(what, mark, found, _getting(side, published.moved_by), {**values, "needed": is_needed})


def _settings(cfg: DictConfig, side: str, option: str) -> dict[str, Any]:
    """The option as it was configured, where it was chosen, else as its file has it; pretrained rather than random."""
    config = plain((cfg if _is_chosen(cfg, side, option) else ConfigSource().load([f"{side}={option}"]))[side])
    return {**config, "weights": config["weights"] or _PRETRAINED}


def _is_chosen(cfg: DictConfig, side: str, option: str) -> bool:
    return bool(cfg[side].get("_target_") == _file(side, option)["_target_"])


def _file(side: str, option: str) -> DictConfig:
    found = OmegaConf.load(CONF_DIR / side / f"{option}.yaml")
    assert isinstance(found, DictConfig)
    return found


def _getting(side: str, moved_by: str) -> str:
    first = "unset HF_HUB_OFFLINE and start" if _is_offline(moved_by) else "start"
    return f"{first} once with a network, or copy a cache ({moved_by}); or {side}.weights=/path, or null (random)"


def _is_offline(moved_by: str) -> bool:
    """Whether nothing may be fetched into this cache."""
    return moved_by == "HF_HOME" and os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON")


def _cache(variable: str, folder: Path) -> Finding:
    """Where a cache is, what it takes, and whether it can be added to: reading works all the same where it can't."""
    place = f"{folder}, {variable} {'is set' if os.environ.get(variable) else 'moves it'}"
    size, free = _size(folder), free_space(folder)
    values = {"folder": str(folder), "exists": folder.is_dir(), "size": size, "free": free}
    if fault := unwritable(folder):
        advice = f"export {variable}=/path/that/can/be/written"
        return Finding(variable, "warning", f"{place}: nothing can be added ({fault})", advice, values)
    taken = f"{decimal(size)} taken" if folder.is_dir() else "not there yet, made when it is needed"
    return Finding(variable, "ok", f"{place}: {taken}, {decimal(free)} free", values=values)


def _size(folder: Path) -> int:
    """Bytes of the files below a folder; links count nothing, since the Hub's cache links to its own files."""
    found = (Path(root) / name for root, _, names in os.walk(folder) for name in names)
    return sum(file.lstat().st_size for file in found if not file.is_symlink())
