"""Choices and values of a composed config that do not go together, or have no effect together."""

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from xmodal.config import evaluation
from xmodal.config.sources import ConfigSource
from xmodal.config.suggestions import did_you_mean
from xmodal.config.values import has_key, is_made_of, is_stated, parts, value_of


def incompatible(cfg: DictConfig) -> list[str]:
    """Faults of choices and values that each are right, but not together, one sentence each."""
    rules: tuple[Callable[[DictConfig], list[str]], ...] = (
        _unfilled,
        _unusable_vector_projections,
        _idle_vector_projections,
        _idle_directions,
        _unknown_makers,
        _features_only,
        _absent_groups,
        _split_roles,
        _unknown_monitor,
        _unknown_optimized_metric,
        _never_validated,
        _endless_cosine,
        _share_of_endless,
        _never_averaged,
        _half_precision_on_cpu,
        _too_few_resamples,
        _no_cutoffs,
        _no_memory,
        _impossible_augmentation,
        _negative_trainable_layers,
        _never_unfrozen,
        _unfreezing_under_ddp,
        _impossible_sizes,
        _repeated_sizes,
        _impossible_weights,
        _unreachable_margins,
        _images_without_labels,
    )
    return [fault for rule in rules for fault in rule(cfg)]


def _unfilled(cfg: DictConfig) -> list[str]:
    """Keys that only the user can fill: the file of a table, the files of precomputed features."""
    faults = []
    for group, name in (("image_encoder", "path"), ("text_encoder", "path"), ("data", "file")):
        needed = group != "data" or is_made_of(cfg, "data", "xmodal.data.table.")
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


def _idle_vector_projections(cfg: DictConfig) -> list[str]:
    keys = ("model.image_tower.vector_projection", "model.text_tower.vector_projection")
    return [
        f"{key}.num_layers=0: no layers leave vectors as they are. Set 1 or more, or leave the projection out: "
        f"{key.replace('.', '/')}=none."
        for key in keys
        if value_of(cfg, f"{key}.num_layers") == 0
    ]


