"""A trained model at hand: its checkpoint, its encoders, and the features of the items it is to embed."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from xmodal.experiment.features import Dataset, features_of
from xmodal.experiment.gallery import rows_of_bank
from xmodal.experiment.parts import Parts
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


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint and the configuration it goes on with.

    Attributes:
        file: the checkpoint.
        content: of the file, see `xmodal.models.checkpoint.read`.
        cfg: the run's own, with what was typed for it now.
        overrides: that.
        device: where everything is computed.
    """

    file: Path
    content: dict[str, Any]
    cfg: DictConfig
    overrides: tuple[str, ...]
    device: torch.device

    @classmethod
    def read(
        cls, place: Path, overrides: Sequence[str], device: torch.device, relevance: str | None = None
    ) -> "SavedRun":
        """The run of a folder or checkpoint.

        Raises:
            DataError: no checkpoint, or a damaged one.
            ConfigError: faults of the overrides.
        """
        file = checkpoint_of(place)
        content = checkpoint.read(file)
        cfg = with_overrides(content[CHECKPOINT_KEY]["config"], overrides)
        OmegaConf.update(cfg, "data.relevance", relevance or cfg.data.get("relevance", "instance"))
        if "features.device" not in typed_keys(overrides):
            cfg.features.device = str(device)
        return cls(file, content, cfg, tuple(overrides), device)

    @property
    def saved_config(self) -> dict[str, Any]:
        """The resolved configuration of the run, as it was."""
        config: dict[str, Any] = self.content[CHECKPOINT_KEY]["config"]
        return config

    def parts(self) -> Parts:
        """Source and encoders; raises ConfigError for files that are not where the configuration says."""
        return _parts(self.cfg, self.query_encoders())

    def query_encoders(self) -> QueryEncoders:
        """The encoders that the model was trained with, prepared when they are first used."""
        return _query_encoders(self.cfg, self.content[CHECKPOINT_KEY], self.overrides)

    def model(self, parts: Parts) -> DualEncoder:
        """The trained model, on the device, in evaluation mode."""
        model = build_model(plain(self.cfg))
        attach(model, tails_of(parts.encoders))
        model.load_state_dict(self.content["state_dict"])
        return model.to(self.device).eval()

    def opened(self, parts: Parts, dataset: Dataset) -> "OpenedRun":
        """The model and the features of a data set; raises whatever is wrong with these."""
        model = self.model(parts)
        return OpenedRun(self.cfg, model, dataset.used, _features(self.cfg, parts, dataset), self.device)


@dataclass(frozen=True)
class OpenedRun:
    """A trained model on a device, and the features of items."""

    cfg: DictConfig
    model: DualEncoder
    items: Items
    features: dict[str, FeatureSource]
    device: torch.device

    def images(self, rows: Int[np.ndarray, "n"]) -> Float[Tensor, "n E"]:
        return torch.cat(list(self.batches_of_images(rows)))

    def texts(self, rows: Int[np.ndarray, "n"]) -> Float[Tensor, "n E"]:
        return torch.cat(list(self.batches_of_texts(rows)))

    def batches_of_images(self, rows: Int[np.ndarray, "n"]) -> Iterator[Float[Tensor, "b E"]]:
        return self._embedded(self.features["image"], rows, self.model.embed_images)

    def batches_of_texts(self, rows: Int[np.ndarray, "n"]) -> Iterator[Float[Tensor, "b E"]]:
        return self._embedded(self.features["text"], rows, self.model.embed_texts)

    def banks(self, options: EvaluationOptions) -> dict[str, Any]:
        """Training images and captions, as the bank of a hubness correction."""
        images, captions = rows_of_bank(self.items, options)
        return {"bank_images": self.images(images), "bank_texts": self.texts(captions)}

    def _embedded(
        self, features: FeatureSource, rows: Int[np.ndarray, "n"], embed: Callable[[FeatureBatch], Tensor]
    ) -> Iterator[Float[Tensor, "b E"]]:
        """In the batches of training's own evaluation, so that padding and hence figures are the same."""
        size = self.cfg.data.batch_size
        for start in range(0, len(rows), size):
            batch = features.select(rows[start : start + size])
            padded = batch.pad(np.arange(len(batch)), np.arange(len(batch)))
            with torch.no_grad():
                yield embed(padded.to(self.device)).float()


def _query_encoders(cfg: DictConfig, saved: dict[str, Any], overrides: Sequence[str]) -> QueryEncoders:
    """The encoders that the model was trained with, from the checkpoint: none is trained anew on whatever is there.

    Where weights or vectors are said to lie elsewhere now, they are read from there and compared; but not those that
    the learned vectors of words once started from.
    """
    config = plain(cfg)
    made_by = saved["config"].get("query_encoders", {})  # of new items, where features were precomputed
    config["query_encoders"] = {
        side: made_by.get(side) if "made_by" in config[f"{side}_encoder"] else config[f"{side}_encoder"]
        for side in _SIDES
    }
    given = typed_keys(overrides)
    moved = [side for side in _SIDES for key in ("weights", "vectors") if f"{side}_encoder.{key}" in given]
    if "text" in moved and is_made_of(cfg, "text_encoder", "xmodal.encoders.words."):
        log.info("text_encoder.vectors is not read: the checkpoint has the vectors that were learned from it.")
        moved.remove("text")
    states = {side: state for side, state in saved["states"].items() if side not in moved}
    return QueryEncoders(config, states=states, fingerprints=saved["fingerprints"])


def typed_keys(overrides: Sequence[str]) -> set[str]:
    """The keys of ``key=value``."""
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


def _features(cfg: DictConfig, parts: Parts, dataset: Dataset) -> dict[str, FeatureSource]:
    encoders = parts.encoders
    found = features_of(cfg, parts, dataset)
    for side, features in found.items():
        expected = cfg.model[f"{side}_tower"].feature_dim
        if trainable_layers(encoders[side]) == 0 and features.feature_dim != expected:  # a tail has taken its weights
            raise FeatureError(
                f"The {side} features are {features.feature_dim} wide, but the model was trained on width {expected}: "
                f"{cfg[f'{side}_encoder'].get('path', 'the encoder')} is not what it was trained with."
            )
    return found
