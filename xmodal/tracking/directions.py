"""A section of W&B's charts for each direction of retrieval: recall over the epochs, and where matches stand."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
from jaxtyping import Int
from pytorch_lightning.trainer.states import TrainerFn

from xmodal.callbacks.retrieval import RetrievalEvaluation
from xmodal.tracking.axes import EPOCH, STEP
from xmodal.tracking.wandb_run import WandbRun

FIGURES = ("R1", "R5", "R10", "medR", "mAP")
_BINS = 40


class DirectionSections(pl.Callback):
    """After each validation in training, logs ``i2t/val_R1`` … and ``i2t/val_log10_rank``, the same for the others.

    W&B makes a section of what stands before the slash. ``val/i2t_R1`` keeps its name, which metrics.json and
    history.csv share; the copies are in no summary, hence in no column of the table of runs.

    Args:
        logger: the run.
        retrieval: knows the ranks of the last validation; stands before this callback.
    """

    def __init__(self, logger: WandbRun, retrieval: RetrievalEvaluation) -> None:
        self.logger = logger
        self.retrieval = retrieval

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING or not trainer.is_global_zero:
            return
        assert self.retrieval.retrieved is not None
        result = self.retrieval.retrieved.result
        found = in_sections("val", result.metrics) | rank_histograms("val", result.ranks)
        self.logger.experiment.log({**found, EPOCH: trainer.current_epoch, STEP: trainer.global_step})


def in_sections(role: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """``{"i2t_R1": 18.0}`` → ``{"i2t/val_R1": 18.0}``, of the main figures."""
    split = {name: name.partition("_") for name in metrics}
    return {
        f"{way}/{role}_{figure}": float(metrics[name]) for name, (way, _, figure) in split.items() if figure in FIGURES
    }


def rank_histograms(role: str, ranks: Mapping[str, Int[np.ndarray, "..."]]) -> dict[str, Any]:
    """``i2t/val_log10_rank``: of the best match of every query that has one, 0 where it stands first, 1 where tenth."""
    import wandb

    logarithms = {way: np.log10(places[places > 0]) for way, places in ranks.items()}
    top = max((values.max(initial=0.0) for values in logarithms.values()), default=0.0)
    edges = np.linspace(0.0, max(np.ceil(top), 1.0), _BINS + 1)  # the same for both directions
    return {
        f"{way}/{role}_log10_rank": wandb.Histogram(np_histogram=np.histogram(values, edges))
        for way, values in logarithms.items()
    }
