"""What a final evaluation leaves for reports and dashboards beside its figures."""

import logging
from pathlib import Path

from pytorch_lightning.loggers import Logger

from xmodal.callbacks.retrieval import RetrievalEvaluation
from xmodal.data.items import Items
from xmodal.experiment.embedding_sample import write_sample
from xmodal.experiment.index_files import write_indexes
from xmodal.experiment.retrieved import retrieved, write_retrieved
from xmodal.tracking.directions import rank_histograms
from xmodal.tracking.gallery import log_retrieved
from xmodal.tracking.wandb_run import wandb_runs

log = logging.getLogger(__name__)

INDEX = "index"  # folder


def leave_examples(
    folder: Path, role: str, items: Items, retrieval: RetrievalEvaluation, similarity: str, loggers: list[Logger]
) -> None:
    """Queries with what was retrieved, a sample of the embeddings, and what W&B shows of both.

    Where files can't be written, these alone are missing, and a warning says so. The embeddings are let go of.
    """
    found, embedded = retrieval.retrieved, retrieval.gathered
    assert found is not None
    assert embedded is not None
    retrieval.gathered = None
    ways = retrieved(items, found, embedded, similarity)
    try:
        write_retrieved(folder / f"retrieved_{role}.json", role, items.name, ways)
        write_sample(folder / f"embeddings_{role}.npz", items, found, embedded, similarity)
        for logger in wandb_runs(loggers):
            log_retrieved(logger, role, ways)
            logger.experiment.log(rank_histograms(role, found.result.ranks))
            if logger.keeps_artifacts:
                write_indexes(folder / INDEX, retrieval.index, items, found, embedded, similarity)
    except OSError as error:
        log.warning("What was retrieved can't be written (%s): reports and dashboards go without it.", error)
