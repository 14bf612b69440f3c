"""W&B: whether it can be imported, whether there is a key (which is never shown), and what a run would do."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from xmodal.config.values import is_made_of
from xmodal.doctor.finding import Finding
from xmodal.tracking.key import chosen_mode, fault_of_file, file_of_keys, has_key, host, place_of_key

_RUNS = ("runs/*/*", "multirun/*/*")  # folders of runs below the folder of outputs


def library() -> Iterator[Finding]:
    """Its version."""
    import wandb

    yield Finding("wandb", "ok", wandb.__version__, values={"version": wandb.__version__})


def key() -> Iterator[Finding]:
    """Whether a key is configured, and where."""
    if place := place_of_key():
        yield Finding("W&B key", "ok", f"for {host()}, from {place}", values={"configured": True})
        return
    values: dict[str, Any] = {"configured": False}
    if fault := fault_of_file():
        found = f"{file_of_keys()} can't be read ({fault})"
        yield Finding("W&B key", "warning", found, "put the file right, or: wandb login", values)
        return
    yield Finding("W&B key", "optional", f"none for {host()}: runs are kept here, to be synced later", "wandb login")


def mode(cfg: DictConfig) -> Iterator[Finding]:
    """What a run with these settings would do."""
    if not is_made_of(cfg, "logger", "xmodal.tracking"):
        yield Finding("W&B mode", "ok", "not used: another logger is chosen")
        return
    chosen, said = chosen_mode(cfg.logger.mode), os.environ.get("WANDB_MODE")
    why = f"logger.mode={cfg.logger.mode}" + (f", WANDB_MODE={said}" if said else "")
    if chosen == "online" and not has_key():
        advice = "wandb login; or WANDB_MODE=offline, or logger.mode=offline"
        yield Finding("W&B mode", "fault", f"online ({why}), but there is no key: a run would fail", advice)
        return
    yield Finding("W&B mode", "ok", f"{chosen} ({why})", values={"mode": chosen})


def offline_runs(output_dir: Path) -> Iterator[Finding]:
    """Runs that were kept here and have not been synced."""
    waiting = [folder for pattern in _RUNS for folder in output_dir.glob(f"{pattern}/wandb/offline-run-*")]
    waiting = [folder for folder in waiting if not any(folder.glob("*.wandb.synced"))]
    values = {"unsynced": len(waiting)}
    if not waiting:
        yield Finding("W&B offline runs", "ok", "none to be synced", values=values)
        return
    newest = max(waiting, key=lambda folder: folder.name)
    noun = "run" if len(waiting) == 1 else "runs"
    yield Finding("W&B offline runs", "ok", f"{len(waiting)} {noun} not synced", f"wandb sync {newest}", values)
