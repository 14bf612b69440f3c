"""The trainable model: two towers, one space."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from xmodal.errors import ConfigError
from xmodal.models.query_encoders import QueryEncoders
from xmodal.models.tower import Tower
from xmodal.types import FeatureBatch, PairBatch, RaggedFeatures

CHECKPOINT_KEY = "xmodal"


class DualEncoder(pl.LightningModule):
    """Embeds images and texts into one space and trains both towers with a metric-learning loss.

    Args:
        image_tower: set of image features → embedding (E,).
        text_tower: set of text features → embedding (E,).
        loss: maps image (B, E), text (B, E), image ids (B,) to a scalar.
        optimizer: makes the optimizer when given parameters.
        scheduler: makes the learning-rate scheduler (stepped once per epoch) when given the optimizer; ``None`` for a
            constant rate.
        similarity: how embeddings are compared in evaluation and search.
        monitor: the figure of validation that a plateau scheduler waits for.
        tail_lr_factor: learning rate of the encoders' trainable tails, as a multiple of the optimizer's.
        unfreeze_epoch: first epoch (from 0) in which the tails are trained; before, they stay as they are, in
            evaluation mode.

    Raises:
        ConfigError: a factor that is negative or no number, a negative epoch.
    """

    def __init__(
        self,
        image_tower: Tower,
        text_tower: Tower,
        loss: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler | ReduceLROnPlateau] | None = None,
        similarity: Literal["cosine", "dot", "euclidean"] = "cosine",
        monitor: str = "val/rsum",
        tail_lr_factor: float = 0.1,
        unfreeze_epoch: int = 0,
    ) -> None:
        super().__init__()
        _check_ranges(tail_lr_factor, unfreeze_epoch)
        self.image_tower = image_tower
        self.text_tower = text_tower
        self.loss = loss
        self.similarity = similarity
        self.monitor = monitor
        self.tail_lr_factor = tail_lr_factor
        self.unfreeze_epoch = unfreeze_epoch
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self.encoders: QueryEncoders | None = None

    def forward(self, batch: PairBatch) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B E"]]:
        """Embeddings of both sides of a batch of pairs."""
        return self.embed_images(batch.image), self.embed_texts(batch.text)

    def embed_images(self, batch: FeatureBatch) -> Float[Tensor, "B E"]:
        return _embedded(self.image_tower, batch)

    def embed_texts(self, batch: FeatureBatch) -> Float[Tensor, "B E"]:
        return _embedded(self.text_tower, batch)

    @property
    def tails(self) -> list[nn.Module]:
        """The encoders' trainable layers: of both sides, of one, or none."""
        return [tower.tail for tower in (self.image_tower, self.text_tower) if tower.tail is not None]

    def on_train_epoch_start(self) -> None:
        for tail in self.tails:
            tail.requires_grad_(self._tails_are_trained()).train(self._tails_are_trained())

    def train(self, mode: bool = True) -> "DualEncoder":
        """Training mode; tails that wait for their epoch stay in evaluation mode (no drop-out, fixed statistics)."""
        super().train(mode)
        if mode and not self._tails_are_trained():
            for tail in self.tails:
                tail.eval()
        return self

    def _tails_are_trained(self) -> bool:
        return self.unfreeze_epoch == 0 or self.current_epoch >= self.unfreeze_epoch

    def training_step(self, batch: PairBatch, batch_idx: int) -> Float[Tensor, ""]:
        image, text = self(batch)
        loss = self.loss(image, text, batch.image.image_ids)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(image), sync_dist=True)
        self.log("train/loss_step", loss, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: FeatureBatch, batch_idx: int, dataloader_idx: int) -> Float[Tensor, "B E"]:
        """Embed a batch of images (loader 0) or captions (loader 1); the retrieval callback gathers them."""
        return self.embed_images(batch) if dataloader_idx == 0 else self.embed_texts(batch)

    def test_step(self, batch: FeatureBatch, batch_idx: int, dataloader_idx: int) -> Float[Tensor, "B E"]:
        return self.validation_step(batch, batch_idx, dataloader_idx)

    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer(self._parameter_groups())
        for group in optimizer.param_groups:
            if group.get("name") == "tail":
                group["lr"] *= self.tail_lr_factor
        if self._make_scheduler is None:
            return optimizer
        scheduler = self._make_scheduler(optimizer)
        settings: dict[str, Any] = {"scheduler": scheduler, "monitor": self.monitor}
        if isinstance(scheduler, ReduceLROnPlateau):  # waits for a validation, all others step after each epoch
            settings["frequency"] = self.trainer.check_val_every_n_epoch or 1
        return {"optimizer": optimizer, "lr_scheduler": settings}

    def _parameter_groups(self) -> Any:
        """All parameters; in two groups where there are tails, which have a learning rate of their own."""
        tails = [parameter for tail in self.tails for parameter in tail.parameters()]
        if not tails:
            return self.parameters()
        others = {id(parameter) for parameter in tails}
        heads = [parameter for parameter in self.parameters() if id(parameter) not in others]
        return [{"params": heads, "name": "heads"}, {"params": tails, "name": "tail"}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what `xmodal.models.checkpoint.load` needs to rebuild the model and its encoders."""
        if self.encoders is not None:
            checkpoint[CHECKPOINT_KEY] = self.encoders.checkpoint()

    def encode_images(self, images: Sequence[str | Path | Image], batch_size: int = 256) -> Float[Tensor, "N E"]:
        """Embeddings of photos from files or PIL images, on the CPU.

        Raises:
            DataError: a file that is absent or can't be decoded.
            FeatureError: the image features were precomputed and ``image_encoder.made_by`` is not set.
        """
        if isinstance(images, (str, Path, Image)):
            raise TypeError("encode_images takes a list of photos; for a single one: encode_images([photo]).")
        return self._encode(self._known_encoders().image_features, images, self.image_tower, batch_size)

    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Float[Tensor, "N E"]:
        """Embeddings of sentences, on the CPU.

        Raises:
            FeatureError: the text features were precomputed and ``text_encoder.made_by`` is not set.
        """
        if isinstance(texts, str):
            raise TypeError("encode_texts takes a list of sentences; for a single one: encode_texts([sentence]).")
        return self._encode(self._known_encoders().text_features, texts, self.text_tower, batch_size)

    def _known_encoders(self) -> QueryEncoders:
        if self.encoders is None:
            raise RuntimeError("This model has no encoders. Load it with xmodal.models.checkpoint.load(path).")
        self.encoders.device = self.device
        return self.encoders

    def _encode(
        self,
        features_of: Callable[[Sequence[Any]], RaggedFeatures],
        items: Sequence[Any],
        tower: Tower,
        batch_size: int,
    ) -> Float[Tensor, "N E"]:
        """Embeddings of N items; the sets at a cut, which may be all pixels, are in memory for one batch at a time."""
        at_once = batch_size if tower.tail is not None else max(1, len(items))
        pieces = [items[start : start + at_once] for start in range(0, len(items), at_once)] or [items]
        return torch.cat([self._embed(features_of(piece), tower, batch_size) for piece in pieces])

    @torch.no_grad()
    def _embed(self, features: RaggedFeatures, tower: Tower, batch_size: int) -> Float[Tensor, "N E"]:
        """Embed N sets in batches, in evaluation mode, leaving the model's mode as it was."""
        was_training = self.training
        self.eval()
        rows = torch.arange(len(features)).split(batch_size)
        batches = (features.pad(chunk.numpy(), chunk.numpy()) for chunk in rows)
        parts = [_embedded(tower, batch.to(self.device)).cpu() for batch in batches]
        self.train(was_training)
        return torch.cat(parts)


def _embedded(tower: Tower, batch: FeatureBatch) -> Float[Tensor, "B E"]:
    return tower.embed(batch.x.squeeze(1)) if batch.pooled else tower(batch.x, batch.mask)


def _check_ranges(tail_lr_factor: float, unfreeze_epoch: int) -> None:
    faults = []
    if not (math.isfinite(tail_lr_factor) and tail_lr_factor >= 0):
        faults.append(f"optimizer.tail_lr_factor must be a number of at least 0, found {tail_lr_factor}.")
    if unfreeze_epoch < 0:
        faults.append(f"unfreeze_epoch must be at least 0, found {unfreeze_epoch}.")
    if faults:
        raise ConfigError(faults)
