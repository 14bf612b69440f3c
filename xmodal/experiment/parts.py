"""The parts a configuration names, constructed and checked together before any long work."""

import logging
import re
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from xmodal.aggregators.mean import MeanAggregator
from xmodal.config.check import source_config
from xmodal.config.command_line import compose_choice
from xmodal.config.sources import absolute
from xmodal.config.values import parts as nodes_with_targets
from xmodal.config.values import plain, value_of
from xmodal.encoders.protocol import Encoder
from xmodal.encoders.word_vectors import stated_width
from xmodal.errors import ConfigError
from xmodal.experiment.callbacks import makers_of_callbacks
from xmodal.features.orders import batching_faults
from xmodal.features.precision import used_precision
from xmodal.features.precomputed import PrecomputedFeatures
from xmodal.features.shards import local_device
from xmodal.models.build import build_model, optimizer_of, schedule_of, with_feature_widths
from xmodal.models.dual_encoder import DualEncoder
from xmodal.models.projection import Projection
from xmodal.models.tails import trainable_layers

log = logging.getLogger(__name__)

_REFUSALS = (ValueError, TypeError, MisconfigurationException)  # of torch and Lightning
_ANY_WIDTH = 8  # parts are constructed once on a small width to find values out of range before features exist


@dataclass(frozen=True)
class Parts:
    """What has no need of features to exist: the data source, what makes or reads features, encoders of new items.

    ``makers`` holds, by modality, the encoders that made precomputed features, where ``made_by`` names them. An encoder
    is None where items of its side are not asked for.
    """

    source: Any
    image_encoder: Encoder | PrecomputedFeatures | None
    text_encoder: Encoder | PrecomputedFeatures | None
    makers: dict[str, Encoder]

    @property
    def encoders(self) -> dict[str, Encoder | PrecomputedFeatures]:
        """By modality, those that there are."""
        sides = {"image": self.image_encoder, "text": self.text_encoder}
        return {side: encoder for side, encoder in sides.items() if encoder is not None}


def build_parts(cfg: DictConfig, modalities: Sequence[str] = ("image", "text")) -> Parts:
    """Construct every part of the configuration.

    Args:
        modalities: the sides whose files must be there.

    Raises:
        ConfigError: all values out of range, all files that are missing, in one message.
    """
    faults: list[str] = []
    source = _attempt(lambda: instantiate(source_config(cfg)), faults)
    image = _attempt(lambda: instantiate(cfg.image_encoder), faults)
    text = _attempt(lambda: instantiate(cfg.text_encoder), faults)
    makers = {side: maker for side in modalities if (maker := _attempt(partial(_maker, cfg, side), faults)) is not None}
    _attempt(lambda: instantiate(cfg.index), faults)
    faults += _model_faults(
        with_feature_widths(cfg, _trial_width(cfg, "image", image), _trial_width(cfg, "text", text))
    )
    _attempt(lambda: trainer_of(cfg), faults, "trainer")
    faults += _callback_faults(cfg)
    faults += _loader_faults(cfg)
    faults += [fault for side, encoder in (("image", image), ("text", text)) for fault in _rounded(cfg, side, encoder)]
    faults += source.missing() if source is not None else []
    needed = [encoder for side, encoder in (("image", image), ("text", text)) if side in modalities]
    needed += makers.values()
    faults += [fault for encoder in needed if encoder is not None for fault in encoder.check()]
    if not all(isinstance(encoder, PrecomputedFeatures | None) for encoder in needed):
        _attempt(partial(_computing, cfg), faults)
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))
    return Parts(source, image, text, makers)


def _trial_width(cfg: DictConfig, side: str, encoder: Any) -> int:
    """A small one, unless ``num_layers=0`` makes it that of embeddings: then the encoder's own, where it is known."""
    if cfg.model[f"{side}_tower"].projection.get("num_layers") != 0:
        return _ANY_WIDTH
    return _known_width(encoder) or int(cfg.embedding_dim)


def _known_width(encoder: Any) -> int | None:
    """Width of what an encoder gives a tower, as far as it is known before the encoder is prepared."""
    vectors = getattr(encoder, "vectors", None)
    if isinstance(vectors, str):  # a file of word vectors, whatever is made of them
        return stated_width(Path(vectors).expanduser())
    if isinstance(encoder, Encoder) and trainable_layers(encoder) == 0:
        with suppress(RuntimeError):  # one that has to be prepared first
            return encoder.feature_dim
    return None


