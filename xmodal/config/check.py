"""Faults of a composed config: wrong types and ranges, files that are not there, and choices of `compatible`."""

import difflib
import re
from collections.abc import Container
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xmodal.config.annotations import Accepted, Signature, accepted, names_in, signature
from xmodal.config.compatible import incompatible
from xmodal.config.sources import ConfigSource
from xmodal.config.suggestions import did_you_mean
from xmodal.config.values import absolute_paths, all_keys, has_key, is_made_of, is_stated, parts, plain, value_of

# Keys that are not a constructor's parameters (or whose constructor lies outside xmodal): type, least value.
_SCHEMA: dict[str, tuple[str, int | None]] = {
    "embedding_dim": ("int", 1),
    "seed": ("int", 0),
    "ckpt_path": ("str | None", None),
    "name": ("str | None", None),
    "tags": ("list", None),
    "monitor": ("str", None),
    "optimized_metric": ("str", None),
    "resume": ("bool", None),
    "test": ("bool", None),
    "bootstrap": ("int", 0),
    "features.dtype": ("Literal['float16', 'float32']", None),
    "features.store": ("bool", None),
    "features.device": ("str", None),
    "features.precision": ("Literal['auto', 'float32', 'bfloat16', 'float16']", None),
    "features.image_chunk_size": ("int", 1),
    "features.text_chunk_size": ("int", 1),
    "features.num_workers": ("int | None", 0),
    "features.memory_gb": ("float", None),
    "features.pool_once": ("bool", None),
    "augmentation.min_scale": ("float", None),
    "augmentation.flip": ("float", 0),
    "unfreeze_epoch": ("int", 0),
    "relevance": ("Literal['instance', 'label']", None),
    "gather": ("bool", None),
    "cross_batch_memory": ("int", 0),
    "matryoshka": ("list | None", None),
    "data.batch_size": ("int", 1),
    "data.group_by_length": ("bool", None),
    "data.captions_together": ("int", 1),
    "data.num_workers": ("int", 0),
    "data.holdout": ("int", 0),
    "data.limit": ("int | None", 1),
    "data.on_error": ("Literal['error', 'skip']", None),
    "data.exclude": ("list", None),
    "data.relevance": ("Literal['instance', 'class']", None),
    "data.default_weights": ("str | None", None),
    "data.splits": ("dict", None),
    "data.splits.train": ("list", None),
    "data.splits.val": ("list", None),
    "data.splits.test": ("list", None),
    "optimizer.lr": ("float", 0),
    "optimizer.weight_decay": ("float", 0),
    "optimizer.tail_lr_factor": ("float", 0),
    "scheduler.interval": ("Literal['epoch', 'step']", None),
    "scheduler.warmup_steps": ("float", 0),
    "trainer.max_epochs": ("int", -1),
    "trainer.num_nodes": ("int", 1),
    "trainer.accumulate_grad_batches": ("int", 1),
    "trainer.check_val_every_n_epoch": ("int", 1),
    "callbacks.early_stopping.patience": ("int", 0),
    "paths.data_dir": ("str", None),
    "paths.output_dir": ("str", None),
    "paths.features_dir": ("str", None),
    "paths.cache_dir": ("str", None),
}
NOT_PARAMETERS = {
    "optimizer": {"tail_lr_factor"},
    "scheduler": {"interval", "warmup_steps"},
    "data": {
        "batch_size",
        "group_by_length",
        "captions_together",
        "num_workers",
        "holdout",
        "limit",
        "on_error",
        "exclude",
        "relevance",
        "default_weights",
        "splits",
    },
}
_HUGGING_FACE_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def source_config(cfg: DictConfig) -> DictConfig:
    """The data part without the keys that speak of loading, which the source itself does not take."""
    return OmegaConf.create({key: value for key, value in plain(cfg.data).items() if key not in NOT_PARAMETERS["data"]})


def check(cfg: DictConfig) -> list[str]:
    """All faults of a composed config, one sentence each, ``key=value: what is wrong``; the config stays as it is."""
    cfg = cfg.copy()
    OmegaConf.set_readonly(cfg, False)
    absolute_paths(cfg)
    unresolved = _unresolved(cfg)
    faults = [*unresolved.values(), *type_faults(cfg).values()]
    return list(dict.fromkeys([*faults, *_missing_files(cfg), *incompatible(cfg)]))


def type_faults(cfg: DictConfig) -> dict[str, str]:
    """Values of the wrong type or range, and parameters that a constructor does not take: dotted key → fault."""
    faults = {key: fault for key in _SCHEMA if (fault := _schema_fault(cfg, key))}
    for key, node in parts(cfg):
        found = _part_faults(key, node)
        faults = {**{name: found[name] for name in found if not _follows(cfg, name, faults)}, **faults}
    return faults


def _follows(cfg: DictConfig, key: str, faults: Container[str]) -> bool:
    """Whether the value only repeats that of a key whose fault is known."""
    parent, _, name = key.rpartition(".")
    raw = OmegaConf.select(cfg, parent)._get_node(name, validate_access=False)
    text = str(raw._value()) if raw is not None and raw._is_interpolation() else ""
    return any(reference in faults for reference in re.findall(r"\$\{([\w.]+)\}", text))


def _schema_fault(cfg: DictConfig, key: str) -> str | None:
    annotation, least = _SCHEMA[key]
    if not has_key(cfg, key) or not is_stated(cfg, key):
        return None
    value, kinds = value_of(cfg, key), accepted(annotation)
    if not kinds.admits(value):
        return _mismatch(key, value, kinds, least)
    if least is not None and value is not None and value < least:
        return f"{key}={value}: expected {_at_least(kinds, least)}, found {value}."
    return None


