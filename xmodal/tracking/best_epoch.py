"""The best epoch in W&B's summary, while a run goes on and whatever ends it."""

import pytorch_lightning as pl

from xmodal.callbacks.run_record import RunRecord
from xmodal.tracking.wandb_run import WandbRun


class BestEpoch(pl.Callback):
    """After each epoch, puts the figures of the best one so far into the summary: all of them of that one epoch.

    Args:
        logger: the run.
        record: knows every epoch and the figure that they are compared by; stands before this callback.
    """

    def __init__(self, logger: WandbRun, record: RunRecord) -> None:
        self.logger = logger
        self.record = record

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        best = self.record.best_row()
        if best and trainer.is_global_zero:
            figures = {name: value for name, value in best.items() if "/" in name}
            self.logger.experiment.summary.update({**figures, "best_epoch": best["epoch"]})
