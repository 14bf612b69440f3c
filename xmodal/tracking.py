"""Experiment trackers: W&B without questions, one run per job, the same record whatever the logger."""

import logging
import netrc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

log = logging.getLogger(__name__)

_WANDB_SERVER = "https://api.wandb.ai"


def wandb_logger(
    save_dir: str,
    project: str = "xmodal",
    entity: str | None = None,
    name: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: Sequence[str] = (),
    notes: str | None = None,
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
    log_model: bool = False,
    monitor: str = "val/rsum",
) -> WandbLogger:
    """A W&B logger that never asks: ``mode=auto`` is online where a key is configured and offline elsewhere.

    ``WANDB_MODE`` decides before the key does. Offline, one line says how to upload the run later.

    Args:
        save_dir: folder in which W&B puts its ``wandb/`` folder.
        log_model: upload checkpoints as artifacts (online only).
        monitor: the figure whose highest value the summary shows.
    """
    import wandb

    chosen: Any = (
        _mode(mode) if getattr(rank_zero_only, "rank", 0) == 0 else "disabled"
    )  # one run, however many processes
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        dir=save_dir,
        project=project,
        entity=entity,
        name=name,
        group=group,
        job_type=job_type,
        tags=list(tags) or None,
        notes=notes,
        mode=chosen,
        reinit="finish_previous",
        settings=wandb.Settings(silent=True, console="off"),
    )
    run.define_metric(monitor, summary="max")
    if chosen == "offline":
        log.info("W&B is offline. To upload this run later: wandb sync %s", Path(run.settings.sync_dir))
    elif chosen == "online":
        log.info("W&B: %s", run.url)
    return WandbLogger(experiment=run, log_model=log_model and chosen == "online")


def _mode(mode: str) -> Any:
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE") in ("online", "offline", "disabled"):
        return os.environ["WANDB_MODE"]
    return "online" if _has_key() else "offline"


def _has_key() -> bool:
    """Whether ``wandb login`` or WANDB_API_KEY has configured a key for the server in use."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", _WANDB_SERVER)).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return False


def flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested configuration as dotted names: ``{"loss": {"margin": 0.2}}`` → ``{"loss.margin": 0.2}``."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flat_config(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


@rank_zero_only
def log_config(loggers: Sequence[Logger], config: Mapping[str, Any]) -> None:
    """Record the resolved configuration with every logger, as flat columns."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.config.update(flat_config(config), allow_val_change=True)
        else:
            logger.log_hyperparams(flat_config(config))


@rank_zero_only
def log_picture(loggers: Sequence[Logger], name: str, path: Path, step: int) -> None:
    """Record a picture with every logger that shows pictures."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)])
        elif isinstance(logger, TensorBoardLogger):
            from matplotlib.image import imread

            logger.experiment.add_image(name, imread(path), step, dataformats="HWC")


@rank_zero_only
def finish(loggers: Sequence[Logger], metrics: Mapping[str, float], exit_code: int = 0) -> None:
    """Put the final metrics into the W&B summary and end its run, so that the next job starts one of its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(dict(metrics))
            logger.experiment.finish(exit_code=exit_code)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.close()  # its last pictures would be lost with the process otherwise