def _at_least(kinds: Accepted, least: int | None) -> str:
    text = kinds.describe()
    return text if least is None else text.replace("number", f"number of at least {least:g}")


def _mismatch(key: str, value: Any, kinds: Accepted, least: int | None = None) -> str:
    group, _, name = key.rpartition(".")
    if isinstance(value, str) and value in ConfigSource().groups().get(f"{group.replace('.', '/')}/{name}", ()):
        return f"{key}={value}: a choice is written with a slash: {group.replace('.', '/')}/{name}={value}."
    shown = str(value).lower() if isinstance(value, bool) else "null" if value is None else value
    hint = did_you_mean(value, [str(c) for c in kinds.choices]) if isinstance(value, str) else ""
    if str in kinds.kinds and isinstance(value, int | float) and not isinstance(value, bool):
        hint = f" Quote a number that is text: {key}=\"'{value}'\"."
    found = repr(value) if isinstance(value, str) else shown
    return f"{key}={shown}: expected {_at_least(kinds, least)}, found {found}.{hint}"


def _part_faults(key: str, node: DictConfig) -> dict[str, str]:
    target = value_of(node, "_target_")
    found = signature(target) if isinstance(target, str) else None
    if found is None:
        return _unknown_target(key, str(target)) if str(target).startswith("xmodal.") else {}
    faults = {}
    for name in (str(n) for n in node if not str(n).startswith("_")):
        full = f"{key}.{name}"
        if name in found.parameters:
            value, kinds = value_of(node, name), found.parameters[name]
            if is_stated(node, name) and not kinds.admits(value):
                faults[full] = _mismatch(full, value, kinds)
        elif not found.open and name not in NOT_PARAMETERS.get(key, ()):
            faults[full] = _not_taken(full, target, found)
    return faults


def _not_taken(key: str, target: str, found: Signature) -> str:
    group, _, name = key.rpartition(".")
    if f"{group}/{name}" in ConfigSource().groups():
        owners = " or ".join(f"{group}={option}" for option in ConfigSource().options_with_key(group, name))
        return f"{group}/{name}: {target} has no {name}. Choose {owners}, or leave it out: {group}/{name}=none."
    hint = did_you_mean(key.rpartition(".")[2], found.parameters)
    return f"{key}: {target} takes no such parameter.{hint} It takes: {', '.join(found.parameters)}."


def _unknown_target(key: str, target: str) -> dict[str, str]:
    module, _, name = target.rpartition(".")
    names = names_in(module)
    reason = f"{module} defines no {name}.{did_you_mean(name, names)}" if names else f"there is no module {module}."
    return {f"{key}._target_": f"{key}._target_={target}: {reason}"}


def _unresolved(cfg: DictConfig) -> dict[str, str]:
    """Interpolations that lead nowhere."""
    faults = {}
    for key in all_keys(cfg):
        try:
            OmegaConf.select(cfg, key)
        except OmegaConfBaseException as error:
            faults[key] = f"{key}: {str(error).splitlines()[0]}."
    return faults


def _missing_files(cfg: DictConfig) -> list[str]:
    keys = ("image_encoder.path", "text_encoder.path", "text_encoder.vectors", "ckpt_path")
    faults = [_missing_file(key, Path(value)) for key in keys if isinstance(value := value_of(cfg, key), str)]
    faults += [_missing_weights(cfg, key) for key in ("image_encoder.weights", "text_encoder.weights")]
    return [fault for fault in [*faults, _missing_root(cfg), _missing_table(cfg)] if fault]


def _missing_file(key: str, path: Path) -> str | None:
    if path.exists():
        return None
    if not path.parent.is_dir():
        return f"{key}={path}: there is no such file, and no folder {path.parent}."
    hint = did_you_mean(path.name, [p.name for p in path.parent.iterdir()])
    return f"{key}={path}: there is no such file in {path.parent}.{hint}"


def _missing_weights(cfg: DictConfig, key: str) -> str | None:
    value = value_of(cfg, key)
    if not isinstance(value, str) or Path(value).expanduser().exists():
        return None
    if value != "pretrained" and (close := difflib.get_close_matches(value, ["pretrained", "null"], cutoff=0.8)):
        return f"{key}={value}: expected pretrained, null or a path that exists. Did you mean '{close[0]}'?"
    takes_names = has_key(cfg, f"{key.rpartition('.')[0]}.model")  # which ones, its own check() tells
    if value == "pretrained" or (takes_names and _HUGGING_FACE_NAME.fullmatch(value)):
        return None
    return f"{key}={value}: there is no such file or folder. Expected pretrained, null (seeded random) or a path."


def _missing_root(cfg: DictConfig) -> str | None:
    root = value_of(cfg, "data.root")
    if not isinstance(root, str) or Path(root).is_dir() or is_made_of(cfg, "data", "xmodal.data.scenes."):
        return None  # scenes are rendered into their folder
    return (
        f"data.root={root}: there is no such folder. Put the data set {value_of(cfg, 'data.name') or ''} there, or "
        "name where it is: data.root=/path/to/it, or paths.data_dir=/path (environment variable XMODAL_DATA) for all."
    )


def _missing_table(cfg: DictConfig) -> str | None:
    file, root = value_of(cfg, "data.file"), value_of(cfg, "data.root")
    if not isinstance(file, str):
        return None
    if isinstance(root, str) and not Path(root).is_dir():
        return None  # said already
    below = Path(root) / file if isinstance(root, str) else Path(file).expanduser()
    return None if Path(file).expanduser().is_file() else _missing_file("data.file", below)
