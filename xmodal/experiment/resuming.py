"""Going on with an earlier run: with its model, its items, and the words that its trained layers know."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from xmodal.config.values import resolved
from xmodal.errors import ConfigError
from xmodal.experiment.features import Dataset, prepare
from xmodal.experiment.parts import Parts
from xmodal.features.precomputed import PrecomputedFeatures
from xmodal.models import checkpoint
from xmodal.models.dual_encoder import CHECKPOINT_KEY
from xmodal.models.query_encoders import canonical
from xmodal.models.tails import trainable_layers
from xmodal.tracking.columns import flat_config

log = logging.getLogger(__name__)

_LAYERS = ("image_encoder.trainable_layers", "text_encoder.trainable_layers")  # 0 in runs of earlier versions
_UNKNOWN_BEFORE = {  # in models of earlier versions
    "element_dropout": 0.0,
    "residual": False,
    "batch_norm": False,
    "init": "default",
}
_HARM = {
    "image": "its frozen layers would give other vectors than the trained ones have learned from",
    "text": "what was learned of a word would go to another one",
}
_SHOWN = 20  # characters of a digest
_NO_ITEMS = (
    "data.batch_size",
    "data.num_workers",
    "data.root",
    "data.on_error",
    "data.exclude",
    "data.group_by_length",
    "data.captions_together",
)


@dataclass(frozen=True)
class EarlierRun:
    """The run of ``ckpt_path``: its configuration, and the fingerprints of its encoders by modality."""

    path: str
    config: dict[str, Any]
    fingerprints: dict[str, str]

    @classmethod
    def of(cls, cfg: DictConfig) -> "EarlierRun | None":
        """None for a run of its own; raises DataError where ``ckpt_path`` is no checkpoint of xmodal."""
        if cfg.ckpt_path is None:
            return None
        content = checkpoint.read(cfg.ckpt_path)[CHECKPOINT_KEY]
        return cls(cfg.ckpt_path, content["config"], content["fingerprints"])

    def taken_up(self, cfg: DictConfig) -> DictConfig:
        """The configuration that goes on with this run: with the items that it left out left out.

        Raises:
            ConfigError: naming the settings that make another model, and those that the checkpoint would overrule.
        """
        self._refuse_another_model(cfg)
        self._refuse_another_rate(cfg)
        return self._with_its_items(cfg)

    def check_trained(self, cfg: DictConfig, parts: Parts, dataset: Dataset) -> None:
        """Compare the encoders that have trainable layers, prepared on the items of now, with those of this run.

        What was learned is kept by place: of a word in the table, of a token in the vocabulary. Both come from the
        training captions where no file gives them.

        Raises:
            ConfigError: an encoder differs, so that places mean other words, or frozen layers give other vectors.
        """
        for side, encoder in parts.encoders.items():
            if not isinstance(encoder, PrecomputedFeatures) and trainable_layers(encoder) != 0:
                prepare(cfg, encoder, dataset, side)
                self._compare(cfg, side, encoder.fingerprint())

    def _refuse_another_model(self, cfg: DictConfig) -> None:
        differing = [*self._differing(cfg, _shapes_the_model), *self._gone(cfg)]
        if differing:
            raise ConfigError(
                f"ckpt_path={self.path} is of another model, which can't go on with these settings: "
                f"{'; '.join(differing)}. Use the settings of its run (config.yaml beside it), or leave ckpt_path out."
            )

    def _refuse_another_rate(self, cfg: DictConfig) -> None:
        """Optimizer and scheduler go on with the rates in the checkpoint, whatever is typed."""
        has_tails = any(OmegaConf.select(cfg, key) not in (0, None) for key in _LAYERS)
        differing = self._differing(cfg, lambda key: key == "optimizer.tail_lr_factor") if has_tails else []
        if differing:
            raise ConfigError(
                f"ckpt_path={self.path} goes on with the learning rates that it holds: {differing[0]}. Leave "
                "optimizer.tail_lr_factor as it was in its run, or leave ckpt_path out."
            )

    def _with_its_items(self, cfg: DictConfig) -> DictConfig:
        """Statistics and splits are of the items that the run had: photos are not looked through for others."""
        before = self.config["data"]
        if before.get("name") != cfg.data.get("name") or "exclude" not in before:
            return cfg
        typed = list(cfg.data.get("exclude") or [])
        known = {str(image_id) for image_id in before["exclude"]}
        exclude = [*before["exclude"], *(image_id for image_id in typed if str(image_id) not in known)]
        if exclude == typed and cfg.data.get("on_error") == before.get("on_error", "error"):
            return cfg
        log.info(
            "Going on with the items of ckpt_path=%s: data.exclude has the %s that its run left out%s.",
            self.path,
            f"{len(known):,} image{'' if len(known) == 1 else 's'}",
            ", and data.on_error=skip leaves out no further ones" if cfg.data.get("on_error") == "skip" else "",
        )
        cfg = cfg.copy()
        OmegaConf.set_readonly(cfg, False)
        OmegaConf.update(cfg, "data.exclude", exclude, force_add=True)
        OmegaConf.update(cfg, "data.on_error", before.get("on_error", "error"), force_add=True)
        return cfg

    def _compare(self, cfg: DictConfig, side: str, fingerprint: dict[str, Any]) -> None:
        found, expected = canonical(fingerprint), self.fingerprints.get(side)
        if expected is None or found == expected:
            return
        data = self._differing(cfg, lambda key: key.startswith("data.") and key not in _NO_ITEMS)
        raise ConfigError(
            f"ckpt_path={self.path} can't go on: the {side} encoder, of which it has trained layers "
            f"({side}_encoder.trainable_layers={cfg[f'{side}_encoder'].trainable_layers}), is another one now "
            f"({'; '.join(_unlike(json.loads(expected), json.loads(found)))}), and {_HARM[side]}. "
            f"{'Settings that differ: ' + '; '.join(data) + '. ' if data else ''}Use the data, files and settings of "
            f"data and {side}_encoder of its run (config.yaml beside it), or leave ckpt_path out."
        )

    def _gone(self, cfg: DictConfig) -> list[str]:
        """Terms of the loss that there are no longer."""
        now, before = (flat_config(config) for config in (resolved(cfg), self.config))
        return [
            f"{key}: {value} in the checkpoint, no such term now"
            for key, value in before.items()
            if key.startswith("loss.") and key.endswith("._target_") and key not in now
        ]

    def _differing(self, cfg: DictConfig, matters: Callable[[str], bool]) -> list[str]:
        now, before = (flat_config(config) for config in (resolved(cfg), self.config))
        return [
            f"{key}: {before.get(key)} in the checkpoint, {value} now"
            for key, value in now.items()
            if matters(key) and value != "???" and before.get(key, _value_before(key)) != value
        ]


def _value_before(key: str) -> Any:
    """What a setting was before there was one, which is what it says by default."""
    return 0 if key in _LAYERS else _UNKNOWN_BEFORE.get(key.rpartition(".")[2])


def _shapes_the_model(key: str) -> bool:
    prefixes = ("embedding_dim", "image_aggregator.", "text_aggregator.", "model.image_tower.", "model.text_tower.")
    if key.startswith("loss."):  # its own parameters are in the checkpoint
        return key.endswith(("._target_", ".learn_temperature", ".learn_bias"))
    return key.startswith(prefixes) or key in ("image_encoder._target_", "text_encoder._target_", *_LAYERS)


def _unlike(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old != new:
            yield f"{name}: {_short(old)} in the checkpoint, {_short(new)} now"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
