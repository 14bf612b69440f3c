"""Batches of matching pairs for training, and of single items for validation and test."""

import logging
import math
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from xmodal.config.evaluation import RELEVANCES
from xmodal.data.items import Items
from xmodal.errors import ConfigError, FeatureError
from xmodal.features.memory import PAIR_BYTES, Budget, budget, in_gb, largest_set, least_buffer, resident
from xmodal.features.orders import EpochBatches, EpochShuffle, batches_by_image, batches_by_length, batching_faults
from xmodal.features.readers import Reader, SetReader, SourceReader
from xmodal.features.store import FeatureFile
from xmodal.features.streaming import PairStream, SetStream
from xmodal.types import FeatureBatch, FeatureSource, PairBatch, RaggedFeatures

log = logging.getLogger(__name__)

Galleries = list[DataLoader[FeatureBatch] | SetStream]


class PairDataModule(pl.LightningDataModule):
    """Features of a data set as batches: from memory, from disk, or made from photos as they are needed.

    Where the trainer computes on a GPU, features in memory that take at most half of what is free there are moved to
    it once, and batches are made there.

    Args:
        items: N images and M captions.
        image_features: N sets, row by row those of ``items.images``.
        text_features: M sets, row by row those of ``items.captions``.
        batch_size: pairs (or single items) per batch.
        num_workers: processes that build batches (0: the training process itself, which is fastest for small sets);
            features in a file are read by a thread instead.
        seed: of the order of the training pairs, which differs from epoch to epoch.
        relevance: what evaluation takes for a match: the pairs (``instance``), or all items of one label (``class``).
        memory_gb: most memory for features, in 10⁹ bytes, where any of them are read from disk or pooled.
        group_by_length: batches of captions of nearly equal numbers of vectors, so that little of a batch is padding.
            The price: negatives are captions as long as the positive, and batches are less mixed.
        captions_together: captions of one image in a batch, at most; from 2 on they are brought together.

    Raises:
        ConfigError: ``batch_size``, ``num_workers``, ``memory_gb`` or ``captions_together`` out of range, an unknown
            ``relevance``; or batches that have to be composed of features that are read from disk.
        DataError: relevance by class where images have no label.
        FeatureError: features of another count than the items.
    """

    def __init__(
        self,
        items: Items,
        image_features: FeatureSource,
        text_features: FeatureSource,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
        relevance: str = "instance",
        *,
        memory_gb: float = 8.0,
        group_by_length: bool = False,
        captions_together: int = 1,
    ) -> None:
        super().__init__()
        _require_ranges(
            num_workers, relevance, memory_gb, batching_faults(batch_size, group_by_length, captions_together)
        )
        if relevance == "class":
            items.require_labels()
        _require_count("image", "images", len(image_features), len(items.images))
        _require_count("text", "captions", len(text_features), len(items.captions))
        self.items = items
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.relevance = relevance
        self.memory_gb = memory_gb
        self.group_by_length = group_by_length
        self.captions_together = captions_together
        self._sources = {"image": image_features, "text": text_features}  # what batches are made of
        self._pooled: set[str] = set()
        self._readers: dict[str, SetReader] = {}
        self._streams: list[PairStream | SetStream] = []
        self._device: torch.device | None = None  # of the readers, once that has been decided
        self._require_memory()

    def use_pooled(self, image: RaggedFeatures | None, text: RaggedFeatures | None) -> None:
        """Make the batches of a side from sets of one vector that its aggregator has made; None changes nothing.

        They take the place of that side's features, whose memory is free from then on.

        Raises:
            FeatureError: pooled features of another count than the items, or of more than one vector per item.
        """
        for side, pooled in (("image", image), ("text", text)):
            if pooled is not None:
                _require_count(side, "items of that side", len(pooled), len(self._sources[side]))
                if not (pooled.lengths == 1).all():
                    raise FeatureError(f"Pooled {side} features have sets of more or less than one vector.")
                self._sources[side] = pooled
                self._pooled.add(side)
        self._readers.clear()
        self._device = None

    @property
    def image_features(self) -> FeatureSource:
        """What image batches are made of."""
        return self._sources["image"]

    @property
    def text_features(self) -> FeatureSource:
        """What caption batches are made of."""
        return self._sources["text"]

    def room_for_pooled(self, side: str) -> int:
        """Bytes that pooled vectors of ``side`` may take beside what is in memory and what reading needs."""
        shares = self._budget()
        others = {name: source for name, source in self._sources.items() if name != side}
        if not self._has_files():
            return shares.memory - shares.resident
        if not any(isinstance(source, FeatureFile) for source in others.values()):
            return shares.left
        largest = {name: largest_set(source) for name, source in others.items()}
        needed = least_buffer(largest.get("image", 0), sum(largest.values()) + PAIR_BYTES)
        return (shares.memory - shares.enough_for(needed)) * 4 // 5  # the share for reading may grow by a fifth

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

    def train_dataloader(self) -> DataLoader[PairBatch] | PairStream:
        """Shuffled PairBatch: each training caption once per epoch, with its image; smaller batches are kept.

        Raises:
            DataError: no image belongs to the training split.
            ConfigError: features are read from disk and ``memory_gb`` leaves too little room for that.
        """
        self.items.require("train")
        captions = self.caption_rows("train")
        images = self.items.caption_images[captions]
        if self._from_disk():
            return self._pair_stream(images, captions)
        pairs = Pairs(self._reader("image", training=True), self._reader("text", training=True), images, captions)
        if self.group_by_length:
            drawn = partial(batches_by_length, self.text_features.lengths[captions], self.batch_size)
        elif self.captions_together > 1:
            drawn = partial(batches_by_image, images, self.batch_size, self.captions_together)
        else:
            return self._loader(pairs, EpochShuffle(len(pairs), self.seed, self._epoch()))
        return self._loader_of(pairs, EpochBatches(drawn, self.seed, self._epoch()), batch_size=None)

    def val_dataloader(self) -> Galleries:
        """Two loaders of FeatureBatch: the images of the split once each, then its captions; none without the split."""
        return self._gallery_loaders("val")

    def test_dataloader(self) -> Galleries:
        """As ``val_dataloader``, for the test split."""
        return self._gallery_loaders("test")

    def _gallery_loaders(self, role: str) -> Galleries:
        if not self.items.has_split(role):
            return []
        images, captions = self.image_rows(role), self.caption_rows(role)
        owners = self.items.caption_images[captions]
        return [self._gallery("image", images, images), self._gallery("text", captions, owners)]

    def _gallery(self, side: str, rows: np.ndarray, image_ids: np.ndarray) -> "DataLoader[FeatureBatch] | SetStream":
        source = self._sources[side]
        if isinstance(source, FeatureFile) and self._from_disk():
            stream = SetStream(source, rows, image_ids, self.batch_size, self._budget().block)
            self._streams.append(stream)
            return stream
        singles = Singles(self._reader(side), rows, image_ids)
        return self._loader(singles, _whole(singles))

    def _from_disk(self) -> bool:
        """Whether batches are streamed: a side is read from a file, and none is made from photos, which has workers."""
        live = [not isinstance(source, FeatureFile | RaggedFeatures) for source in self._sources.values()]
        return self._has_files() and not any(live)

    def _require_memory(self) -> None:
        """Raise ConfigError where batches are to be composed, but are made as features come from disk."""
        chosen = [f"data.captions_together={self.captions_together}"] if self.captions_together > 1 else []
        chosen += ["data.group_by_length=true"] if self.group_by_length else []
        if not chosen or not self._from_disk():
            return
        needed = sum(s.nbytes if isinstance(s, FeatureFile) else resident(s) for s in self._sources.values())
        raise ConfigError(
            f"{chosen[0]} needs all features in memory, of which features.memory_gb={self.memory_gb:g} leaves some on "
            f"disk. Set features.memory_gb to at least {in_gb(needed)}, or leave {chosen[0].partition('=')[0]} out."
        )

    def _has_files(self) -> bool:
        return any(isinstance(source, FeatureFile) for source in self._sources.values())

    def _pair_stream(self, images: np.ndarray, captions: np.ndarray) -> PairStream:
        if self.num_workers:
            log.info("data.num_workers=%d is not used: a thread reads the features from disk.", self.num_workers)
        image, text = (
            source if isinstance(source, FeatureFile) else self._reader(side) for side, source in self._sources.items()
        )
        stream = PairStream(
            image, text, images, captions, self.batch_size, self._budget(), seed=self.seed, epoch=self._epoch()
        )
        self._streams.append(stream)
        return stream

    def _budget(self) -> Budget:
        batched = list(self._sources.values())
        return budget(self.memory_gb, self.batch_size, batched, batched)

    def _reader(self, side: str, training: bool = False) -> SetReader | SourceReader:
        source = self._sources[side]
        if not isinstance(source, RaggedFeatures):
            return SourceReader(source.for_training() if training and hasattr(source, "for_training") else source)
        if self._device is None:
            self._device = self._reading_device()
        if side not in self._readers:
            self._readers[side] = SetReader(source, self._device, side in self._pooled)
        return self._readers[side]

    def _reading_device(self) -> torch.device:
        """The trainer's GPU where the features of both sides take at most half of its free memory, else the CPU."""
        if self.trainer is not None and self.num_workers == 0:
            device = self.trainer.strategy.root_device
            resident = [source.nbytes for source in self._sources.values() if isinstance(source, RaggedFeatures)]
            if device.type == "cuda" and len(resident) == 2:
                free = torch.cuda.mem_get_info(device)[0]
                if sum(resident) <= free / 2:
                    return device
        return torch.device("cpu")

    def transfer_batch_to_device(
        self, batch: PairBatch | FeatureBatch, device: torch.device, dataloader_idx: int
    ) -> PairBatch | FeatureBatch:
        """The batch on the trainer's device; copied while that computes, where the batch is in pinned memory."""
        if isinstance(batch, FeatureBatch):
            return batch.to(device, non_blocking=True)
        return PairBatch(*(side.to(device, non_blocking=True) for side in batch))

    def teardown(self, stage: str) -> None:
        """End the threads of passes that were left early."""
        for stream in self._streams:
            stream.close()
        self._streams.clear()

    def _loader(self, dataset: "Pairs | Singles", sampler: Sampler[int]) -> DataLoader:
        return self._loader_of(dataset, sampler, self.batch_size)

    def _loader_of(
        self, dataset: "Pairs | Singles", sampler: Sampler[int] | Sampler[list[int]], batch_size: int | None
    ) -> DataLoader:
        """A loader of batches that it puts together itself, or (``batch_size=None``) that the sampler names."""
        return DataLoader(
            dataset,
            batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available() and (self._device is None or self._device.type == "cpu"),
            persistent_workers=self.num_workers > 0,
            # workers are seeded once in a run, and once more where it is resumed: not from what masks are drawn from
            generator=torch.Generator().manual_seed(self.seed) if self.num_workers else None,
        )

    def _epoch(self) -> int:
        """The epoch that comes next: right after resuming, ``current_epoch`` is still the one that was saved."""
        if self.trainer is None:
            return 0
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        return progress.processed