def _idle_directions(cfg: DictConfig) -> list[str]:
    """Two readings can be averaged, one can't."""
    keys = ("image_aggregator", "text_aggregator")
    return [
        f"{key}.directions=mean: a set that is read in one direction has no other reading to take the mean with. Add "
        f"{key}.bidirectional=true, or leave it out: {key}.directions=concat."
        for key in keys
        if value_of(cfg, f"{key}.directions") == "mean" and value_of(cfg, f"{key}.bidirectional") is False
    ]


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
    if not is_made_of(cfg, "data", "xmodal.data.wikipedia."):
        return []
    sides = [
        side for side in ("image", "text") if not is_made_of(cfg, f"{side}_encoder", "xmodal.features.precomputed.")
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
    known = monitors(cfg)
    named = {"monitor": value_of(cfg, "monitor")}
    for callback in ("checkpoint", "early_stopping", "health", "record", "resume"):
        own = value_of(cfg, f"callbacks.{callback}.monitor")
        named |= {f"callbacks.{callback}.monitor": own} if own != named["monitor"] else {}
    return [
        f"{key}={monitor}: {_why_not(monitor)}.{did_you_mean(monitor, known)} Choices: {', '.join(known)}."
        for key, monitor in named.items()
        if isinstance(monitor, str) and monitor not in known
    ]


def _why_not(monitor: str) -> str:
    if monitor in LESS_IS_BETTER:
        return "less of it is better, and the highest wins"
    if monitor.startswith(("val/i2i_", "val/t2t_")):
        return "images are found by images, and texts by texts, where data.relevance=class alone"
    return "no validation gives it"


def _unknown_optimized_metric(cfg: DictConfig) -> list[str]:
    """What a sweeper compares runs by: of validation too, for the test split is for the end."""
    metric, known = value_of(cfg, "optimized_metric"), [*monitors(cfg), *_less_is_better(cfg)]
    if not isinstance(metric, str) or metric in known or metric == value_of(cfg, "monitor"):
        return []
    reason = "runs are not chosen by the test split" if metric.startswith("test/") else "no validation gives it"
    return [f"optimized_metric={metric}: {reason}.{did_you_mean(metric, known)} Choices: {', '.join(known)}."]


def _less_is_better(cfg: DictConfig) -> list[str]:
    kinds = ("i2i", "t2t") if value_of(cfg, "data.relevance") != "class" else ()
    return [name for name in LESS_IS_BETTER if not any(f"/{way}_" in name for way in kinds)]


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


LESS_IS_BETTER = (
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
    is_open = by_steps and not is_stated(cfg, "scheduler.T_max")
    share = value_of(cfg, "scheduler.warmup_steps")
    if value_of(cfg, "trainer.max_steps") == -1:
        found += ["scheduler.T_max"] * is_open
        found += [f"scheduler.warmup_steps={share}"] * (_is_number(share) and 0 < share < 1)
    start = value_of(cfg, "callbacks.averaging.start_epoch")
    found += [f"callbacks.averaging.start_epoch={start}"] * (_is_number(start) and 0 < start < 1)
    return [f"{setting} goes by the length of the run: set trainer.max_epochs, or a number there." for setting in found]


def _never_averaged(cfg: DictConfig) -> list[str]:
    start, epochs = value_of(cfg, "callbacks.averaging.start_epoch"), value_of(cfg, "trainer.max_epochs")
    if not _is_number(start) or type(epochs) is not int or not (start >= 1 and 0 <= epochs <= start):
        return []
    return [
        f"callbacks.averaging.start_epoch={start}: epochs are counted from 0, so with trainer.max_epochs={epochs} no "
        "weights would be averaged. Lower the first, raise the second, or leave it out: callbacks/averaging=none."
    ]


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
    learned = is_made_of(cfg, "text_encoder", "xmodal.encoders.words.")
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


def _repeated_sizes(cfg: DictConfig) -> list[str]:
    sizes = value_of(cfg, "matryoshka")
    twice = [size for size in sizes if sizes.count(size) > 1] if isinstance(sizes, list) else []
    if not twice:
        return []
    return [
        f"matryoshka=[{','.join(map(str, sizes))}]: {', '.join(map(str, dict.fromkeys(twice)))} stands there more than "
        "once, and has no more weight for it. Name each size once."
    ]


def _impossible_weights(cfg: DictConfig) -> list[str]:
    """Of loss=weighted and whatever else has weights by name."""
    weights = value_of(cfg, "loss.weights")
    wrong = {n: w for n, w in weights.items() if not _is_number(w) or w < 0} if isinstance(weights, dict) else {}
    return [f"loss.weights.{n}={w}: expected a number of at least 0, found {w!r}." for n, w in wrong.items()]


def _images_without_labels(cfg: DictConfig) -> list[str]:
    """A loss among images has no matches but those of one label."""
    if value_of(cfg, "relevance") == "label":
        return []
    found = [key for key in _losses(cfg) if is_made_of(cfg, key, "xmodal.losses.within.")]
    return [
        f"{key}.side=image: which images match, only labels can tell. Add relevance=label (the data set needs labels), "
        f"or compare texts: {key}.side=text."
        for key in found
        if value_of(cfg, f"{key}.side") == "image"
    ]


_WIDEST = {"cosine": 2, "euclidean": 2, "squared_euclidean": 4}  # distance of embeddings of length 1


def _unreachable_margins(cfg: DictConfig) -> list[str]:
    """Of triplet and contrastive losses; the cosine distance brings embeddings to length 1 itself."""
    are_unit = all(value_of(cfg, f"model.{side}_tower.normalize") is True for side in ("image", "text"))
    faults = []
    for key in _losses(cfg):
        margin, distance = value_of(cfg, f"{key}.margin"), value_of(cfg, f"{key}.distance")
        if not _is_number(margin) or distance not in tuple(_WIDEST) or margin <= _WIDEST[distance]:
            continue
        if distance == "cosine" or are_unit:
            faults.append(
                f"{key}.margin={margin}: no two embeddings of length 1 are further apart than {_WIDEST[distance]} "
                f"({key}.distance={distance}), so that nothing could ever keep this margin. Lower it."
            )
    return faults


def _losses(cfg: DictConfig) -> list[str]:
    """Dotted keys of the loss and of all losses within it."""
    loss = OmegaConf.select(cfg, "loss", throw_on_resolution_failure=False)
    return ["loss", *(f"loss.{key}" for key, _ in parts(loss))] if isinstance(loss, DictConfig) else []
