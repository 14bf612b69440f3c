"""Retrieval evaluation at the end of every validation and test epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from xmodal.models.dual_encoder import DualEncoder
from xmodal.retrieval.evaluate import RetrievalResult, evaluate_retrieval
from xmodal.retrieval.index import Index
from xmodal.types import FeatureBatch

TOP_K = 5
_PAIRING_SEED = 0  # the pairs of a validation batch are the same in every epoch, so that val/loss curves are comparable


@dataclass(frozen=True)
class Retrieved:
    """One evaluated split: who was queried, and what the index found for each."""

    result: RetrievalResult
    image_rows: Int[np.ndarray, "N"]
    caption_rows: Int[np.ndarray, "M"]
    captions_of_images: Int[np.ndarray, "N K"]  # positions in caption_rows, best first
    images_of_captions: Int[np.ndarray, "M J"]  # positions in image_rows, best first


class RetrievalEvaluation(pl.Callback):
    """Gathers the embeddings of a split, builds the index over both galleries and logs exact retrieval metrics.

    Logs ``val/i2t_R1`` … ``val/t2i_mAP``, ``val/rsum`` and ``val/loss`` (and the same under ``test/``). Figures come
    from exact ranks (ties count against the model); the FAISS index gives the top-5 lists that pictures show.

    Args:
        index: the kind of FAISS index (``conf/index``).
        ks: cut-offs K of recall@K, beside 1, 5 and 10.
    """

    def __init__(self, index: Index, ks: Sequence[int] = (1, 5, 10)) -> None:
        self.index = index
        self.ks = tuple(sorted({1, 5, 10, *ks}))
        self.retrieved: Retrieved | None = None
        self._embeddings: dict[int, list[Tensor]] = {}
        self._rows: dict[int, list[Tensor]] = {}

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._embeddings = {0: [], 1: []}
        self._rows = {0: [], 1: []}

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: FeatureBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._embeddings[dataloader_idx].append(outputs.detach().float())
        self._rows[dataloader_idx].append(batch.image_ids)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._evaluate(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_validation_epoch_start(trainer, pl_module)

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.on_validation_batch_end(*args, **kwargs)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluate(trainer, pl_module, "test")

    def _evaluate(self, trainer: pl.Trainer, module: pl.LightningModule, role: str) -> None:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]  # set when fit or test is called
        assert isinstance(module, DualEncoder)
        image, text = (torch.cat(self._embeddings[side]) for side in (0, 1))
        image_ids, text_image_ids = (torch.cat(self._rows[side]).cpu() for side in (0, 1))
        caption_rows = datamodule.caption_rows(role)[: len(text)]
        known = torch.isin(text_image_ids, image_ids)  # all of them, unless limit_val_batches cut the gallery
        text, text_image_ids, caption_rows = (
            text[known.to(text.device)],
            text_image_ids[known],
            caption_rows[known.numpy()],
        )
        result = evaluate_retrieval(image, text, image_ids, text_image_ids, similarity=module.similarity, ks=self.ks)
        loss = pair_loss(module, image, text, image_ids, text_image_ids, datamodule.batch_size)
        metrics = {f"{role}/{name}": value for name, value in result.metrics.items()} | {f"{role}/loss": loss}
        module.log_dict(metrics, prog_bar=False, batch_size=1)
        self.retrieved = self._search(image, text, module.similarity, result, image_ids.numpy(), caption_rows)
        self._embeddings, self._rows = {}, {}

    def _search(
        self,
        image: Float[Tensor, "N E"],
        text: Float[Tensor, "M E"],
        similarity: str,
        result: RetrievalResult,
        image_rows: Int[np.ndarray, "N"],
        caption_rows: Int[np.ndarray, "M"],
    ) -> Retrieved:
        image_vectors, text_vectors = image.cpu().numpy(), text.cpu().numpy()
        _, captions = self.index.build(text_vectors, similarity).search(image_vectors, TOP_K)
        _, images = self.index.build(image_vectors, similarity).search(text_vectors, TOP_K)
        return Retrieved(result, image_rows, caption_rows, captions, images)


@torch.no_grad()
def pair_loss(
    module: DualEncoder,
    image: Float[Tensor, "N E"],
    text: Float[Tensor, "M E"],
    image_ids: Int[Tensor, "N"],
    text_image_ids: Int[Tensor, "M"],
    batch_size: int,
) -> float:
    """Mean loss over all (caption, its image) pairs in batches of ``batch_size``, shuffled alike in every epoch."""
    position = torch.empty(int(image_ids.max()) + 1, dtype=torch.int64)
    position[image_ids] = torch.arange(len(image_ids))
    image_of_text = position[text_image_ids]
    with torch.random.fork_rng(devices=[image.device] if image.is_cuda else []):
        torch.manual_seed(_PAIRING_SEED)
        batches = torch.randperm(len(text)).split(batch_size)
        losses = [
            module.loss(image[image_of_text[rows]], text[rows], text_image_ids[rows].to(image.device)) * len(rows)
            for rows in batches
        ]
    return float(torch.stack(losses).sum() / len(text))