class Pairs(Dataset[PairBatch]):
    """P matching pairs: image row and caption row of each."""

    def __init__(self, image_sets: Reader, text_sets: Reader, images: np.ndarray, captions: np.ndarray) -> None:
        self.image_sets = image_sets
        self.text_sets = text_sets
        self.images = torch.from_numpy(images)
        self.captions = torch.from_numpy(captions)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, row: int | list[int]) -> PairBatch:
        """One pair, or those of a batch."""
        return self.__getitems__([row] if isinstance(row, int) else row)

    def __getitems__(self, rows: list[int]) -> PairBatch:
        """All pairs of a batch at once (the DataLoader prefers this method)."""
        chosen = torch.tensor(rows)
        images = self.images[chosen]
        return PairBatch(self.image_sets.batch(images, images), self.text_sets.batch(self.captions[chosen], images))


class Singles(Dataset[FeatureBatch]):
    """Items of one side, with the image row that each belongs to."""

    def __init__(self, sets: Reader, rows: np.ndarray, image_ids: np.ndarray) -> None:
        self.sets = sets
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


def _require_ranges(num_workers: int, relevance: str, memory_gb: float, faults: list[str]) -> None:
    if num_workers < 0:
        faults.append(f"data.num_workers must be 0 or more, found {num_workers}.")
    if relevance not in RELEVANCES:
        faults.append(f"data.relevance must be {' or '.join(RELEVANCES)}, found {relevance!r}.")
    if not (math.isfinite(memory_gb) and memory_gb > 0):
        faults.append(f"features.memory_gb must be a number above 0, found {memory_gb}.")
    if faults:
        raise ConfigError(faults)


def _require_count(modality: str, what: str, found: int, expected: int) -> None:
    if found != expected:
        raise FeatureError(
            f"There are {found} sets of {modality} features for {expected} {what}. "
            "Extract the features of this very data set."
        )
