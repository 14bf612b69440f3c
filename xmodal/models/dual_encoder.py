"""The trainable model: two towers, one space."""

import hashlib
import logging
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
from torch.optim.lr_scheduler import ReduceLROnPlateau

from xmodal.encoders.trainable import learns_with_heads
from xmodal.errors import ConfigError
from xmodal.losses.comparison import EmbeddedPairs
from xmodal.models.objective import Objective
from xmodal.models.pieces import batch_norms, embed_in_pieces
from xmodal.models.processes import are_several, draw_apart, gathered
from xmodal.models.query_encoders import QueryEncoders
from xmodal.models.schedule import Schedule, Scheduler, warming_up
from xmodal.models.tower import Tower
from xmodal.types import FeatureBatch, PairBatch, RaggedFeatures

log = logging.getLogger(__name__)

CHECKPOINT_KEY = "xmodal"
MEMORY_KEY = "cross_batch_memory"
MEMORY_ITEMS_KEY = "cross_batch_memory_items"


class DualEncoder(pl.LightningModule):
    """Embeds images and texts into one space and trains both towers with a metric-learning loss.

    Args:
        image_tower: set of image features → embedding (E,).
        text_tower: set of text features → embedding (E,).
        loss: maps image (B, E), text (B, E), image ids (B,) to a scalar.
        optimizer: makes the optimizer when given parameters.
        scheduler: how the learning rate changes; what makes a scheduler when given the optimizer is stepped once per
            epoch; ``None`` for a constant rate.
        similarity: how embeddings are compared in evaluation and search.
        monitor: the figure of validation that a plateau scheduler waits for.
        tail_lr_factor: learning rate of the encoders' trainable tails, as a multiple of the optimizer's. Neither this
            nor ``unfreeze_epoch`` is about a tail that learns with the heads (`xmodal.encoders.trainable`).
        unfreeze_epoch: first epoch (from 0) in which the tails are trained; before, they stay as they are, in
            evaluation mode.
        gather: with several processes, let each pair meet the items of all of them; the gradient is that of one
            process with the whole batch.
        relevance, cross_batch_memory, matryoshka, seed: see `xmodal.models.objective.Objective`.
        embedding_chunk: in training, a tower goes over so many pairs at a time (`xmodal.models.pieces`), so that
            batches fit in memory that would not otherwise; None: over the whole batch.

    Raises:
        ConfigError: a factor that is negative or no number, a negative epoch.
    """

    def __init__(
        self,
        image_tower: Tower,
        text_tower: Tower,
        loss: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: Schedule | Callable[..., Scheduler] | None = None,
        similarity: Literal["cosine", "dot", "euclidean"] = "cosine",
        monitor: str = "val/rsum",
        tail_lr_factor: float = 0.1,
        unfreeze_epoch: int = 0,
        gather: bool = True,
        relevance: Literal["instance", "label"] = "instance",
        cross_batch_memory: int = 0,
        matryoshka: Sequence[int] | None = None,
        seed: int = 0,
        embedding_chunk: int | None = None,
    ) -> None:
        super().__init__()
        _check_ranges(tail_lr_factor, unfreeze_epoch, embedding_chunk)
        self.image_tower = image_tower
        self.text_tower = text_tower
        normalize = image_tower.normalize and text_tower.normalize
        self.objective = Objective(loss, relevance, cross_batch_memory, matryoshka, seed, normalize)
        self.gather = gather
        self.similarity = similarity
        self.monitor = monitor
        self.tail_lr_factor = tail_lr_factor
        self.unfreeze_epoch = unfreeze_epoch
        self._make_optimizer = optimizer
        self.embedding_chunk = embedding_chunk
        self._schedule = scheduler if isinstance(scheduler, Schedule) else Schedule(scheduler)
        self._warmup_steps = 0
        self._require_pieces()
        self.register_load_state_dict_pre_hook(_rename_loss)
        self.encoders: QueryEncoders | None = None

    def forward(self, batch: PairBatch) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B E"]]:
        """Embeddings of both sides of a batch of pairs."""
        if self.embedding_chunk is None or not (self.training and torch.is_grad_enabled()):
            return self.embed_images(batch.image), self.embed_texts(batch.text)
        image = embed_in_pieces(self.embed_images, batch.image, self.embedding_chunk)
        return image, embed_in_pieces(self.embed_texts, batch.text, self.embedding_chunk)

    def embed_images(self, batch: FeatureBatch) -> Float[Tensor, "B E"]:
        return _embedded(self.image_tower, batch)

    def embed_texts(self, batch: FeatureBatch) -> Float[Tensor, "B E"]:
        return _embedded(self.text_tower, batch)

    @property
    def loss(self) -> nn.Module:
        """The loss of the configuration, without what the objective adds to it."""
        return self.objective.loss

    @property
    def tails(self) -> list[nn.Module]:
        """The encoders' trainable layers: of both sides, of one, or none."""
        return [tower.tail for tower in (self.image_tower, self.text_tower) if tower.tail is not None]

    @property
    def _pretrained_tails(self) -> list[nn.Module]:
        """Those with a rate and a first epoch of their own."""
        return [tail for tail in self.tails if not learns_with_heads(tail)]

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        """Behind what the loader draws for itself, which a resumed run does at another time."""
        if batch_idx == 0:
            draw_apart(self.objective.seed, self.current_epoch)

    def on_train_epoch_start(self) -> None:
        for tail in self._pretrained_tails:
            tail.requires_grad_(self._tails_are_trained()).train(self._tails_are_trained())

    def train(self, mode: bool = True) -> "DualEncoder":
        """Training mode; tails that wait for their epoch stay in evaluation mode (no drop-out, fixed statistics)."""
        super().train(mode)
        if mode and not self._tails_are_trained():
            for tail in self._pretrained_tails:
                tail.eval()
        return self

    def _tails_are_trained(self) -> bool:
        return self.unfreeze_epoch == 0 or self.current_epoch >= self.unfreeze_epoch

    def training_step(self, batch: PairBatch, batch_idx: int) -> Float[Tensor, ""]:
        image, text = (side.to(torch.promote_types(side.dtype, torch.float32)) for side in self(batch))
        pairs = self._gathered(EmbeddedPairs(image, text, batch.image.image_ids))
        rank = () if self.gather else (self.global_rank,)  # those who share a batch draw alike
        self.objective.at_step(self.global_step, (self.current_epoch, batch_idx, *rank))
        with torch.autocast(self.device.type, enabled=False):  # bfloat16 knows 128 numbers from 0.5 to 1
            loss: Tensor = self.objective(pairs)
        size = len(batch.image.image_ids)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=size, sync_dist=True)
        self.log("train/loss_step", loss, on_step=True, on_epoch=False)
        figures = {f"train/{name}": value for name, value in self.objective.figures().items()}
        self.log_dict(figures, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        return loss

    def _gathered(self, pairs: EmbeddedPairs) -> EmbeddedPairs:
        """The pairs of all processes, where they are to meet."""
        return gathered(pairs) if self.gather and are_several() else pairs

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
        self._require_pieces()  # of the tails too, which are not there from the beginning
        self._warmup_steps = self._schedule.warmup(self._all_steps)
        scheduler = self._schedule.scheduler(optimizer, self._all_steps, self._epochs())
        if scheduler is None:
            return optimizer
        interval = self._schedule.interval
        settings: dict[str, Any] = {"scheduler": scheduler, "monitor": self.monitor, "interval": interval}
        if isinstance(scheduler, ReduceLROnPlateau):  # waits for a validation, all others step after each epoch
            settings["frequency"] = self.trainer.check_val_every_n_epoch or 1
        return {"optimizer": optimizer, "lr_scheduler": settings}

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        with warming_up(optimizer, self.global_step, self._warmup_steps):
            if self._warmup_steps:  # monitors of schedulers know nothing of a warm-up
                self.log("train/lr", optimizer.param_groups[0]["lr"], on_step=True, on_epoch=False)
            optimizer.step(closure=optimizer_closure)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """A scheduler by steps waits for the end of the warm-up."""
        if self._schedule.interval == "epoch" or self.global_step > self._warmup_steps:
            super().lr_scheduler_step(scheduler, metric)

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps before the learning rate is the scheduler's own; known once training has begun."""
        return self._warmup_steps

    def _all_steps(self) -> int | float:
        return self.trainer.estimated_stepping_batches

    def _epochs(self) -> int | None:
        return self._trainer.max_epochs if self._trainer is not None else None

    def _require_pieces(self) -> None:
        """Raise ConfigError where the gradient by pieces would not be that of the batch."""
        if self.embedding_chunk is not None and (layers := batch_norms(self)):
            raise ConfigError(
                f"model.embedding_chunk={self.embedding_chunk}: {layers[0]} normalises over the batch, and would do so "
                f"over each piece of {self.embedding_chunk}. Choose a model without batch normalisation, or "
                "model.embedding_chunk=null."
            )

    def _parameter_groups(self) -> Any:
        """All parameters, in groups where some are treated apart.

        Tails have a learning rate of their own; a temperature or bias of the loss doesn't decay (CLIP exempts gains and
        biases): a decaying log temperature would drift towards 1.
        """
        tails = [parameter for tail in self._pretrained_tails for parameter in tail.parameters()]
        learned = list(self.objective.loss.parameters())
        if not tails and not learned:
            return self.parameters()
        others = {id(parameter) for parameter in (*tails, *learned)}
        groups: list[dict[str, Any]] = [
            {"params": [parameter for parameter in self.parameters() if id(parameter) not in others], "name": "heads"}
        ]
        if tails:
            groups.append({"params": tails, "name": "tail"})
        if learned:
            groups.append({"params": learned, "name": "loss", "weight_decay": 0.0})
        return groups

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what `xmodal.models.checkpoint.load` needs to rebuild the model and its encoders, and the memory."""
        if self.encoders is not None:
            checkpoint[CHECKPOINT_KEY] = self.encoders.checkpoint()
        if memory := self.objective.remembered():
            checkpoint[MEMORY_KEY] = memory
            checkpoint[MEMORY_ITEMS_KEY] = self._items_digest()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the memory of the run that is resumed, where it is of the same items in the same order."""
        if checkpoint.get(MEMORY_ITEMS_KEY) == self._items_digest():
            self.objective.remember_again(checkpoint.get(MEMORY_KEY, {}))
        elif MEMORY_KEY in checkpoint:
            log.info("The cross-batch memory of the checkpoint is of other items: it begins empty.")

    def _items_digest(self) -> str:
        """Of the ids of all images, by whose rows the memory goes; of none outside of a run."""
        datamodule = None if self._trainer is None else getattr(self._trainer, "datamodule", None)
        ids = [] if datamodule is None else datamodule.items.image_ids.tolist()
        return hashlib.sha256(repr(ids).encode()).hexdigest()

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


def _rename_loss(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Parameters of a loss stood under ``loss`` before there was an objective."""
    for name in [name for name in state if name.startswith(f"{prefix}loss.")]:
        state[f"{prefix}objective.{name.removeprefix(prefix)}"] = state.pop(name)


def _embedded(tower: Tower, batch: FeatureBatch) -> Float[Tensor, "B E"]:
    return tower.embed(batch.x.squeeze(1)) if batch.pooled else tower(batch.x, batch.mask)


def _check_ranges(tail_lr_factor: float, unfreeze_epoch: int, embedding_chunk: int | None) -> None:
    faults = []
    if embedding_chunk is not None and embedding_chunk < 1:
        faults.append(f"model.embedding_chunk must be at least 1, or null; found {embedding_chunk}.")
    if not (math.isfinite(tail_lr_factor) and tail_lr_factor >= 0):
        faults.append(f"optimizer.tail_lr_factor must be a number of at least 0, found {tail_lr_factor}.")
    if unfreeze_epoch < 0:
        faults.append(f"unfreeze_epoch must be at least 0, found {unfreeze_epoch}.")
    if faults:
        raise ConfigError(faults)
