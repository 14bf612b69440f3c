"""Reading a composed config: its keys, its values, its paths, and a plain copy of it."""

import os
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xmodal.config.sources import absolute

MISSING = "???"
PATH_KEYS = (
    "paths.data_dir",
    "paths.output_dir",
    "paths.features_dir",
    "paths.cache_dir",
    "data.root",
    "image_encoder.path",
    "text_encoder.path",
    "text_encoder.vectors",
    "ckpt_path",
)
# a path, or else a name of weights, or of a file below data.root
_PERHAPS_PATHS = ("image_encoder.weights", "text_encoder.weights", "data.file")


def child(node: Any, part: str) -> Any:
    """Node ``part`` of a mapping or list without resolving it; KeyError where there is none."""
    if isinstance(node, ListConfig) and part.isdigit() and int(part) < len(node):
        return node._get_node(int(part))
    if isinstance(node, DictConfig) and _is_open(node):
        found = node._get_node(part, validate_access=False)
        if found is not None:
            return found
    raise KeyError(part)


def has_key(cfg: DictConfig, key: str) -> bool:
    """Whether the dotted ``key`` stands in the config, whatever its value (null and ??? too)."""
    node: Any = cfg
    try:
        for part in key.split("."):
            node = child(node, part)
    except KeyError:
        return False
    return True


def value_of(cfg: DictConfig, key: str) -> Any:
    """Plain value of the dotted ``key``, resolved; None where it is absent, null, ??? or cannot be resolved."""
    try:
        found = OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None
    return OmegaConf.to_container(found, resolve=False) if OmegaConf.is_config(found) else found


def is_stated(cfg: DictConfig, key: str) -> bool:
    """Whether the key holds a value: not ???, and not an interpolation that leads to one or to nothing."""
    node: Any = cfg
    try:
        for part in key.split("."):
            node = child(node, part)
        return not OmegaConf.is_missing(node._get_parent(), node._key()) and not _broken(node)
    except (KeyError, OmegaConfBaseException):
        return False


def _broken(node: Any) -> bool:
    if not node._is_interpolation():
        return False
    found = node._maybe_dereference_node()
    return found is None or found._is_missing()


def is_made_of(cfg: DictConfig, group: str, module: str) -> bool:
    """Whether ``_target_`` of the group begins with ``module``."""
    return str(value_of(cfg, f"{group}._target_")).startswith(module)


def all_keys(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted key of mappings within mappings, the inner nodes too."""
    for name in names_of(cfg):
        key = f"{prefix}{name}"
        yield key
        node = cfg._get_node(name, validate_access=False)
        if isinstance(node, DictConfig):
            yield from all_keys(node, f"{key}.")


def parts(cfg: DictConfig, prefix: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every mapping below ``cfg`` that names a ``_target_``, with its dotted key."""
    for name in names_of(cfg):
        node = cfg._get_node(name, validate_access=False)
        if isinstance(node, DictConfig) and _is_open(node):
            if value_of(node, "_target_") is not None:
                yield f"{prefix}{name}", node
            yield from parts(node, f"{prefix}{name}.")


def names_of(node: DictConfig) -> list[str]:
    """Names in a mapping; none where it is null, ??? or an interpolation."""
    return [str(name) for name in node.keys()] if _is_open(node) else []  # noqa: SIM118 (plain iteration skips ???)


def _is_open(node: DictConfig) -> bool:
    return not (node._is_none() or node._is_missing() or node._is_interpolation())


def absolute_paths(cfg: DictConfig) -> DictConfig:
    """The same config, changed in place: paths that the user gave relative to the current folder made absolute."""
    present = [key for key in _PERHAPS_PATHS if os.path.exists(absolute(str(value_of(cfg, key))))]
    for key in [*PATH_KEYS, *present]:
        value = value_of(cfg, key)
        if isinstance(value, str) and value != absolute(value):
            OmegaConf.update(cfg, key, absolute(value))
    return cfg


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain dictionaries, lists and scalars, interpolations resolved, ``???`` kept, paths absolute."""
    copied = cfg.copy()
    OmegaConf.set_readonly(copied, False)
    return plain(absolute_paths(copied))


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A mapping of the config as plain containers, interpolations resolved, ``???`` kept."""
    container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