def trainer_of(cfg: DictConfig) -> pl.Trainer:
    """A trainer that leaves nothing behind, to learn what the settings mean on this machine."""
    trainer: pl.Trainer = instantiate(cfg.trainer, logger=False, enable_checkpointing=False)
    return trainer


def _computing(cfg: DictConfig) -> str:
    """In which format encoders will compute on their device; raises ConfigError where the device isn't there."""
    return used_precision(cfg.features.precision, local_device(cfg.features.device), cfg.features.dtype)


def query_encoder_config(cfg: DictConfig, modality: str) -> dict[str, Any] | None:
    """The encoder of new items: the run's own, or the one that ``made_by`` names; None where it is unknown."""
    own = cfg[f"{modality}_encoder"]
    if "made_by" not in own:
        return plain(own)
    if own.made_by is None:
        return None
    config = compose_choice(cfg, f"{modality}_encoder", own.made_by)
    files = {key: absolute(config[key]) for key in ("weights", "vectors") if _is_file(config.get(key))}
    return {**config, **files}


def _is_file(value: Any) -> bool:
    """Whether a setting is a file or folder seen from here, and no name of published weights."""
    return isinstance(value, str) and (Path(value).expanduser().exists() or value.endswith((".bin", ".vec", ".gz")))


def _maker(cfg: DictConfig, modality: str) -> Encoder | None:
    """The encoder that ``made_by`` of precomputed features names; None where there is none to make."""
    made_by = cfg[f"{modality}_encoder"].get("made_by")
    if made_by is None:
        return None
    config = query_encoder_config(cfg, modality)
    assert config is not None
    if config.get("trainable_layers") == "all":
        raise ConfigError(
            f"{modality}_encoder.made_by={made_by}: with trainable_layers=all an encoder gives what it learns from "
            "(pixels, numbers of words or tokens), and not the vectors of a file. Name the encoder that made the file."
        )
    untrained = [key for key in ("vectors", "weights") if modality == "text" and config.get(key, key) is None]
    if untrained:
        raise ConfigError(
            f"text_encoder.made_by={made_by}: {untrained[0]}=null would be trained on this data set, and so can't have "
            f'made the file. Say which {untrained[0]} did: text_encoder.made_by="{made_by} {untrained[0]}=<file>".'
        )
    maker: Encoder = instantiate(config)
    return maker


def _attempt(build: Callable[[], Any], faults: list[str], foreign: str | None = None) -> Any:
    """What ``build`` returns; values that a constructor refuses go into ``faults`` instead.

    ``foreign`` is the key of a part that is not ours, whose own kinds of error are taken for a fault of that key.
    """
    try:
        return build()
    except (ConfigError, InstantiationException, *_REFUSALS) as error:
        cause = error.__cause__ or error if isinstance(error, InstantiationException) else error
        if isinstance(cause, ConfigError):
            faults.extend(_in_place(fault, error) for fault in cause.faults)
        elif foreign and isinstance(cause, _REFUSALS):
            faults.append(f"{foreign}: {cause}")
        else:
            raise
    return None


def _in_place(fault: str, error: Exception) -> str:
    """A fault under the keys of the very loss, or of the tower, that it is about."""
    tower = re.search(r"full_key: (model\.\w+_tower)$", str(error), re.MULTILINE)
    if tower:
        return re.sub(r"\bprojection\.", f"{tower[1]}.projection.", fault)
    loss = re.search(r"full_key: (?:model\.)?(loss\.\S+)", str(error))  # may be one within another
    return re.sub(r"\bloss\.(?=\w)", f"{loss[1]}.", fault) if loss else fault


def _model_faults(cfg: DictConfig) -> list[str]:
    """Faults of the model's parts, each constructed by itself: one that fails hides none of the others."""
    faults = [fault for side in ("image", "text") for fault in _tower_faults(cfg, side)]
    for _, inner in nodes_with_targets(cfg.model.loss):
        _attempt(partial(instantiate, inner), faults)
    _attempt(lambda: instantiate(cfg.model.loss), faults)
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = _attempt(lambda: optimizer_of(cfg.model)(parameters), faults, "optimizer")
    if optimizer is not None:
        _attempt(lambda: schedule_of(cfg.model).scheduler(optimizer, lambda: 1, 1), faults, "scheduler")
    return faults or _model_as_a_whole(cfg)


