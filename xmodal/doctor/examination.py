"""All the looks of an examination, in the order of the report."""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig

from xmodal.config.command_line import compose
from xmodal.config.sources import ConfigSource
from xmodal.doctor import data, devices, disk, index_library, tracking, versions, weights
from xmodal.doctor.finding import Finding, Look
from xmodal.errors import ConfigError

_CHOOSING = ("data.", "experiment=")  # words after which the configuration means a certain data set
Examined = dict[str, list[Finding]]  # findings by section


def examine(overrides: Sequence[str], is_thorough: bool = False) -> Examined:
    """Look at everything that a run with these overrides of train.py may need.

    A data set that the overrides choose has to be there; without one, each data set is looked at that may be.

    Raises:
        ConfigError: faults of the overrides.
    """
    cfg = _composed(overrides)
    looks = [*_versions(), *_devices(cfg), *_index(), *_tracking(cfg), *_weights(cfg, overrides)]
    looks += [*_data(cfg, overrides, is_thorough), Look("disk", "folders", partial(disk.folders, cfg))]
    examined: Examined = {look.section: [] for look in looks}
    with _others_quiet():
        for look in looks:
            examined[look.section] += look.findings()
    return examined


def _composed(overrides: Sequence[str]) -> DictConfig:
    try:
        return compose(overrides)
    except HydraException as error:  # what is left: lists and bounds, which make several configurations
        raise ConfigError(f"{' '.join(overrides)}: one configuration at a time: give each key one value.") from error


@contextmanager
def _others_quiet() -> Iterator[None]:
    """Inside, what parts of the program and libraries have to say by the way is not said: lines tell it."""
    logger = logging.getLogger("xmodal")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _versions() -> list[Look]:
    finders = {
        "python": versions.python,
        "xmodal": versions.itself,
        "dependencies": versions.dependencies,
        "torch with torchvision": versions.torch_and_torchvision,
        "faiss twice": versions.twins,
        "extras": versions.extras,
    }
    return [Look("versions", what, find) for what, find in finders.items()]


def _devices(cfg: DictConfig) -> list[Look]:
    return [
        Look("devices", "processor", devices.processor_and_cores),
        Look("devices", "memory", partial(devices.memory, cfg.features.memory_gb)),
        Look("devices", "GPU", devices.gpus),
    ]


def _index() -> list[Look]:
    return [Look("index library", "faiss", index_library.build)]


def _tracking(cfg: DictConfig) -> list[Look]:
    return [
        Look("tracking", "wandb", tracking.library),
        Look("tracking", "W&B key", tracking.key),
        Look("tracking", "W&B mode", partial(tracking.mode, cfg)),
        Look("tracking", "W&B offline runs", partial(tracking.offline_runs, Path(cfg.paths.output_dir))),
    ]


def _weights(cfg: DictConfig, overrides: Sequence[str]) -> list[Look]:
    caches = {"TORCH_HOME": weights.torch_cache, "HF_HOME": weights.hub_cache}
    encoders = [
        Look("weights", f"{side}={option}", partial(weights.encoder, cfg, side, option, _describes(overrides, side)))
        for side in weights.SIDES
        for option in weights.options(side)
    ]
    return [*(Look("weights", what, find) for what, find in caches.items()), *encoders]


def _describes(overrides: Sequence[str], side: str) -> bool:
    """Whether the overrides mean a certain run, in which this side's encoder is the configured one."""
    return any(word.startswith((f"{side}=", f"{side}.", "data=", "experiment=")) for word in overrides)


def _data(cfg: DictConfig, overrides: Sequence[str], is_thorough: bool) -> list[Look]:
    is_stated = bool(os.environ.get("XMODAL_DATA")) or any(word.startswith("paths.data_dir=") for word in overrides)
    place = Look("data", "data folder", partial(data.folder, Path(cfg.paths.data_dir), is_stated))
    chosen = [word.partition("=")[2] for word in overrides if word.startswith("data=")]
    if chosen or any(word.startswith(_CHOOSING) for word in overrides):
        option = chosen[-1] if chosen else str(cfg.data.name)
        return [place, Look("data", f"data={option}", partial(data.data_set, option, cfg, True, is_thorough))]
    return [place, *(_any_data_set(option, overrides, is_thorough) for option in ConfigSource().groups()["data"])]


def _any_data_set(option: str, overrides: Sequence[str], is_thorough: bool) -> Look:
    def find() -> Iterator[Finding]:
        return data.data_set(option, compose([*overrides, f"data={option}"]), False, is_thorough)

    return Look("data", f"data={option}", find)
