"""A trained model's embeddings of its own data set, in the splits that an evaluation needs."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from jaxtyping import Float, Int
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from xmodal.config.check import source_config
from xmodal.config.evaluation import EvaluationOptions
from xmodal.config.saved import with_overrides
from xmodal.config.values import is_made_of, plain
from xmodal.data.items import Items
from xmodal.encoders.protocol import Encoder
from xmodal.errors import ConfigError, DataError, FeatureError, XmodalError
from xmodal.experiment.embedded import Embedded
from xmodal.experiment.features import Dataset, features_of, load_dataset
from xmodal.experiment.gallery import Gallery, rows_of_bank, split_of
from xmodal.experiment.parts import Parts
from xmodal.experiment.selection import left_out
from xmodal.features.precomputed import PrecomputedFeatures
from xmodal.models import checkpoint
from xmodal.models.build import build_model
from xmodal.models.dual_encoder import CHECKPOINT_KEY, DualEncoder
from xmodal.models.query_encoders import Modality, QueryEncoders
from xmodal.models.tails import attach, tails_of, trainable_layers
from xmodal.types import FeatureBatch, FeatureSource

log = logging.getLogger(__name__)

BEST = "best.ckpt"
_SIDES: tuple[Modality, ...] = ("image", "text")
# settings of the data that do not change which items there are
_PLACE_AND_LOADING = {
    "root",
    "image_folder",
    "batch_size",
    "num_workers",
    "default_weights",
    "relevance",
    "group_by_length",
    "captions_together",
}


def checkpoint_of(place: Path) -> Path:
    """The checkpoint that a run folder, or a file, stands for.

    Raises:
        DataError: there is none; names what is there instead.
    """
    if place.is_dir():
        for file in (place / "checkpoints" / BEST, place / BEST):
            if file.is_file():
                return file
        below = sorted(place.glob(f"*/checkpoints/{BEST}"))[-3:] or sorted(place.glob("checkpoints/*.ckpt"))
        hint = f" Did you mean {' or '.join(str(_run_or_file(file)) for file in below)}?" if below else ""
        raise DataError(f"{place} is no run folder: it has no checkpoints/{BEST}.{hint}")
    if not place.exists():
        raise DataError(
            f"There is no file or folder {place}. Give a run folder (outputs/runs/<data>/<run>), or a checkpoint "
            "(.ckpt)."
        )
    if place.suffix != ".ckpt":
        hint = f" Embeddings are given so: --embeddings {place}" if place.suffix == ".npz" else ""
        raise DataError(f"{place} is neither a run folder nor a checkpoint (.ckpt).{hint}")
    return place


def _run_or_file(file: Path) -> Path:
    return file.parents[1] if file.name == BEST else file


def embed_run(place: Path, options: EvaluationOptions, overrides: Sequence[str], device: torch.device) -> Embedded:
    """What an evaluation of a run needs: its model, its data set with the overrides, and the embeddings of both sides.

    Features come from the store where they are there.

    Raises:
        DataError: no checkpoint, a split that does not exist, or items without labels where classes count.
        ConfigError: faults of the overrides, files that are not where the configuration says, a number of folds that
            does not divide that of the images, or a correction that needs its temperature said.
        FeatureError: features of another width than the model's.
        WeightsError: an encoder other than the one that the model was trained with.
    """
    file = checkpoint_of(place)
    content = checkpoint.read(file)
    saved = content[CHECKPOINT_KEY]["config"]
    cfg = _config(saved, options, overrides, device)
    if fault := options.temperature_fault(cfg.model.similarity):
        raise ConfigError(fault)
    parts = _parts(cfg, _query_encoders(cfg, content[CHECKPOINT_KEY], overrides))
    dataset = load_dataset(cfg, parts)
    split = split_of(dataset.used, options)
    chosen = Gallery.of(dataset.used, split, options.gallery == "all")
    if fault := options.folds_fault(len(chosen.images)):  # before anything is encoded
        raise ConfigError(fault)
    run = _Run.opened(cfg, content["state_dict"], parts, dataset, device)
    name = replace(options, relevance=cfg.data.relevance).name(split, saved["data"].get("relevance", "instance"))
    return Embedded(
        name=name,
        data_name=run.items.name,
        description=f"{file}: {chosen.description(run.items.name, split)}{left_out(dataset.excluded)}, "
        f"{run.model.similarity} similarity",
        similarity=run.model.similarity,
        record=None if _other_items(overrides) else _record(file, name),
        image=run.images(chosen.images),
        text=run.texts(chosen.captions),
        image_ids=chosen.images,
        text_image_ids=run.items.caption_images[chosen.captions],
        names=run.items.image_ids,
        image_queries=chosen.image_queries,
        text_queries=chosen.text_queries,
        ks=tuple(cfg.callbacks.retrieval.get("ks", (1, 5, 10))),
        sizes=run.model.objective.sizes,
        normalize=run.model.objective.normalize,
        **(chosen.labels(run.items) if cfg.data.relevance == "class" else {}),
        **(run.banks(options) if options.rerank else {}),
    )


def _config(
    saved: dict[str, Any], options: EvaluationOptions, overrides: Sequence[str], device: torch.device
) -> DictConfig:
    cfg = with_overrides(saved, overrides)
    OmegaConf.update(cfg, "data.relevance", options.relevance or cfg.data.get("relevance", "instance"))
    if "features.device" not in _keys(overrides):
        cfg.features.device = str(device)
    return cfg


@dataclass(frozen=True)
class _Run:
    """A trained model on a device, and the features of its data set."""

    cfg: DictConfig
    model: DualEncoder
    items: Items
    image_features: FeatureSource
    text_features: FeatureSource
    device: torch.device

    @classmethod
    def opened(
        cls, cfg: DictConfig, state: dict[str, Tensor], parts: Parts, dataset: Dataset, device: torch.device
    ) -> "_Run":
        model = build_model(plain(cfg))
        attach(model, tails_of({"image": parts.image_encoder, "text": parts.text_encoder}))
        model.load_state_dict(state)
        features = _features(cfg, parts, dataset)
        return cls(cfg, model.to(device).eval(), dataset.used, *features, device)

    def images(self, rows: Int[np.ndarray, "n"]) -> Float[Tensor, "n E"]:
        return self._embedded(self.image_features, rows, self.model.embed_images)

    def texts(self, rows: Int[np.ndarray, "n"]) -> Float[Tensor, "n E"]:
        return self._embedded(self.text_features, rows, self.model.embed_texts)

    def banks(self, options: EvaluationOptions) -> dict[str, Any]:
        """Training images and captions, as the bank of a hubness correction."""
        images, captions = rows_of_bank(self.items, options)
        return {"bank_images": self.images(images), "bank_texts": self.texts(captions)}

    @torch.no_grad()
    def _embedded(
        self, features: FeatureSource, rows: Int[np.ndarray, "n"], embed: Callable[[FeatureBatch], Tensor]
    ) -> Float[Tensor, "n E"]:
        """In the batches of training's own evaluation, so that padding and hence figures are the same."""
        size = self.cfg.data.batch_size
        batches = (features.select(rows[start : start + size]) for start in range(0, len(rows), size))
        padded = (batch.pad(np.arange(len(batch)), np.arange(len(batch))) for batch in batches)
        return torch.cat([embed(batch.to(self.device)) for batch in padded]).float()