def _tower_faults(cfg: DictConfig, side: str) -> list[str]:
    """Faults of one side under the keys where its values are set; whether its parts fit, once each is right."""
    key, aggregator = f"model.{side}_tower", f"{side}_aggregator"
    tower, states = cfg.model[f"{side}_tower"], {}
    faults = _faults_of(cfg, f"{key}.projection", partial(_projection, tower.projection))
    if tower.get("vector_projection"):
        faults += _faults_of(cfg, f"{key}.vector_projection", partial(_projection, tower.vector_projection))
    if tower.aggregator.get("pooling"):
        pooling = tower.aggregator.pooling
        faults += _faults_of(cfg, f"{aggregator}.pooling", lambda: instantiate(pooling)(feature_dim=_ANY_WIDTH))
        states = {"pooling": None}
    faults += _faults_of(cfg, aggregator, partial(instantiate, tower.aggregator, **states))
    faults += _faults_of(cfg, key, partial(_bare_tower, tower))
    if not faults:
        _attempt(partial(instantiate, tower), faults)
    return faults


def _faults_of(cfg: DictConfig, key: str, build: Callable[[], Any]) -> list[str]:
    """What a part of the model refuses, with ``key`` in front of its own parameters."""
    found: list[str] = []
    _attempt(build, found)
    return [_under(key, value_of(cfg, key) or (), fault) for fault in found]


def _under(key: str, parameters: Container[str], fault: str) -> str:
    if key.endswith("vector_projection"):
        fault = fault.replace("embedding_dim must", "output_dim must")
    if key.endswith("projection"):
        fault = re.sub(r"\bprojection\.", f"{key}.", fault)  # as it calls its own
    named = re.match(r"\w+(?=[ =])", fault)
    return f"{key}.{fault}" if named and named[0] in parameters else fault


def _projection(node: DictConfig) -> Any:
    return instantiate(node)(input_dim=node.output_dim if node.get("num_layers") == 0 else _ANY_WIDTH)


def _bare_tower(tower: DictConfig) -> Any:
    """The tower with parts that are in order, whatever its own are."""
    parts = {"aggregator": MeanAggregator(_ANY_WIDTH), "projection": partial(Projection, output_dim=_ANY_WIDTH)}
    own = {key: value for key, value in plain(tower).items() if key not in (*parts, "vector_projection")}
    return instantiate(own, **parts)


def checked_model(cfg: DictConfig) -> DualEncoder:
    """The model, where features have told their widths; raises ConfigError where its parts do not fit together."""
    faults: list[str] = []
    model = _attempt(lambda: build_model(cfg), faults)
    if faults:
        raise ConfigError(faults)
    assert isinstance(model, DualEncoder)
    return model


def _model_as_a_whole(cfg: DictConfig) -> list[str]:
    faults: list[str] = []
    _attempt(lambda: build_model(cfg), faults)
    return faults


def _callback_faults(cfg: DictConfig) -> list[str]:
    """Each callback is constructed, which leaves nothing behind: folders are made when training starts."""
    faults: list[str] = []
    makers = _attempt(lambda: makers_of_callbacks(cfg, Path(cfg.paths.output_dir)), faults) or {}
    for name, make in makers.items():
        key, found = f"callbacks.{name}", list[str]()
        _attempt(make, found, key)
        faults += [_under(key, cfg.callbacks[name], fault) for fault in found]
    return faults


def _rounded(cfg: DictConfig, side: str, encoder: Any) -> list[str]:
    """Words and tokens are numbered: in half precision, the inputs of a tail would be other ones from 257 on."""
    precision = str(cfg.trainer.get("precision"))
    if precision not in ("bf16-true", "16-true") or not getattr(encoder, "needs_float32", False):
        return []
    return [
        f"trainer.precision={precision}: {side}_encoder.trainable_layers={encoder.trainable_layers} reads numbers of "
        "words or tokens, which this precision would round to others. Choose 32-true, bf16-mixed or 16-mixed."
    ]


def _loader_faults(cfg: DictConfig) -> list[str]:
    limits = {"num_workers": 0, "holdout": 0}
    faults = [
        f"data.{key} must be at least {least}, found {cfg.data[key]}."
        for key, least in limits.items()
        if cfg.data[key] < least
    ]
    if cfg.data.limit is not None and cfg.data.limit < 1:
        faults.append(f"data.limit must be at least 1, or null for all items; found {cfg.data.limit}.")
    composed = cfg.data.get("group_by_length", False), cfg.data.get("captions_together", 1)
    return faults + batching_faults(cfg.data.batch_size, *composed)
