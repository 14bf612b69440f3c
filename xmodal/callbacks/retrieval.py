"""Retrieval evaluation at the end of every validation and test epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from xmodal.errors import ConfigError
from xmodal.losses.comparison import EmbeddedPairs
from xmodal.models.dual_encoder import DualEncoder
from xmodal.models.processes import share_buffers
from xmodal.retrieval.evaluate import RetrievalResult, evaluate_retrieval
from xmodal.retrieval.index import FlatIndex, Index, index_recall
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
    labels: np.ndarray | None = None  # of all images of the data set, where relevance is by class

    def is_match(self, image_row: int, other: int) -> bool:
        """Whether an image, and a caption of the ``other``, are a match."""
        return image_row == other or (self.labels is not None and bool(self.labels[image_row] == self.labels[other]))


class EmbeddedSplit(NamedTuple):
    """The embeddings of one evaluation: N images, M captions, and the images' rows in the data set."""

    image: Float[Tensor, "N E"]
    text: Float[Tensor, "M E"]
    image_ids: Int[Tensor, "N"]
    text_image_ids: Int[Tensor, "M"]

    @property
    def image_of_text(self) -> Int[Tensor, "M"]:
        """Row of ``image`` that each caption belongs to."""
        order = self.image_ids.argsort()
        return order[torch.searchsorted(self.image_ids[order], self.text_image_ids)]


class RetrievalEvaluation(pl.Callback):
    """Gathers the embeddings of a split, builds the index over both galleries and logs exact retrieval metrics.

    Logs ``val/i2t_R1`` … ``val/t2i_mAP``, ``val/rsum`` and ``val/loss`` (and the same under ``test/``); where relevance
    is by class, ``val/i2i_mAP``, ``val/t2t_mAP`` and their like too. Figures come from exact ranks (ties count against
    the model); the FAISS index gives the top-5 lists that pictures show. Where it is an approximate one,
    ``val/i2t_index_recall@5`` and ``val/t2i_index_recall@5`` say how much of the exact lists it finds, in percent.
    Until the end hook of the validation (or test), ``gathered`` holds the embeddings for callbacks behind this one;
    for longer where ``keeps_embeddings`` is set, as the final evaluation does.
    With ``matryoshka=[64]``, ``val/dim64/i2t_R1`` and so on are the figures of the first 64 dimensions alone.

    Args:
        index: the kind of FAISS index (``conf/index``).
        ks: cut-offs K of recall@K, beside 1, 5 and 10.

    Raises:
        ConfigError: a cut-off that is not a whole number of at least 1.
    """

    def __init__(self, index: Index, ks: Sequence[int] = (1, 5, 10)) -> None:
        if wrong := [k for k in ks if type(k) is not int or k < 1]:
            found = ", ".join(map(repr, wrong))
            raise ConfigError(f"ks must be cut-offs K of recall@K, whole numbers of at least 1, found {found}.")
        self.index = index
        self.ks = tuple(sorted({1, 5, 10, *ks}))
        self.retrieved: Retrieved | None = None
        self.gathered: EmbeddedSplit | None = None
        self.keeps_embeddings = False
        self._embeddings: dict[int, list[Tensor]] = {}
        self._rows: dict[int, list[Tensor]] = {}

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        share_buffers(pl_module)
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

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.keeps_embeddings:
            self.gathered = None  # callbacks after this one have had them

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_validation_epoch_start(trainer, pl_module)

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.on_validation_batch_end(*args, **kwargs)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluate(trainer, pl_module, "test")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_validation_end(trainer, pl_module)

    def _evaluate(self, trainer: pl.Trainer, module: pl.LightningModule, role: str) -> None:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]  # set when fit or test is called
        assert isinstance(module, DualEncoder)
        image, text = (torch.cat(self._embeddings[side]) for side in (0, 1))
        image_ids, text_image_ids = (torch.cat(self._rows[side]).cpu() for side in (0, 1))
        known = torch.isin(text_image_ids, image_ids)  # all of them, unless limit_val_batches cut the gallery
        caption_rows = datamodule.caption_rows(role)[: len(text)][known.numpy()]
        text, text_image_ids = text[known.to(text.device)], text_image_ids[known]
        labels = datamodule.labels
        figures_of = partial(
            evaluate_retrieval,
            image_ids=image_ids,
            text_image_ids=text_image_ids,
            similarity=module.similarity,
            ks=self.ks,
            image_labels=None if labels is None else labels[image_ids.numpy()],
            text_labels=None if labels is None else labels[text_image_ids.numpy()],
        )
        result = figures_of(image, text)
        captions, captions_recall = self._search(text, image, module.similarity)
        images, images_recall = self._search(image, text, module.similarity)
        self.retrieved = Retrieved(result, image_ids.numpy(), caption_rows, captions, images, labels)
        recalls = {"i2t": captions_recall, "t2i": images_recall}
        metrics = result.metrics | {
            f"{way}_index_recall@{TOP_K}": recall for way, recall in recalls.items() if recall is not None
        }
        for size in module.objective.sizes_below(image.shape[1]):
            smaller = figures_of(*(module.objective.first_of(size, side) for side in (image, text))).metrics
            metrics |= {f"dim{size}/{name}": value for name, value in smaller.items()}
        metrics["loss"] = pair_loss(module, image, text, image_ids, text_image_ids, datamodule.batch_size)
        named = {f"{role}/{name}": value for name, value in metrics.items()}
        # every process evaluates the whole gallery; the mean makes them agree to the last digit on which epoch is best
        module.log_dict(named, prog_bar=False, batch_size=1, sync_dist=True)
        self._embeddings, self._rows = {}, {}
        self.gathered = EmbeddedSplit(image, text, image_ids, text_image_ids)

    def _search(
        self, gallery: Float[Tensor, "N E"], queries: Float[Tensor, "Q E"], similarity: str
    ) -> tuple[Int[np.ndarray, "Q K"], float | None]:
        """Rows of the gallery that the index finds for each query, and its recall unless it is the exact one."""
        vectors, asked = gallery.cpu().numpy(), queries.cpu().numpy()
        built = self.index.build(vectors, similarity)
        _, rows = built.search(asked, TOP_K)
        return rows, None if isinstance(self.index, FlatIndex) else index_recall(built, vectors, asked, TOP_K)


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
        pairs = (
            EmbeddedPairs(image[image_of_text[rows]], text[rows], text_image_ids[rows].to(image.device))
            for rows in batches
        )
        losses = [module.objective(batch) * len(batch.image_ids) for batch in pairs]
    return float(torch.stack(losses).sum() / len(text))
