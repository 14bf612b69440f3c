"""Items and their features, ready for training: read, checked, encoded once, taken from the store ever after."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from xmodal.data.full_disk import told_where_full
from xmodal.data.items import ROLES, Items
from xmodal.encoders.protocol import Encoder, WordTable
from xmodal.errors import ConfigError, DataError
from xmodal.experiment.parts import Parts
from xmodal.experiment.selection import Excluded, select_items
from xmodal.features.extract import encode_all, extract
from xmodal.features.live import Augmentation, LiveImages
from xmodal.features.precomputed import PrecomputedFeatures
from xmodal.features.residence import open_features
from xmodal.features.shards import local_device
from xmodal.features.store import FeatureStore
from xmodal.features.word_codes import extract_words
from xmodal.models.tails import trainable_layers
from xmodal.types import FeatureSource, RaggedFeatures

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """A data set with its roles assigned: all of it, and the part that this run uses.

    ``digests`` are those of the photos, where photos are read; ``excluded`` says who was left out and why.
    """

    full: Items
    used: Items
    digests: dict[Path, str] = field(default_factory=dict)
    excluded: tuple[Excluded, ...] = ()


def load_dataset(cfg: DictConfig, parts: Parts, modalities: Sequence[str] = ("image", "text")) -> Dataset:
    """Read the data set, give its splits their roles, and look at every photo that an encoder is to read.

    Args:
        modalities: the sides whose features will be needed.

    Raises:
        DataError: everything wrong with its files, in one message; damaged photos (``data.on_error``); a split without
            images or captions; images without a label where relevance is by class.
        ConfigError: a hold-out that the data set does not allow, an unknown id in ``data.exclude``, or encoders that
            need photos or words it lacks.
    """
    full = parts.source.load().with_splits(OmegaConf.to_container(cfg.data.splits))
    full = full.with_holdout(cfg.data.holdout)
    full.require("train", "val")
    limited = full if cfg.data.limit is None else full.limited(cfg.data.limit)
    _check_needs(parts, full, modalities)
    selection = select_items(cfg, full, limited, _reads_photos(cfg, parts, full, modalities))
    used = selection.items
    _check_captions(used)
    if cfg.data.get("relevance") == "class":  # the config of an older run has no such key
        used.require_labels()
    return Dataset(full, used, selection.digests, selection.excluded)


def features_of(
    cfg: DictConfig, parts: Parts, dataset: Dataset, modalities: Sequence[str] = ("image", "text")
) -> dict[str, FeatureSource]:
    """Features of the images, the captions or both of ``dataset.used``, row by row.

    What a frozen network makes comes from the feature store, where it is put first if it is not there. They are held
    in memory while together they fit into ``features.memory_gb``. Of an encoder with ``trainable_layers``, these are
    the sets at its cut; photos for one that is trained from pixels are decoded whenever they are needed.

    Raises:
        XmodalError: whatever is wrong with photos, weights, or stored and given features.
    """
    made = made_features(cfg, parts, dataset, modalities)
    given = {modality: part for modality, part in made.items() if not isinstance(part, Path)}
    stored = {modality: part for modality, part in made.items() if isinstance(part, Path)}
    opened = open_features(stored, cfg.features.memory_gb, cfg.data.batch_size, given) if stored else {}
    return given | opened


def made_features(
    cfg: DictConfig, parts: Parts, dataset: Dataset, modalities: Sequence[str] = ("image", "text")
) -> dict[str, FeatureSource | Path]:
    """The same, before anything that is stored is read: its file."""
    works = {modality: _work(cfg, parts, dataset, modality) for modality in modalities}  # all weights before long work
    return {modality: _made(cfg, work) for modality, work in works.items()}


@dataclass(frozen=True)
class _Work:
    """Items and what makes their features."""

    modality: str
    encoder: Encoder
    inputs: Sequence[Any]
    ids: Sequence[Any]
    fingerprint: str
    keys: Sequence[str] | None  # equal for photos of equal content; captions speak for themselves


def _work(cfg: DictConfig, parts: Parts, dataset: Dataset, modality: str) -> _Work | RaggedFeatures:
    """The features themselves where they were precomputed; else what is to be encoded, by an encoder that is ready."""
    encoder = parts.encoders[modality]
    if isinstance(encoder, PrecomputedFeatures):
        return encoder.load(dataset.used, dataset.full)
    work = _photos(encoder, dataset) if modality == "image" else _captions(encoder, dataset)
    prepare(cfg, encoder, dataset, modality)
    return work


def prepare(cfg: DictConfig, encoder: Encoder, dataset: Dataset, modality: str) -> None:
    """Load or make what the encoder needs; vocabularies and vectors are learned from the training captions alone."""
    captions = dataset.used.captions
    training = [captions[row].text for row in dataset.used.caption_rows("train")] if modality == "text" else []
    cache = Path(cfg.paths.cache_dir)
    with told_where_full(cache, "paths.cache_dir"):
        encoder.prepare(training, cache)


def _photos(encoder: Encoder, dataset: Dataset) -> _Work:
    paths = [image.path for image in dataset.used.images if image.path is not None]  # load_dataset saw them all
    ids = [image.image_id for image in dataset.used.images]
    keys = [dataset.digests[path] for path in paths]
    return _Work("image", encoder, paths, ids, dataset.used.image_fingerprint(dataset.digests), keys)


def _captions(encoder: Encoder, dataset: Dataset) -> _Work:
    texts = [caption.text for caption in dataset.used.captions]
    ids = [caption.caption_id for caption in dataset.used.captions]
    return _Work("text", encoder, texts, ids, dataset.used.caption_fingerprint(), None)


def _made(cfg: DictConfig, work: _Work | RaggedFeatures) -> FeatureSource | Path:
    """Features in memory, or the file of the store that holds them."""
    if isinstance(work, RaggedFeatures):
        return work
    if trainable_layers(work.encoder) == "all" and not isinstance(work.encoder, WordTable):
        return _live(cfg, work)  # nothing is frozen, hence there is nothing to keep
    work.encoder.to(encoding_device(cfg))
    try:
        return _stored(cfg, work) if cfg.features.store else _in_memory(cfg, work)
    finally:
        work.encoder.to("cpu")  # training has the accelerator to itself


def _live(cfg: DictConfig, work: _Work) -> FeatureSource:
    if work.modality == "text":
        return _in_memory(cfg, work)
    augment = Augmentation(cfg.augmentation.min_scale, cfg.augmentation.flip)
    return LiveImages(work.inputs, work.encoder.preprocess, work.encoder.feature_dim, augment)


def _in_memory(cfg: DictConfig, work: _Work) -> RaggedFeatures:
    return encode_all(
        work.encoder,
        work.inputs,
        cfg.features.num_workers,
        cfg.features.precision,
        work.keys,
        device=encoding_device(cfg),
        description=_description(cfg, work),
    )


def _description(cfg: DictConfig, work: _Work) -> str:
    return f"{work.modality} features of {cfg.data.name}"


def _stored(cfg: DictConfig, work: _Work) -> Path:
    place: dict[str, Any] = {
        "store": FeatureStore(Path(cfg.paths.features_dir)),
        "data_name": cfg.data.name,
        "encoder_name": f"{work.modality}-{type(work.encoder).__module__.rpartition('.')[2]}",
        "data_fingerprint": work.fingerprint,
        "dtype": cfg.features.dtype,
    }
    if isinstance(work.encoder, WordTable):
        return extract_words(work.encoder, work.inputs, work.ids, **place)
    return extract(
        work.encoder,
        work.inputs,
        work.ids,
        **place,
        chunk_size=cfg.features[f"{work.modality}_chunk_size"],
        num_workers=cfg.features.num_workers,
        precision=cfg.features.precision,
        device=encoding_device(cfg),
        description=_description(cfg, work),
        keys=work.keys,
    )


def encoding_device(cfg: DictConfig) -> torch.device:
    """Where encoders run: ``features.device``; of several GPUs the one of this process."""
    return local_device(cfg.features.device)


def _reads_photos(cfg: DictConfig, parts: Parts, items: Items, modalities: Sequence[str]) -> bool:
    """Whether photos are looked at: where they are to be encoded, and where damaged ones take their captions along."""
    if isinstance(parts.image_encoder, PrecomputedFeatures) or not items.has_photos:
        return False
    return "image" in modalities or cfg.data.get("on_error") == "skip"


def _check_needs(parts: Parts, items: Items, modalities: Sequence[str]) -> None:
    faults = []
    if "image" in modalities and not items.has_photos and not isinstance(parts.image_encoder, PrecomputedFeatures):
        faults.append(
            f"Data set {items.name} has no photos to encode. Put them in place, or give their features: "
            "image_encoder=precomputed image_encoder.path=<file>."
        )
    if "text" in modalities and not items.has_texts and not isinstance(parts.text_encoder, PrecomputedFeatures):
        faults.append(
            f"Data set {items.name} has no caption texts to encode; give their features: "
            "text_encoder=precomputed text_encoder.path=<file>."
        )
    if faults:
        raise ConfigError(faults)


def _check_captions(items: Items) -> None:
    bare = [role for role in ROLES if items.has_split(role) and len(items.caption_rows(role)) == 0]
    if bare:
        raise DataError(
            f"The images of {items.name} for {' and '.join(bare)} have no captions at all, so there is nothing to "
            f"learn from or to compare with. Name other splits, for example data.splits.{bare[0]}=[…]."
        )
