"""Items and their features, ready for training: read, checked, encoded once, taken from the store ever after."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from xmodal.data.images import check_images
from xmodal.data.items import ROLES, Items
from xmodal.encoders.protocol import Encoder
from xmodal.errors import ConfigError, DataError
from xmodal.experiment.parts import Parts
from xmodal.features.extract import encode_all, extract
from xmodal.features.precomputed import PrecomputedFeatures
from xmodal.features.store import FeatureStore
from xmodal.types import RaggedFeatures

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """A data set with its roles assigned: all of it, and the part that this run uses (``data.limit``)."""

    full: Items
    used: Items


def load_dataset(cfg: DictConfig, parts: Parts, modalities: Sequence[str] = ("image", "text")) -> Dataset:
    """Read the data set and give its splits their roles.

    Args:
        modalities: the sides whose features will be needed.

    Raises:
        DataError: everything wrong with its files, in one message; a split without images or captions; images without
            a label where relevance is by class.
        ConfigError: a hold-out that the data set does not allow, or encoders that need photos or words it lacks.
    """
    full = parts.source.load().with_splits(OmegaConf.to_container(cfg.data.splits))
    full = full.with_holdout(cfg.data.holdout)
    full.require("train", "val")
    used = full if cfg.data.limit is None else full.limited(cfg.data.limit)
    _check_needs(parts, full, modalities)
    _check_captions(used)
    if cfg.data.get("relevance") == "class":  # the config of an older run has no such key
        used.require_labels()
    return Dataset(full, used)


def image_features(cfg: DictConfig, parts: Parts, dataset: Dataset) -> RaggedFeatures:
    """Features of every image of ``dataset.used``, row by row."""
    if isinstance(parts.image_encoder, PrecomputedFeatures):
        return parts.image_encoder.load(dataset.used, dataset.full)
    paths = [_photo(image.path) for image in dataset.used.images]
    digests = check_images(paths, Path(cfg.paths.cache_dir) / "images.jsonl")
    _prepare(parts.image_encoder, [], cfg)
    ids = [image.image_id for image in dataset.used.images]
    fingerprint = dataset.used.image_fingerprint(digests)
    return _features(cfg, parts.image_encoder, "image", paths, ids, fingerprint)


def text_features(cfg: DictConfig, parts: Parts, dataset: Dataset) -> RaggedFeatures:
    """Features of every caption of ``dataset.used``, row by row."""
    if isinstance(parts.text_encoder, PrecomputedFeatures):
        return parts.text_encoder.load(dataset.used, dataset.full)
    captions = dataset.used.captions
    training = [captions[row].text for row in dataset.used.caption_rows("train")]
    _prepare(parts.text_encoder, training, cfg)
    texts = [caption.text for caption in captions]
    ids = [caption.caption_id for caption in captions]
    return _features(cfg, parts.text_encoder, "text", texts, ids, dataset.used.caption_fingerprint())


def _prepare(encoder: Encoder, captions: Sequence[str], cfg: DictConfig) -> None:
    encoder.prepare(captions, Path(cfg.paths.cache_dir))
    encoder.to(_device(cfg.features.device))


def _features(
    cfg: DictConfig, encoder: Encoder, modality: str, inputs: Sequence[Any], ids: Sequence[Any], fingerprint: str
) -> RaggedFeatures:
    if not cfg.features.store:
        return encode_all(encoder, inputs)
    store = FeatureStore(Path(cfg.paths.features_dir))
    path = extract(
        encoder,
        inputs,
        ids,
        store=store,
        data_name=cfg.data.name,
        encoder_name=f"{modality}-{type(encoder).__module__.rpartition('.')[2]}",
        data_fingerprint=fingerprint,
        dtype=cfg.features.dtype,
        chunk_size=cfg.features.chunk_size,
        num_workers=cfg.data.num_workers,
        description=f"{modality} features of {cfg.data.name}",
    )
    return store.read(path)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _photo(path: Path | None) -> Path:
    if path is None:
        raise DataError("An image of the data set names no photo file, so the image encoder has nothing to encode.")
    return path


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
