"""The one W&B run of a job."""

from collections.abc import Iterable, Iterator
from typing import Any

from pytorch_lightning.loggers import Logger, WandbLogger


class WandbRun(WandbLogger):
    """Lightning's logger of a run that has begun already.

    Args:
        run: of W&B.
        keeps_artifacts: whether the best checkpoint and its indexes go with it. (Lightning's own artifacts know neither
            the figures nor the indexes, and are not used.)
    """

    def __init__(self, run: Any, keeps_artifacts: bool) -> None:
        super().__init__(experiment=run, log_model=False)
        self.keeps_artifacts = keeps_artifacts


def wandb_runs(loggers: Iterable[Logger]) -> Iterator[WandbRun]:
    """Those of the loggers that are runs of W&B."""
    return (logger for logger in loggers if isinstance(logger, WandbRun))
