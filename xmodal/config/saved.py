"""Settings typed for the saved configuration of a run: where its data lies now, and how much of it is taken."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from xmodal.config.check import type_faults
from xmodal.config.sources import CONF_DIR, ConfigSource
from xmodal.config.suggestions import likely_keys, phrase
from xmodal.config.values import absolute_paths, all_keys, has_key, plain, value_of
from xmodal.errors import ConfigError

# everything else has gone into the model's parameters, or plays no part after training
CHANGEABLE = ("data", "paths", "features", "image_encoder", "text_encoder")
_SHAPES = ("image_encoder.trainable_layers", "text_encoder.trainable_layers")
_FOLDERS = ("data.root", "paths.features_dir", "paths.cache_dir", "paths.data_dir", "paths.output_dir")
_ALL_ITEMS = {"on_error": "error", "exclude": []}  # as it was before there were such settings


def with_overrides(saved: Mapping[str, Any], overrides: Sequence[str]) -> DictConfig:
    """The configuration with some values replaced.

    A saved configuration is resolved, so files that lay below a folder that is replaced (``paths.data_dir``,
    ``data.root`` …) are moved along. Settings of ``features`` that an earlier version of xmodal did not know have
    today's defaults; without ``data.on_error`` and ``data.exclude``, all items took part.

    Raises:
        ConfigError: all faults: what can't be read, keys that are not there or that belong to the trained model, and
            values of the wrong type.
    """
    features, data = {**_feature_defaults(), **saved["features"]}, {**_ALL_ITEMS, **saved["data"]}
    cfg = OmegaConf.create({**saved, "features": features, "data": data})
    faults: list[str] = []
    parsed = [override for line in overrides if (override := _parsed(line, faults)) is not None]
    faults += [f"{override.input_line}: {fault}" for override in parsed if (fault := _fault(override, cfg))]
    if faults:
        raise ConfigError(faults)
    given = _given(parsed)
    moved = _moved(cfg, given)
    for key, value in (moved | given).items():
        OmegaConf.update(cfg, key, value, merge=False)
    if wrong := [fault for key, fault in type_faults(cfg).items() if key in given]:
        raise ConfigError(wrong)
    return cfg


def _feature_defaults() -> dict[str, Any]:
    return plain(OmegaConf.load(CONF_DIR / f"{ConfigSource.name}.yaml").features)


def _parsed(line: str, faults: list[str]) -> Override | None:
    try:
        return OverridesParser.create().parse_override(line)
    except HydraException as error:
        reason = f"cannot be read ({str(error).splitlines()[0]})" if "=" in line else "expected key=value"
        faults.append(f"{line}: {reason}. Settings look like data.root=/path/to/data.")
        return None


def _fault(override: Override, cfg: DictConfig) -> str | None:
    key = override.key_or_group
    if override.type != OverrideType.CHANGE or override.is_sweep_override():
        return "a saved run takes one value for a key that it has: key=value."
    if not has_key(cfg, key):
        return f"the configuration of this run has no key '{key}'.{phrase(likely_keys(key, all_keys(cfg)))}"
    group = key.split(".")[0]
    if group not in CHANGEABLE:
        return (
            f"{group} belongs to the trained model or to its training, and can't be changed any more. What can: "
            f"{', '.join(f'{name}.…' for name in CHANGEABLE)}."
        )
    if key in _SHAPES:
        return "which layers were trained belongs to the trained model, and can't be changed any more."
    if OmegaConf.is_dict(OmegaConf.select(cfg, key)):
        return f"a saved run keeps its choice of {key}; single settings of it can be changed: {key}.<name>=…"
    return None


def _given(parsed: Sequence[Override]) -> dict[str, Any]:
    """The values typed, by key; paths absolute, seen from the current folder."""
    typed = OmegaConf.create({})
    for override in parsed:
        OmegaConf.update(typed, override.key_or_group, override.value(), merge=False)
    absolute_paths(typed)
    return {override.key_or_group: value_of(typed, override.key_or_group) for override in parsed}


def _moved(cfg: DictConfig, given: Mapping[str, Any]) -> dict[str, str]:
    """Paths that lie below a replaced folder, at their new places; by key."""
    folders = [(str(value_of(cfg, key)), str(given[key])) for key in _FOLDERS if given.get(key) and value_of(cfg, key)]
    moved = {}
    for key in all_keys(cfg):
        value = value_of(cfg, key)
        if key.split(".")[0] not in CHANGEABLE or not isinstance(value, str):
            continue
        if below := [(old, new) for old, new in folders if value.startswith(f"{old}/")]:
            old, new = max(below, key=lambda pair: len(pair[0]))  # the innermost folder
            moved[key] = new + value[len(old) :]
    return moved
