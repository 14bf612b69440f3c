"""The logger of a run, which the configuration names, and what it is told at the start."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger

from xmodal.callbacks.retrieval import RetrievalEvaluation
from xmodal.callbacks.run_record import RunRecord
from xmodal.experiment.choices import TAGGED, choices_of
from xmodal.experiment.provenance import Provenance
from xmodal.experiment.surroundings import sweep_of
from xmodal.tracking.best_epoch import BestEpoch
from xmodal.tracking.directions import DirectionSections
from xmodal.tracking.wandb_run import wandb_runs

_JOB = "train"


def build_loggers(cfg: DictConfig, folder: Path) -> list[Logger]:
    """The chosen logger; a W&B run is grouped by its sweep, and tagged with the names of its parts."""
    if not cfg.get("logger") or not cfg.logger.get("_target_"):
        return []
    arguments: dict[str, Any] = {"save_dir": str(folder)}
    if "group" in cfg.logger:
        arguments |= _labels(cfg, folder)
    return [instantiate(cfg.logger, **arguments)]


def _labels(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Group, job type and tags of a W&B run, where nobody set them."""
    chosen = choices_of(cfg)
    tags = [*(cfg.logger.get("tags") or []), *(chosen[group] for group in TAGGED if group in chosen)]
    return {
        "group": cfg.logger.group or sweep_of(folder),
        "job_type": cfg.logger.get("job_type") or chosen.get("experiment", _JOB),
        "tags": list(dict.fromkeys(map(str, tags))),
    }


def columns_of(cfg: DictConfig, folder: Path, provenance: Provenance) -> dict[str, Any]:
    """What a table of runs shows beside the settings: parts by name, and how to find the run and its data."""
    data = provenance.stated["data"] or {}
    origin = {"identity": provenance.stated["identity"], "data_fingerprint": data.get("fingerprint")}
    return {**choices_of(cfg), **origin, "run_folder": str(folder)}


def callbacks_of(loggers: list[Logger], record: RunRecord, retrieval: RetrievalEvaluation) -> list[pl.Callback]:
    """What logs to W&B beside Lightning; to stand behind the other callbacks."""
    runs = list(wandb_runs(loggers))
    return [*(BestEpoch(run, record) for run in runs), *(DirectionSections(run, retrieval) for run in runs)]
