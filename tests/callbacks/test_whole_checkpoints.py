"""A checkpoint in its place is a whole one, whenever writing the next one ends."""

import errno
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO

from xmodal.callbacks.whole_checkpoints import WholeCheckpoints, keep_whole


class OwnWay(TorchCheckpointIO):
    """A user's."""


def test_writing_that_breaks_off_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch):
    path, files = tmp_path / "checkpoints" / "best.ckpt", WholeCheckpoints()
    files.save_checkpoint({"epoch": 1, "weights": torch.ones(3)}, path)
    assert files.load_checkpoint(path, weights_only=True)["epoch"] == 1

    def half(self: Path, content: memoryview) -> None:
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space left"):
        files.save_checkpoint({"epoch": 2, "weights": torch.zeros(3)}, path)
    assert files.load_checkpoint(path, weights_only=True)["epoch"] == 1
    assert [file.name for file in path.parent.iterdir()] == ["best.ckpt"]


@pytest.mark.parametrize(("plugins", "kind"), [(None, WholeCheckpoints), ([OwnWay()], OwnWay)])
def test_a_plugin_of_ones_own_stays(plugins: list | None, kind: type):
    trainer = pl.Trainer(plugins=plugins, logger=False, enable_checkpointing=False, accelerator="cpu")
    keep_whole(trainer)
    assert type(trainer.strategy.checkpoint_io) is kind
