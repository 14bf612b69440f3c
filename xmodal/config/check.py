"""Faults of a composed config: wrong types and ranges, files that are not there, choices that do not go together."""

import difflib
import re
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xmodal.config import evaluation
from xmodal.config.annotations import Accepted, Signature, accepted, names_in, signature
from xmodal.config.sources import ConfigSource
from xmodal.config.suggestions import did_you_mean
from xmodal.config.values import absolute_paths, all_keys, child, has_key, parts, value_of

# Keys that are not a constructor's parameters (or whose constructor lies outside xmodal): type, least value.
_SCHEMA: dict[str, tuple[str, int | None]] = {
    "embedding_dim": ("int", 1),
    "seed": ("int", 0),
    "ckpt_path": ("str | None", None),
    "name": ("str | None", None),
    "tags": ("list", None),
    "monitor": ("str", None),
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


def check(cfg: DictConfig) -> list[str]:
    """All faults of a composed config, one sentence each, ``key=value: what is wrong``; the config stays as it is."""
    cfg = cfg.copy()
    OmegaConf.set_readonly(cfg, False)
    absolute_paths(cfg)
    unresolved = _unresolved(cfg)
    faults = [*unresolved.values(), *type_faults(cfg).values()]
    return list(dict.fromkeys([*faults, *_missing_files(cfg), *_incompatible(cfg)]))


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
    if not has_key(cfg, key) or not _is_stated(cfg, key):
        return None
    value, kinds = value_of(cfg, key), accepted(annotation)
    if not kinds.admits(value):
        return _mismatch(key, value, kinds, least)
    if least is not None and value is not None and value < least:
        return f"{key}={value}: expected {_at_least(kinds, least)}, found {value}."
    return None


def _is_stated(cfg: DictConfig, key: str) -> bool:
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
            if _is_stated(node, name) and not kinds.admits(value):
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
    if not isinstance(root, str) or Path(root).is_dir() or _is_made_of(cfg, "data", "xmodal.data.scenes."):
        return None  # scenes are rendered into their folder
    return (
        f"data.root={root}: there is no such folder. Put the data set {value_of(cfg, 'data.name') or ''} there, or "
        "name where it is: data.root=/path/to/it, or paths.data_dir=/path (environment variable XMODAL_DATA) for all."
    )


def _is_made_of(cfg: DictConfig, group: str, module: str) -> bool:
    return str(value_of(cfg, f"{group}._target_")).startswith(module)


def _missing_table(cfg: DictConfig) -> str | None:
    file, root = value_of(cfg, "data.file"), value_of(cfg, "data.root")
    if not isinstance(file, str):
        return None
    if isinstance(root, str) and not Path(root).is_dir():
        return None  # said already
    below = Path(root) / file if isinstance(root, str) else Path(file).expanduser()
    return None if Path(file).expanduser().is_file() else _missing_file("data.file", below)


def _incompatible(cfg: DictConfig) -> list[str]:
    rules: tuple[Callable[[DictConfig], list[str]], ...] = (
        _unfilled,
        _unusable_vector_projections,
        _unknown_makers,
        _features_only,
        _absent_groups,
        _split_roles,
        _unknown_monitor,
        _never_validated,
        _endless_cosine,
        _share_of_endless,
        _half_precision_on_cpu,
        _too_few_resamples,
        _no_cutoffs,
        _no_memory,
        _impossible_augmentation,
        _negative_trainable_layers,
        _never_unfrozen,
        _unfreezing_under_ddp,
        _impossible_sizes,
        _impossible_weights,
        _images_without_labels,
    )
    return [fault for rule in rules for fault in rule(cfg)]


def _unfilled(cfg: DictConfig) -> list[str]:
    """Keys that only the user can fill: the file of a table, the files of precomputed features."""
    faults = []
    for group, name in (("image_encoder", "path"), ("text_encoder", "path"), ("data", "file")):
        needed = group != "data" or _is_made_of(cfg, "data", "xmodal.data.table.")
        if needed and has_key(cfg, f"{group}.{name}") and value_of(cfg, f"{group}.{name}") is None:
            faults.append(f"{group}.{name}: this choice of {group} needs a file: {group}.{name}=/path/to/file.")
    return faults


def _unusable_vector_projections(cfg: DictConfig) -> list[str]:
    """The aggregator behind a vector projection has to know the width that it gives."""
    faults = []
    for key in ("model.image_tower.vector_projection", "model.text_tower.vector_projection"):
        node = value_of(cfg, key)
        needed = {"_target_": str, "_partial_": bool, "output_dim": int}
        if isinstance(node, dict) and any(not isinstance(value_of(cfg, f"{key}.{n}"), k) for n, k in needed.items()):
            faults.append(
                f"{key}: expected _target_, _partial_: true and output_dim (the width that the aggregator gets). "
                f"The usual one is {key.replace('.', '/')}=mlp."
            )
    return faults


def _unknown_makers(cfg: DictConfig) -> list[str]:
    """``made_by`` of precomputed features names an encoder's option (settings may follow the name)."""
    faults = []
    for group in ("image_encoder", "text_encoder"):
        options = [name for name in ConfigSource().groups().get(group, ()) if name != "precomputed"]
        maker = value_of(cfg, f"{group}.made_by")
        name = maker.split()[0] if isinstance(maker, str) and maker.strip() else maker
        if isinstance(name, str) and name not in options:
            hint = did_you_mean(name, options)
            faults.append(f"{group}.made_by={maker}: there is no such {group}.{hint} Choices: {', '.join(options)}.")
    return faults


def _features_only(cfg: DictConfig) -> list[str]:
    """Wikipedia's pairs come as features: there is nothing that an encoder could encode."""
    if not _is_made_of(cfg, "data", "xmodal.data.wikipedia."):
        return []
    sides = [
        side for side in ("image", "text") if not _is_made_of(cfg, f"{side}_encoder", "xmodal.features.precomputed.")
    ]
    return [
        f"data=wikipedia has no {'photos' if side == 'image' else 'texts'}, only features. Type experiment=wikipedia "
        f"instead of data=wikipedia, or add {side}_encoder=precomputed {side}_encoder.path=… {side}_encoder.key=[…]."
        for side in sides
    ]


def _absent_groups(cfg: DictConfig) -> list[str]:
    groups = ("data", "image_encoder", "text_encoder", "image_aggregator", "text_aggregator", "loss", "model", "index")
    absent = [group for group in (*groups, "optimizer", "trainer") if value_of(cfg, f"{group}._target_") is None]
    return [f"{group}: a run needs one. Choose an option: {group}=… (python train.py --help)." for group in absent]


def _split_roles(cfg: DictConfig) -> list[str]:
    splits = value_of(cfg, "data.splits")
    if not isinstance(splits, dict):
        return []
    roles = ("train", "val", "test")
    faults = [f"data.splits.{r}: there is no such role.{did_you_mean(r, roles)}" for r in splits if r not in roles]
    needed = [role for role in ("train", "val") if not splits.get(role)]
    return faults + [f"data.splits.{role}=[]: a run needs at least one split to {_USE[role]}." for role in needed]


_USE = {"train": "train on", "val": "select the best epoch by"}


def _never_validated(cfg: DictConfig) -> list[str]:
    every, epochs = value_of(cfg, "trainer.check_val_every_n_epoch"), value_of(cfg, "trainer.max_epochs")
    if not isinstance(every, int) or not isinstance(epochs, int) or not 0 <= epochs < every:
        return []
    return [
        f"trainer.check_val_every_n_epoch={every}: with trainer.max_epochs={epochs} no epoch would be validated, so "
        "none could be selected. Lower the first or raise the second."
    ]


def _unknown_monitor(cfg: DictConfig) -> list[str]:
    """Best epoch, early stopping and scheduler go by a figure of validation of which more is better."""
    monitor, known = value_of(cfg, "monitor"), monitors(cfg)
    if not isinstance(monitor, str) or monitor in known:
        return []
    reason = "less of it is better, and the highest wins" if monitor in _LESS_IS_BETTER else "no validation gives it"
    return [f"monitor={monitor}: {reason}.{did_you_mean(monitor, known)} Choices: {', '.join(known)}."]


def monitors(cfg: DictConfig) -> list[str]:
    """The figures of validation that ``monitor`` can name, those of which more is better."""
    ks = value_of(cfg, "callbacks.retrieval.ks")
    cutoffs = sorted({1, 5, 10, *(k for k in ks if type(k) is int and k > 0)}) if isinstance(ks, list) else (1, 5, 10)
    recalls = [f"{kind}R{k}" for kind in ("", "fractional_") for k in cutoffs]
    ways = ("i2t", "t2i", "i2i", "t2t") if value_of(cfg, "data.relevance") == "class" else ("i2t", "t2i")
    names = [f"{way}_{name}" for way in ways for name in (*recalls, "mAP", "mAP@R", "RPrecision", "nDCG@10")]
    sizes = value_of(cfg, "matryoshka")
    below = [f"dim{d}/{name}" for d in sizes for name in ("rsum", *names)] if isinstance(sizes, list) else []
    return [f"val/{name}" for name in ("rsum", *names, *below)]


_LESS_IS_BETTER = (
    "val/loss",
    *(f"val/{way}_{name}" for way in ("i2t", "t2i", "i2i", "t2t") for name in ("medR", "meanR")),
)


def _endless_cosine(cfg: DictConfig) -> list[str]:
    epochs = value_of(cfg, "scheduler.T_max")
    if not isinstance(epochs, int) or epochs >= 1:
        return []
    return [
        f"scheduler.T_max={epochs}: the cosine needs a number of epochs and takes it from trainer.max_epochs. Set "
        "that, or choose scheduler=none, step or plateau."
    ]


def _share_of_endless(cfg: DictConfig) -> list[str]:
    """Schedules and averages that go by the length of a run which has none."""
    if value_of(cfg, "trainer.max_epochs") != -1:
        return []
    found = []
    by_steps = value_of(cfg, "scheduler.interval") == "step" and has_key(cfg, "scheduler.T_max")
    is_open = by_steps and not _is_stated(cfg, "scheduler.T_max")
    share = value_of(cfg, "scheduler.warmup_steps")
    if value_of(cfg, "trainer.max_steps") == -1:
        found += ["scheduler.T_max"] * is_open
        found += [f"scheduler.warmup_steps={share}"] * (_is_number(share) and 0 < share < 1)
    start = value_of(cfg, "callbacks.averaging.start_epoch")
    found += [f"callbacks.averaging.start_epoch={start}"] * (_is_number(start) and 0 < start < 1)
    return [f"{setting} goes by the length of the run: set trainer.max_epochs, or a number there." for setting in found]


def _half_precision_on_cpu(cfg: DictConfig) -> list[str]:
    precision, accelerator = value_of(cfg, "trainer.precision"), value_of(cfg, "trainer.accelerator")
    if accelerator != "cpu" or str(precision) not in ("16", "16-mixed", "16-true"):
        return []
    return [f"trainer.precision={precision}: a CPU has no float16 training. Choose bf16-mixed or 32-true."]


def _too_few_resamples(cfg: DictConfig) -> list[str]:
    resamples = value_of(cfg, "bootstrap")
    if type(resamples) is not int or resamples < 0:
        return []  # said already
    fault = evaluation.resamples_fault(f"bootstrap={resamples}: it", resamples)
    return [fault] if fault else []


def _no_cutoffs(cfg: DictConfig) -> list[str]:
    """The K of recall@K; that they are a list is said already."""
    ks = value_of(cfg, "callbacks.retrieval.ks")
    wrong = [k for k in ks if type(k) is not int or k < 1] if isinstance(ks, list) else []
    if not wrong:
        return []
    shown = ",".join(map(str, ks))
    return [
        f"callbacks.retrieval.ks=[{shown}]: expected cut-offs K of recall@K, whole numbers of at least 1, found "
        f"{', '.join(map(repr, wrong))}."
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _no_memory(cfg: DictConfig) -> list[str]:
    budget = value_of(cfg, "features.memory_gb")
    if not _is_number(budget) or budget > 0:
        return []
    return [f"features.memory_gb={budget}: expected a number of gigabytes above 0, found {budget}."]


def _impossible_augmentation(cfg: DictConfig) -> list[str]:
    """That a negative probability is none is said already."""
    scale, flip = value_of(cfg, "augmentation.min_scale"), value_of(cfg, "augmentation.flip")
    faults = []
    if _is_number(scale) and not 0 < scale <= 1:
        faults.append(f"augmentation.min_scale={scale}: expected a share of the photo's area in (0, 1], found {scale}.")
    if _is_number(flip) and flip > 1:
        faults.append(f"augmentation.flip={flip}: expected a probability from 0 to 1, found {flip}.")
    return faults


def _layers_trained(cfg: DictConfig) -> dict[str, Any]:
    """``trainable_layers`` of both encoders, those without such a key left out."""
    keys = (f"{side}_encoder.trainable_layers" for side in ("image", "text"))
    return {key: value_of(cfg, key) for key in keys if has_key(cfg, key)}


def _negative_trainable_layers(cfg: DictConfig) -> list[str]:
    return [
        f"{key}={layers}: expected a number of layers of at least 0, or all; found {layers}."
        for key, layers in _layers_trained(cfg).items()
        if type(layers) is int and layers < 0
    ]


def _is_tuned(cfg: DictConfig) -> bool:
    """Whether there are trainable layers that wait for their epoch, as learned words do not."""
    learned = _is_made_of(cfg, "text_encoder", "xmodal.encoders.words.")
    layers = {key: found for key, found in _layers_trained(cfg).items() if not (learned and key.startswith("text_"))}
    return any(found not in (0, None) for found in layers.values())


def _never_unfrozen(cfg: DictConfig) -> list[str]:
    epoch, epochs = value_of(cfg, "unfreeze_epoch"), value_of(cfg, "trainer.max_epochs")
    if type(epoch) is not int or type(epochs) is not int or not (epoch > 0 and 0 <= epochs <= epoch):
        return []
    if not _is_tuned(cfg):
        return []
    return [
        f"unfreeze_epoch={epoch}: epochs are counted from 0, so with trainer.max_epochs={epochs} no trainable layer "
        "would ever be trained. Lower the first or raise the second."
    ]


def _unfreezing_under_ddp(cfg: DictConfig) -> list[str]:
    """DistributedDataParallel waits for the gradients of all parameters, unless it is told that some have none."""
    epoch = value_of(cfg, "unfreeze_epoch")
    when = _averages_gradients(cfg) if _is_tuned(cfg) and type(epoch) is int and epoch > 0 else None
    if when is None:
        return []
    return [
        f"unfreeze_epoch={epoch}: until then trainable layers have no gradients, which "
        f"trainer.strategy={value_of(cfg, 'trainer.strategy')} would wait for{when}. Choose "
        "trainer.strategy=ddp_find_unused_parameters_true, or unfreeze_epoch=0."
    ]


def _averages_gradients(cfg: DictConfig) -> str | None:
    """When processes average gradients without looking for unused parameters; None: never.

    ``trainer.strategy=auto`` does so for several devices, whose number may not be known before training.
    """
    strategy, devices = str(value_of(cfg, "trainer.strategy")), value_of(cfg, "trainer.devices")
    nodes = value_of(cfg, "trainer.num_nodes")
    if strategy.startswith("ddp"):
        return None if "find_unused_parameters_true" in strategy else ""
    if strategy != "auto":
        return None
    if _are_several(devices) or (type(nodes) is int and nodes > 1):
        return " with several devices"
    if str(devices) in ("auto", "-1") and value_of(cfg, "trainer.accelerator") != "cpu":
        return f" if trainer.devices={devices} found several devices (trainer.devices=1 takes one)"
    return None


def _are_several(devices: Any) -> bool:
    """As Lightning reads them: a number, a list of indices, or either as text (``'2'``, ``'0,1'``, ``'0,'``)."""
    if isinstance(devices, list):
        return len(devices) > 1
    if isinstance(devices, str) and "," in devices:
        return len([index for index in devices.split(",") if index.strip()]) > 1
    return str(devices).strip().isdigit() and int(devices) > 1


def _impossible_sizes(cfg: DictConfig) -> list[str]:
    """Matryoshka: the first dimensions of an embedding are embeddings of their own; that it is a list is said."""
    sizes, width = value_of(cfg, "matryoshka"), value_of(cfg, "embedding_dim")
    if not isinstance(sizes, list) or type(width) is not int:
        return []
    wrong = [size for size in sizes if type(size) is not int or not 1 <= size < width]
    if not wrong:
        return []
    return [
        f"matryoshka=[{','.join(map(str, sizes))}]: expected whole numbers from 1 to {width - 1}, smaller than "
        f"embedding_dim={width}, which is trained as well; found {', '.join(map(repr, wrong))}."
    ]


def _impossible_weights(cfg: DictConfig) -> list[str]:
    """Of loss=weighted and whatever else has weights by name."""
    weights = value_of(cfg, "loss.weights")
    wrong = {n: w for n, w in weights.items() if not _is_number(w) or w < 0} if isinstance(weights, dict) else {}
    return [f"loss.weights.{n}={w}: expected a number of at least 0, found {w!r}." for n, w in wrong.items()]


def _images_without_labels(cfg: DictConfig) -> list[str]:
    """A loss among images has no matches but those of one label."""
    loss = OmegaConf.select(cfg, "loss", throw_on_resolution_failure=False)
    if value_of(cfg, "relevance") == "label" or not isinstance(loss, DictConfig):
        return []
    among = "xmodal.losses.within."
    nodes = {"loss": loss, **{f"loss.{key}": node for key, node in parts(loss)}}
    found = [key for key, node in nodes.items() if str(value_of(node, "_target_")).startswith(among)]
    return [
        f"{key}.side=image: which images match, only labels can tell. Add relevance=label (the data set needs labels), "
        f"or compare texts: {key}.side=text."
        for key in found
        if value_of(cfg, f"{key}.side") == "image"
    ]