def _query_encoders(cfg: DictConfig, saved: dict[str, Any], overrides: Sequence[str]) -> QueryEncoders:
    """The encoders that the model was trained with, from the checkpoint: none is trained anew on whatever is there.

    Where weights or vectors are said to lie elsewhere now, they are read from there and compared; but not those that
    the learned vectors of words once started from.
    """
    config = plain(cfg)
    config["query_encoders"] = {side: config[f"{side}_encoder"] for side in _SIDES}
    given = _keys(overrides)
    moved = [side for side in _SIDES for key in ("weights", "vectors") if f"{side}_encoder.{key}" in given]
    if "text" in moved and is_made_of(cfg, "text_encoder", "xmodal.encoders.words."):
        log.info("text_encoder.vectors is not read: the checkpoint has the vectors that were learned from it.")
        moved.remove("text")
    states = {side: state for side, state in saved["states"].items() if side not in moved}
    return QueryEncoders(config, states=states, fingerprints=saved["fingerprints"])


def _keys(overrides: Sequence[str]) -> set[str]:
    return {line.partition("=")[0] for line in overrides}


def _parts(cfg: DictConfig, encoders: QueryEncoders) -> Parts:
    """Source and encoders; raises ConfigError for files that are not where the configuration says."""
    source = constructed(source_config(cfg))
    sides = {side: _encoder(cfg, encoders, side) for side in _SIDES}
    files = [side for side in sides.values() if isinstance(side, PrecomputedFeatures)]
    if faults := [*source.missing(), *(fault for side in files for fault in side.check())]:
        raise ConfigError(faults)
    return Parts(source, sides["image"], sides["text"], {})


def _encoder(cfg: DictConfig, encoders: QueryEncoders, side: Modality) -> Encoder | PrecomputedFeatures:
    if "made_by" in cfg[f"{side}_encoder"]:
        features: PrecomputedFeatures = constructed(plain(cfg[f"{side}_encoder"]))
        return features
    return encoders.encoder(side)


def constructed(config: DictConfig | dict[str, Any]) -> Any:
    """What a ``_target_`` makes; a constructor's own complaint (XmodalError) comes through as it is."""
    try:
        return instantiate(config)
    except InstantiationException as error:
        if isinstance(error.__cause__, XmodalError):
            raise error.__cause__ from error
        raise


def _features(cfg: DictConfig, parts: Parts, dataset: Dataset) -> tuple[FeatureSource, FeatureSource]:
    encoders = {"image": parts.image_encoder, "text": parts.text_encoder}
    found = features_of(cfg, parts, dataset)
    for side, features in found.items():
        expected = cfg.model[f"{side}_tower"].feature_dim
        if trainable_layers(encoders[side]) == 0 and features.feature_dim != expected:  # a tail has taken its weights
            raise FeatureError(
                f"The {side} features are {features.feature_dim} wide, but the model was trained on width {expected}: "
                f"{cfg[f'{side}_encoder'].get('path', 'the encoder')} is not what it was trained with."
            )
    return found["image"], found["text"]


def _other_items(overrides: Sequence[str]) -> bool:
    """Whether other items are evaluated than those of the run, such as the first few of them."""
    keys = [key.split(".") for key in _keys(overrides)]
    return any(key[0] == "data" and key[1] not in _PLACE_AND_LOADING for key in keys)


def _record(file: Path, name: str) -> Path:
    """In the run's folder for its best checkpoint; beside any other, under its name."""
    folder = file.parent.parent
    if file.name == BEST and (folder / "config.yaml").is_file():
        return folder / f"evaluation_{name}.npz"
    return file.with_name(f"{file.stem}.evaluation_{name}.npz")
