"""The model of a run, fitted to its features: widths, trainable layers, statistics, and what is pooled beforehand."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig
from torch import nn

from xmodal.encoders.trainable import learns_with_heads
from xmodal.experiment.features import encoding_device
from xmodal.experiment.parts import Parts, checked_model
from xmodal.features.datamodule import PairDataModule
from xmodal.features.live import Augmentation
from xmodal.models.build import with_feature_widths
from xmodal.models.dual_encoder import DualEncoder
from xmodal.models.pooled import pool_once
from xmodal.models.tails import attach, fit_statistics, tails_of, trainable_layers
from xmodal.types import FeatureSource

log = logging.getLogger(__name__)


def fitted_model(cfg: DictConfig, parts: Parts, datamodule: PairDataModule) -> tuple[DictConfig, DualEncoder]:
    """The model and the configuration with the widths filled in, which only the features can tell.

    Encoders with ``trainable_layers`` give their tails to the model. Where ``features.pool_once`` is set, aggregators
    without parameters are applied now, and the data module gives out the pooled vectors.

    Raises:
        ConfigError: the parts of the model do not fit the widths of the features.
    """
    cfg, model = _with_tails(cfg, parts, datamodule)
    if cfg.get("relevance") == "label":
        model.objective.use_labels(datamodule.items.labels)
    _fit_statistics(cfg, model, datamodule)
    if cfg.features.pool_once:
        _pool_once(model, datamodule)
    return cfg, model


def _with_tails(cfg: DictConfig, parts: Parts, datamodule: PairDataModule) -> tuple[DictConfig, DualEncoder]:
    """The model with the trainable layers of its encoders, and the configuration with the widths filled in."""
    tails: dict[str, Any] = tails_of(parts.encoders)
    sources = {"image": datamodule.image_features, "text": datamodule.text_features}
    widths = {side: tails[side].output_dim if side in tails else found.feature_dim for side, found in sources.items()}
    cfg = with_feature_widths(cfg, widths["image"], widths["text"])
    model = checked_model(cfg)
    attach(model, tails)
    for side, tail in tails.items():
        _log_tail(cfg, side, tail, sources[side])
    _log_settings_without_effect(cfg, parts, tails)
    return cfg, model


def _log_tail(cfg: DictConfig, side: str, tail: nn.Module, features: FeatureSource) -> None:
    """What learns, and at what price."""
    count, moments = sum(parameter.numel() for parameter in tail.parameters()), ""
    if cfg.optimizer.tail_lr_factor or learns_with_heads(tail):
        moments = ", and as much again for gradients and for each moment of the optimizer"
    log.info(
        "%s encoder: %s, %s parameters (%.1f MB%s)%s. Each %s is read as %.0f × %d numbers.",
        side,
        _learning(cfg, side, tail),
        f"{count:,}",
        sum(parameter.nbytes for parameter in tail.parameters()) / 1e6,
        moments,
        _rate(cfg, tail),
        {"image": "photo", "text": "caption"}[side],
        features.lengths.mean(),
        features.feature_dim,
    )


def _learning(cfg: DictConfig, side: str, tail: nn.Module) -> str:
    layers = cfg[f"{side}_encoder"].trainable_layers
    which = "all of it" if layers == "all" else "the last layer" if layers == 1 else f"the last {layers} layers"
    will = cfg.optimizer.tail_lr_factor or learns_with_heads(tail)
    return f"{which} will be trained" if will else f"{which} could be trained"


def _rate(cfg: DictConfig, tail: nn.Module) -> str:
    if learns_with_heads(tail):
        return " at optimizer.lr"
    if not cfg.optimizer.tail_lr_factor:
        return ", whose weights stay as they are: optimizer.tail_lr_factor=0"
    start = f", from epoch {cfg.unfreeze_epoch} on" if cfg.unfreeze_epoch else ""
    return f" at {cfg.optimizer.tail_lr_factor:g} of optimizer.lr{start}"


def _log_settings_without_effect(cfg: DictConfig, parts: Parts, tails: Mapping[str, nn.Module]) -> None:
    """Settings of what is not trained, where they are not the usual ones: once each kind."""
    if all(learns_with_heads(tail) for tail in tails.values()):
        default = inspect.signature(DualEncoder).parameters["tail_lr_factor"].default
        idle = [f"unfreeze_epoch={cfg.unfreeze_epoch}"] if cfg.unfreeze_epoch else []
        idle += [f"optimizer.tail_lr_factor={cfg.optimizer.tail_lr_factor}"] * (cfg.optimizer.tail_lr_factor != default)
        _log_idle(
            idle,
            "both encoders stay frozen. To train the last N layers of one: image_encoder.trainable_layers=N or "
            "text_encoder.trainable_layers=N."
            if not tails
            else f"the {' and '.join(tails)} encoder learns at optimizer.lr from the first epoch on, and no layers of "
            "another one are trained.",
        )
    if trainable_layers(parts.image_encoder) != "all":
        usual = asdict(Augmentation())
        _log_idle(
            [
                f"augmentation.{name}={cfg.augmentation[name]}"
                for name in usual
                if cfg.augmentation[name] != usual[name]
            ],
            "photos are augmented only for an image encoder that is trained from pixels: "
            "image_encoder.trainable_layers=all.",
        )


def _log_idle(settings: Sequence[str], reason: str) -> None:
    if settings:
        log.info("%s %s nothing: %s", " and ".join(settings), "change" if len(settings) > 1 else "changes", reason)


def _fit_statistics(cfg: DictConfig, model: DualEncoder, datamodule: PairDataModule) -> None:
    """Set the standardisation of both towers from the training split: each image once, each caption once."""
    common = {"seed": cfg.seed, "batch_size": cfg.data.batch_size, "device": encoding_device(cfg)}
    fit_statistics(model.image_tower, datamodule.image_features, datamodule.image_rows("train"), **common)
    fit_statistics(model.text_tower, datamodule.text_features, datamodule.caption_rows("train"), **common)


def _pool_once(model: DualEncoder, datamodule: PairDataModule) -> None:
    """Apply aggregators that have nothing to learn now, instead of in each epoch."""
    for side, tower in (("image", model.image_tower), ("text", model.text_tower)):
        source, room = getattr(datamodule, f"{side}_features"), datamodule.room_for_pooled(side)
        pooled = pool_once(tower, source, datamodule.batch_size, room)
        if pooled is not None:
            log.info("%s_aggregator has nothing to learn: batches hold what it made (features.pool_once).", side)
            datamodule.use_pooled(pooled if side == "image" else None, pooled if side == "text" else None)
