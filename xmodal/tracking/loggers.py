"""What every logger of a run is told, as far as it can show it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from xmodal.tracking.columns import flat_config
from xmodal.tracking.wandb_run import WandbRun, wandb_runs


@rank_zero_only
def log_config(loggers: Sequence[Logger], config: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
    """Record the resolved configuration with every logger, flat; ``columns`` beside it where there is a table of runs.

    Args:
        columns: such as ``image_encoder: vgg`` beside ``image_encoder.weights: …``.
    """
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.experiment.config.update({**flat_config(config), **columns}, allow_val_change=True)
        else:
            logger.log_hyperparams(flat_config(config))


@rank_zero_only
def log_picture(loggers: Sequence[Logger], name: str, path: Path, step: int) -> None:
    """Record a picture with every logger that shows pictures."""
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.log_image(name, [str(path)])
        elif isinstance(logger, TensorBoardLogger):
            from matplotlib.image import imread

            logger.experiment.add_image(name, imread(path), step, dataformats="HWC")


@rank_zero_only
def finish(loggers: Sequence[Logger], metrics: Mapping[str, float], exit_code: int = 0) -> None:
    """Put the final metrics into the W&B summary and end its run, so that the next job starts one of its own."""
    for run in wandb_runs(loggers):
        run.experiment.summary.update(dict(metrics))
        run.experiment.finish(exit_code=exit_code)
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.close()  # its last pictures would be lost with the process otherwise
