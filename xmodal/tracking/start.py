"""A W&B run that begins without questions: online where there is a key, offline elsewhere."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.utilities.rank_zero import rank_zero_only

from xmodal.tracking.axes import define_metrics
from xmodal.tracking.key import chosen_mode
from xmodal.tracking.wandb_run import WandbRun

log = logging.getLogger(__name__)


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
    log_model: bool | Literal["auto"] = "auto",
) -> WandbRun:
    """A W&B logger that never asks: ``mode=auto`` is online where a key is configured and offline elsewhere.

    ``WANDB_MODE`` decides before the key does. Offline, one line says how to upload the run later.

    Args:
        save_dir: folder in which W&B puts its ``wandb/`` folder.
        log_model: keep the best checkpoint and its indexes as artifacts; auto: online only.
    """
    import wandb

    chosen: Any = (
        chosen_mode(mode) if getattr(rank_zero_only, "rank", 0) == 0 else "disabled"
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
    define_metrics(run)
    if chosen == "offline":
        log.info("W&B is offline. To upload this run later: wandb sync %s", Path(run.settings.sync_dir))
    elif chosen == "online":
        log.info("W&B: %s", run.url)
    return WandbRun(run, keeps_artifacts=log_model is True or (log_model == "auto" and chosen == "online"))
