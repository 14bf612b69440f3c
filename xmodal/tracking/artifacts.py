"""The best checkpoint and its indexes as artifacts of W&B, with what is known of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xmodal.tracking.staging import staged_with_run
from xmodal.tracking.wandb_run import WandbRun


def keep_artifacts(logger: WandbRun, checkpoint: Path, index: Path, metadata: Mapping[str, Any]) -> None:
    """Log ``checkpoint-<run id>`` (type model) and ``index-<run id>`` (type index), both under the alias ``best``.

    Files stay where they are until they are uploaded; no copy is made.

    Args:
        checkpoint: the file.
        index: the folder.
        metadata: plain values, the same for both.
    """
    import wandb

    run = logger.experiment
    for kind, name, path in (("model", "checkpoint", checkpoint), ("index", "index", index)):
        artifact = wandb.Artifact(f"{name}-{run.id}", type=kind, metadata=dict(metadata))
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            artifact.add_file(str(file), policy="immutable")
        with staged_with_run(run):
            run.log_artifact(artifact, aliases=["best"])
