"""Batches of matching pairs for training, and of single items for validation and test."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from xmodal.config.evaluation import RELEVANCES
from xmodal.data.items import Items
from xmodal.errors import ConfigError, FeatureError
from xmodal.types import FeatureBatch, PairBatch, RaggedFeatures


class PairDataModule(pl.LightningDataModule):
    """Features of a data set, held in memory, as batches.

    Args:
        items: N images and M captions.
        image_features: N sets, row by row those of ``items.images``.
        text_features: M sets, row by row those of ``items.captions``.
        batch_size: pairs (or single items) per batch.
        num_workers: processes that build batches (0: the training process itself, which is fastest for small sets).
        seed: of the order of the training pairs, which differs from epoch to epoch.
        relevance: what evaluation takes for a match: the pairs (``instance``), or all items of one label (``class``).

    Raises:
        ConfigError: ``batch_size`` or ``num_workers`` out of range, or an unknown ``relevance``.
        DataError: relevance by class where images have no label.
        FeatureError: features of another count than the items.
    """

    def __init__(
        self,
        items: Items,
        image_features: RaggedFeatures,
        text_features: RaggedFeatures,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
        relevance: str = "instance",
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigError(f"data.batch_size must be at least 1, found {batch_size}.")
        if num_workers < 0:
            raise ConfigError(f"data.num_workers must be 0 or more, found {num_workers}.")
        if relevance not in RELEVANCES:
            raise ConfigError(f"data.relevance must be {' or '.join(RELEVANCES)}, found {relevance!r}.")
        if relevance == "class":
            items.require_labels()
        _require_count("image", "images", len(image_features), len(items.images))
        _require_count("text", "captions", len(text_features), len(items.captions))
        self.items = items
        self.image_features = image_features
        self.text_features = text_features
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.relevance = relevance

    def image_rows(self, role: str) -> np.ndarray:
        """Rows of the images of a split."""
        return self.items.image_rows(role)

    def caption_rows(self, role: str) -> np.ndarray:
        """Rows of the captions of a split."""
        return self.items.caption_rows(role)

    @property
    def labels(self) -> np.ndarray | None:
        """The label of every image of the data set, by its row; None where relevance is by instance."""
        return self.items.labels if self.relevance == "class" else None

    def train_dataloader(self) -> DataLoader[PairBatch]:
        """Shuffled PairBatch: each training caption once per epoch, with its image; a last smaller batch is kept.

        Raises:
            DataError: no image belongs to the training split.
        """
        self.items.require("train")
        captions = self.caption_rows("train")
        pairs = Pairs(self.image_features, self.text_features, self.items.caption_images[captions], captions)
        return self._loader(pairs, EpochShuffle(len(pairs), self.seed, self._epoch()))

    def val_dataloader(self) -> list[DataLoader[FeatureBatch]]:
        """Two loaders of FeatureBatch: the images of the split once each, then its captions; none without the split."""
        return self._gallery_loaders("val")

    def test_dataloader(self) -> list[DataLoader[FeatureBatch]]:
        """As ``val_dataloader``, for the test split."""
        return self._gallery_loaders("test")

    def _gallery_loaders(self, role: str) -> list[DataLoader[FeatureBatch]]:
        if not self.items.has_split(role):
            return []
        images, captions = self.image_rows(role), self.caption_rows(role)
        sides = [
            Singles(self.image_features, images, images),
            Singles(self.text_features, captions, self.items.caption_images[captions]),
        ]
        return [self._loader(side, _whole(side)) for side in sides]

    def _loader(self, dataset: "Pairs | Singles", sampler: Sampler[int] | None = None) -> DataLoader:
        return DataLoader(
            dataset,
            self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )

    def _epoch(self) -> int:
        return self.trainer.current_epoch if self.trainer is not None else 0


class EpochShuffle(Sampler[int]):
    """All of ``0 … count − 1`` in an order that depends on seed and epoch alone, so that a resumed run continues it.

    Lightning calls ``set_epoch``; without it every pass counts as the next epoch.
    """

    def __init__(self, count: int, seed: int, epoch: int = 0) -> None:
        self.count = count
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        # two numbers, not their sum: epoch 1 of seed 0 is not epoch 0 of seed 1
        state = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0]
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(int(state)))
        self.epoch += 1
        return iter(order.tolist())

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch


class SetReader:
    """Sets of a ``RaggedFeatures`` as padded float32 batches; the hot path of training, hence tensors throughout."""

    def __init__(self, features: RaggedFeatures) -> None:
        self.values = torch.from_numpy(features.values)
        self.offsets = torch.from_numpy(features.offsets)
        lengths = features.lengths
        one_length = len(lengths) > 0 and lengths[0] > 0 and bool((lengths == lengths[0]).all())
        self.uniform_length = int(lengths[0]) if one_length else None

    def batch(self, rows: Tensor, image_ids: Tensor) -> FeatureBatch:
        """The sets of ``rows``, padded with zeros to the longest of them (L ≥ 1)."""
        if self.uniform_length is None:
            return self._padded(rows, image_ids)
        sets = self.values.reshape(-1, self.uniform_length, self.values.shape[1])
        mask = torch.ones(len(rows), self.uniform_length, dtype=torch.bool)
        return FeatureBatch(sets.index_select(0, rows).float(), mask, image_ids)

    def _padded(self, rows: Tensor, image_ids: Tensor) -> FeatureBatch:
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        steps = torch.arange(max(1, int(lengths.max())))
        mask = steps < lengths[:, None]
        if not len(self.values):  # no set has any vector
            return FeatureBatch(torch.zeros(*mask.shape, self.values.shape[1]), mask, image_ids)
        # padding reads some vector that exists and is then set to zero: one gather, no loop over sets
        source = (starts[:, None] + steps).clamp_(max=len(self.values) - 1)
        x = self.values.index_select(0, source.flatten()).float().view(*mask.shape, -1)
        return FeatureBatch(x.masked_fill_(~mask.unsqueeze(-1), 0.0), mask, image_ids)


class Pairs(Dataset[PairBatch]):
    """P matching pairs: image row and caption row of each."""

    def __init__(
        self, image_features: RaggedFeatures, text_features: RaggedFeatures, images: np.ndarray, captions: np.ndarray
    ) -> None:
        self.image_sets = SetReader(image_features)
        self.text_sets = SetReader(text_features)
        self.images = torch.from_numpy(images)
        self.captions = torch.from_numpy(captions)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, row: int) -> PairBatch:
        return self.__getitems__([row])

    def __getitems__(self, rows: list[int]) -> PairBatch:
        """All pairs of a batch at once (the DataLoader prefers this method)."""
        chosen = torch.tensor(rows)
        images = self.images[chosen]
        return PairBatch(self.image_sets.batch(images, images), self.text_sets.batch(self.captions[chosen], images))


class Singles(Dataset[FeatureBatch]):
    """Items of one side, with the image row that each belongs to."""

    def __init__(self, features: RaggedFeatures, rows: np.ndarray, image_ids: np.ndarray) -> None:
        self.sets = SetReader(features)
        self.rows = torch.from_numpy(rows)
        self.image_ids = torch.from_numpy(image_ids)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> FeatureBatch:
        return self.__getitems__([row])

    def __getitems__(self, rows: list[int]) -> FeatureBatch:
        """All items of a batch at once (the DataLoader prefers this method)."""
        chosen = torch.tensor(rows)
        return self.sets.batch(self.rows[chosen], self.image_ids[chosen])


def _whole(side: Singles) -> Sampler[int]:
    """All items in order, in every process: ranks need the whole gallery, and Lightning shards any other sampler."""
    return DistributedSampler(side, num_replicas=1, rank=0, shuffle=False)


def _as_it_is(batch: Any) -> Any:
    return batch  # the data set has already made the batch


def _require_count(modality: str, what: str, found: int, expected: int) -> None:
    if found != expected:
        raise FeatureError(
            f"There are {found} sets of {modality} features for {expected} {what}. "
            "Extract the features of this very data set."
        )
