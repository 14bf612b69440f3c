"""The callbacks of a run, which the configuration names."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig

from xmodal.errors import ConfigError


def build_callbacks(cfg: DictConfig, folder: Path) -> dict[str, pl.Callback]:
    """The callbacks of ``conf/callbacks`` by name, with the run's folders filled in; nothing is written yet.

    Raises:
        ConfigError: see `makers_of_callbacks`.
    """
    return {name: make() for name, make in makers_of_callbacks(cfg, folder).items()}


def makers_of_callbacks(cfg: DictConfig, folder: Path) -> dict[str, Callable[[], pl.Callback]]:
    """What makes each of them.

    Raises:
        ConfigError: one was left out without which nothing would be evaluated or kept.
    """
    folders = {
        "checkpoint": {"dirpath": str(folder / "checkpoints")},
        "resume": {"checkpoints": str(folder / "checkpoints")},
        "record": {"folder": str(folder)},
    }
    named = {str(name): node for name, node in cfg.callbacks.items() if node is not None and node.get("_target_")}
    absent = [name for name in ("retrieval", "record", "checkpoint") if name not in named]
    if absent:
        raise ConfigError(
            [f"callbacks.{name} can't be left out: figures and checkpoints of the run come from it." for name in absent]
        )
    if not cfg.get("logger") or not cfg.logger.get("_target_"):
        named.pop("learning_rate", None)
    return {name: partial(instantiate, node, **folders.get(name, {})) for name, node in named.items()}
