"""The logger of a run, which the configuration names."""

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger

from xmodal.experiment.surroundings import sweep_of


def build_loggers(cfg: DictConfig, folder: Path) -> list[Logger]:
    """The chosen logger; the jobs of a multirun share a W&B group called after the sweep's folder."""
    if not cfg.get("logger") or not cfg.logger.get("_target_"):
        return []
    arguments: dict[str, Any] = {"save_dir": str(folder)}
    if "group" in cfg.logger and cfg.logger.group is None:
        arguments["group"] = sweep_of(folder)
    return [instantiate(cfg.logger, **arguments)]
