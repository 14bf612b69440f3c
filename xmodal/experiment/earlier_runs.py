"""Earlier runs of the same identity, for ``resume=true``: finished ones to take over, stopped ones to go on with.

Nothing here imports torch: a job that is not run again has to be over at once.
"""

import json
import logging
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from xmodal.atomic import complete_file
from xmodal.config.identity import PROVENANCE, identity
from xmodal.config.values import resolved

log = logging.getLogger(__name__)

METRICS = "metrics.json"
EARLIER_RUN = "earlier_run.json"  # in the folder of a job that was not run again: where its run is
_LAST = Path("checkpoints") / "last.ckpt"
_OF_OTHER_THINGS = {"cache", "features", "optuna", "reports", "scenes"}  # folders beside those of runs


def finished_run(cfg: DictConfig) -> Path | None:
    """The folder of the latest finished run of this identity; None without ``resume=true``, or where there is none."""
    found = _of_this_identity(cfg) if cfg.get("resume") else []
    return next((run for run, told in found if told.get("status") == "finished" and _figures(run)), None)


def take_over(cfg: DictConfig, run: Path) -> float | None:
    """Say in a line that a finished run stands for this one, and in this one's folder where it is; returns its figure.

    The figure is that of ``optimized_metric``.
    """
    figure = _figures(run).get(cfg.optimized_metric)
    shown = "" if figure is None else f" ({cfg.optimized_metric} {figure:.2f})"
    log.info("Finished before%s, not run again: %s", shown, run)
    folder = Path(HydraConfig.get().runtime.output_dir).resolve()
    with complete_file(folder / EARLIER_RUN) as partial:
        partial.write_text(json.dumps({"format": 1, "run": os.path.relpath(run, folder)}) + "\n", encoding="utf-8")
    return figure


def going_on(cfg: DictConfig) -> DictConfig:
    """With ``resume=true``, the configuration that goes on from the last epoch of a stopped run of this identity."""
    if not cfg.get("resume") or cfg.get("ckpt_path"):  # a checkpoint that was typed is that one
        return cfg
    stopped = [run / _LAST for run, _ in _of_this_identity(cfg)]
    last = next((path for path in stopped if path.is_file() and _is_whole(path)), None)
    if last is None:
        return cfg
    log.info("Going on with %s", last)
    cfg = cfg.copy()
    OmegaConf.set_readonly(cfg, False)
    cfg.ckpt_path = str(last)
    return cfg


def _is_whole(path: Path) -> bool:
    """Whether a checkpoint has its end, where the table of its contents is."""
    if zipfile.is_zipfile(path):
        return True
    log.warning("%s was cut off while it was written, and is not gone on with.", path)
    return False


def _of_this_identity(cfg: DictConfig) -> list[tuple[Path, dict[str, Any]]]:
    """Run folders with what their provenance tells, the latest first."""
    wanted = identity(resolved(cfg))
    known = ((folder, _read(folder / PROVENANCE)) for root in _roots(cfg) for folder in _run_folders(root))
    same = {folder: told for folder, told in known if told.get("identity") == wanted}
    return sorted(same.items(), key=lambda item: str(item[1].get("started")), reverse=True)


def _roots(cfg: DictConfig) -> set[Path]:
    sweep = [HydraConfig.get().sweep.dir] if HydraConfig.initialized() else []
    return {Path(place).resolve() for place in (cfg.paths.output_dir, *sweep) if place}


def _run_folders(root: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(root):
        is_run = PROVENANCE in files
        others = _OF_OTHER_THINGS if Path(folder) == root else set()
        below[:] = [] if is_run else [name for name in below if name not in others and name[0] != "."]
        if is_run:
            yield Path(folder)


def _figures(run: Path) -> dict[str, float]:
    return _read(run / METRICS)


def _read(path: Path) -> dict[str, Any]:
    """Nothing where the file is absent or cut off: such a run is made anew."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
