"""Two encoders of one space, as they are, on a data set: no model, no loss, no training."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from xmodal.aggregators.mean import MeanAggregator
from xmodal.config.check import source_config
from xmodal.config.command_line import compose
from xmodal.config.evaluation import EvaluationOptions
from xmodal.errors import ConfigError
from xmodal.experiment.embedded import Embedded
from xmodal.experiment.features import Dataset, features_of, load_dataset, prepare
from xmodal.experiment.gallery import Gallery, rows_of_bank, split_of
from xmodal.experiment.opened_run import constructed
from xmodal.experiment.parts import Parts
from xmodal.experiment.selection import left_out
from xmodal.features.precomputed import PrecomputedFeatures
from xmodal.models.tails import trainable_layers
from xmodal.types import FeatureSource

log = logging.getLogger(__name__)

_TOGETHER = 1024  # sets whose mean is taken at once
_TYPE = "Type image_encoder=clip text_encoder=clip, with one model on both sides."


def embed_zero_shot(options: EvaluationOptions, overrides: Sequence[str], device: torch.device) -> Embedded:
    """Both sides of a data set as two encoders give them; a set of several vectors becomes its mean.

    Features come from the store where they are there.

    Args:
        overrides: settings as for train.py, already checked.

    Raises:
        ConfigError: values out of range, files that are not there, encoders with layers to train or of two widths, or
            options that do not go with the data.
        DataError: whatever is wrong with the data set, or a split that it does not have.
        FeatureError, WeightsError: features or weights that can't be had.
    """
    cfg, usual = _config(options, overrides, device)
    parts = _parts(cfg)
    if faults := [*_temperature(cfg, options), *_with_layers_to_train(parts)]:
        raise ConfigError(faults)
    _require_one_width(_known_widths(parts))
    if doubt := _doubt(parts):
        log.warning(doubt)
    dataset = load_dataset(cfg, parts)
    split = split_of(dataset.used, options)
    gallery = Gallery.of(dataset.used, split, options.gallery == "all")
    if fault := options.folds_fault(len(gallery.images)):
        raise ConfigError(fault)
    features = _features(cfg, parts, dataset)
    images, texts = (_means(features[side], rows, device) for side, rows in _rows(gallery).items())
    name = options.name(split, usual)
    items = dataset.used
    return Embedded(
        name=name,
        data_name=items.name,
        description=f"{_names(parts)}, zero-shot: {gallery.description(items.name, split)}"
        f"{left_out(dataset.excluded)}, {cfg.model.similarity} similarity",
        similarity=cfg.model.similarity,
        record=Path.cwd() / f"zero_shot.{items.name}.evaluation_{name}.npz",
        image=images,
        text=texts,
        image_ids=gallery.images,
        text_image_ids=items.caption_images[gallery.captions],
        names=items.image_ids,
        content=items.content(gallery.images, gallery.captions),
        image_queries=gallery.image_queries,
        text_queries=gallery.text_queries,
        ks=tuple(cfg.callbacks.retrieval.get("ks", (1, 5, 10))),
        **(gallery.labels(items) if cfg.data.relevance == "class" else {}),
        **(_banks(features, dataset, options, device) if options.rerank else {}),
    )


def _config(options: EvaluationOptions, overrides: Sequence[str], device: torch.device) -> tuple[DictConfig, str]:
    """The configuration with what the options ask for, and the relevance that it has without them."""
    cfg = compose(list(overrides))
    OmegaConf.set_readonly(cfg, False)
    usual = cfg.data.relevance
    cfg.data.relevance = options.relevance or usual
    if not any(line.startswith("features.device=") for line in overrides):
        cfg.features.device = str(device)
    return cfg, usual


def _parts(cfg: DictConfig) -> Parts:
    """Source and encoders; nothing that only training needs is constructed.

    Raises:
        ConfigError: all values out of range, all files that are missing, in one message.
    """
    made: dict[str, Any] = {}
    faults: list[str] = []
    configs = {"source": source_config(cfg), "image": cfg.image_encoder, "text": cfg.text_encoder}
    for name, config in configs.items():
        try:
            made[name] = constructed(config)
        except ConfigError as error:
            faults += error.faults
    for name, part in made.items():
        faults += part.missing() if name == "source" else part.check()
    if faults:
        raise ConfigError(faults)
    return Parts(made["source"], made["image"], made["text"], {})


def _temperature(cfg: DictConfig, options: EvaluationOptions) -> list[str]:
    fault = options.temperature_fault(cfg.model.similarity)
    return [fault] if fault else []


def _with_layers_to_train(parts: Parts) -> list[str]:
    """An encoder that is cut gives what its missing layers would take."""
    return [
        f"{side}_encoder.trainable_layers={layers}: --zero-shot trains nothing and takes encoders as they are. Leave "
        "it out, or choose an encoder that does without."
        for side, encoder in parts.encoders.items()
        if (layers := trainable_layers(encoder)) != 0
    ]


def _rows(gallery: Gallery) -> dict[str, np.ndarray]:
    return {"image": gallery.images, "text": gallery.captions}


def _names(parts: Parts) -> str:
    """``image_encoder=clip, text_encoder=clip``."""
    return ", ".join(f"{side}_encoder={_option(encoder)}" for side, encoder in parts.encoders.items())


def _option(encoder: Any) -> str:
    return type(encoder).__module__.rpartition(".")[2]


def _features(cfg: DictConfig, parts: Parts, dataset: Dataset) -> dict[str, FeatureSource]:
    """Features of both sides; that they are of one width is made sure of as soon as both widths are known."""
    encoders = parts.encoders
    given = [side for side, encoder in encoders.items() if isinstance(encoder, PrecomputedFeatures)]
    features = features_of(cfg, parts, dataset, given)
    widths = _known_widths(parts) | {side: source.feature_dim for side, source in features.items()}
    made = {side: encoder for side, encoder in encoders.items() if not isinstance(encoder, PrecomputedFeatures)}
    for side in sorted(made, key=lambda side: side in widths):  # one that tells its width anyway may have to learn long
        _require_one_width(widths)
        prepare(cfg, made[side], dataset, side)
        widths[side] = made[side].feature_dim
    _require_one_width(widths)
    return features | features_of(cfg, parts, dataset, list(made))


def _known_widths(parts: Parts) -> dict[str, int]:
    """Of the encoders that know theirs without weights."""
    found: dict[str, int] = {}
    for side, encoder in parts.encoders.items():
        if not isinstance(encoder, PrecomputedFeatures):
            with suppress(RuntimeError):  # "call prepare() first"
                found[side] = encoder.feature_dim
    return found


def _require_one_width(widths: Mapping[str, int]) -> None:
    """Two encoders of one space have one width, as far as it is known yet.

    Raises:
        ConfigError: two widths.
    """
    if len(set(widths.values())) > 1:
        raise ConfigError(
            f"--zero-shot compares photos with captions as the encoders give them, but image_encoder makes vectors "
            f"{widths['image']} wide and text_encoder vectors {widths['text']} wide. {_TYPE}"
        )


def _doubt(parts: Parts) -> str | None:
    """Why figures may mean nothing although the widths agree: only the two towers of one model share a space for sure.

    Such towers are two classes of one module with the same weights.
    """
    encoders = parts.encoders
    both = " and ".join(_described(side, encoder) for side, encoder in encoders.items())
    random = [f"{side}_encoder" for side, encoder in encoders.items() if getattr(encoder, "weights", "") is None]
    if random:
        found = ", ".join(f"{name}.weights=null" for name in random)
        wanted = " ".join(f"{name}.weights=pretrained" for name in random)
        return f"{found}: random weights, so figures are no better than chance. Type {wanted}."
    if any(isinstance(encoder, PrecomputedFeatures) for encoder in encoders.values()):
        return f"Figures mean something only where {both} share a space, which files of features do not tell."
    modules = {type(encoder).__module__ for encoder in encoders.values()}
    weights = {_weights(encoder) for encoder in encoders.values()}
    if len(modules) == len(weights) == 1 and weights != {None}:
        return None
    return f"{both} do not share a space, as far as their settings tell: expect figures no better than chance. {_TYPE}"


def _weights(encoder: Any) -> str | None:
    """The model or file whose weights are used; None for an encoder without such a setting."""
    weights = getattr(encoder, "weights", None)
    return getattr(encoder, "model", weights) if weights == "pretrained" else weights


def _described(side: str, encoder: Any) -> str:
    """``image_encoder=clip (openai/clip-vit-base-patch32)``."""
    weights = _weights(encoder)
    return f"{side}_encoder={_option(encoder)}" + (f" ({weights})" if weights else "")


def _banks(
    features: Mapping[str, FeatureSource], dataset: Dataset, options: EvaluationOptions, device: torch.device
) -> dict[str, Any]:
    images, captions = rows_of_bank(dataset.used, options)
    return {
        "bank_images": _means(features["image"], images, device),
        "bank_texts": _means(features["text"], captions, device),
    }


def _means(features: FeatureSource, rows: Int[np.ndarray, "n"], device: torch.device) -> Float[Tensor, "n D"]:
    """One vector per set; that of a set of one is itself, that of an empty set the zero vector."""
    mean = MeanAggregator(features.feature_dim)
    found = []
    for start in range(0, len(rows), _TOGETHER):
        chosen = features.select(rows[start : start + _TOGETHER])
        batch = chosen.pad(np.arange(len(chosen)), np.arange(len(chosen)))
        found.append(mean(batch.x, batch.mask))
    return torch.cat(found).to(device)
