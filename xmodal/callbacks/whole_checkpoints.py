"""Checkpoints that are seen complete or not at all."""

import io
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO

from xmodal.atomic import complete_file


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it.

    Lightning's own way writes to the folder of temporary files and moves it from there, which is a copy where that is
    another file system: a process that is killed meanwhile leaves half of the best epoch, in the place of a whole one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises OSError as any writing does, for which torch, left to open the file itself, has other errors."""
        assert storage_options is None, "Nothing here gives any."
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with complete_file(Path(path)) as partial:
            partial.write_bytes(content.getbuffer())


def keep_whole(trainer: pl.Trainer) -> None:
    """Have the trainer write its checkpoints so; a plugin of the user's own for it (``trainer.plugins``) stays."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpoints()
