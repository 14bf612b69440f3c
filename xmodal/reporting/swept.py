"""What differs between runs: the keys that were swept, and names made of them."""

import json
from collections.abc import Hashable, Sequence
from typing import Any

from xmodal.reporting.runs import Run

# where things lie, how they are watched and how fast they go: not what was compared
_NOT_COMPARED = {
    "seed", "name", "tags", "test", "bootstrap", "ckpt_path", "resume", "optimized_metric", "sweep", "data.root",
    "data.num_workers",
}  # fmt: skip
_NOT_COMPARED_GROUPS = (
    "paths", "logger", "reference", "hydra", "wandb", "query_encoders", "model.loss", "model.optimizer",
    "model.scheduler", "model.image_tower.aggregator", "model.text_tower.aggregator",
)  # fmt: skip
_OF_FEATURES = ("features.dtype", "features.precision")  # the others say where and how fast they are made
_WATCHING = {"accelerator", "enable_progress_bar", "enable_model_summary", "log_every_n_steps", "num_nodes", "profiler"}
_CALLBACKS = ("callbacks.averaging", "callbacks.early_stopping")  # which the outcome depends on
_WIDTHS = {"feature_dim", "input_dim"}  # follow from the encoder and the aggregator
_COPIES = ("model.", "callbacks.")  # hold what other groups say
_AS_ELSEWHERE = {"scheduler.T_max": "trainer.max_epochs"}  # unless something else was typed
_MOST_COLUMNS = 4
_SHORT = {"embedding_dim": "embedding size"}
_ABSENT = object()


def swept_keys(runs: Sequence[Run]) -> list[str]:
    """The settings that differ between runs, those of the top level first, without the run's seed, places, and what
    follows from others: copies (``model.loss.margin`` beside ``loss.margin``) and settings that only one option has.

    A setting that some runs don't state differs only if the others do, for an earlier version may not have had it; or
    if the same code made a run that states it, or a command is all that is known of both.
    """
    keys = sorted({key for run in runs for key in run.config if _is_compared(key)}, key=_rank)
    columns = {key: _column(runs, key) for key in keys}
    varying = [key for key in keys if _varies(runs, key, columns[key])]
    own = [key for key in varying if not _follows(key, varying, columns)]
    return [key for key in own if not _is_copy(key, own, columns)]


def headline_keys(keys: Sequence[str]) -> Sequence[str]:
    """The swept keys where they are few enough to be columns; none where runs differ in so much that names say more."""
    return keys if len(keys) <= _MOST_COLUMNS else []


def setting(run: Run, key: str) -> Any:
    """What a run states for a key; None where it does not state it."""
    return run.config.get(key)


def shown(value: Any) -> str:
    """A setting as a reader types it: ``null``, ``true``, ``1e-05``, ``[64,128]``."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, separators=(",", ":"), sort_keys=True, default=str)


def heading(key: str) -> str:
    """A key as the head of a column: ``text aggregator``, ``optimizer.lr``."""
    return _SHORT.get(key) or (key.replace("_", " ") if "." not in key else key)


def label(run: Run, keys: Sequence[str]) -> str:
    """``embedding_dim=512, text_aggregator=sum``; the run's name where it states none of the keys."""
    stated = [f"{key}={shown(setting(run, key))}" for key in keys if key in run.config]
    return ", ".join(stated) or run.name


def sortable(value: Any) -> tuple[int, float, str]:
    """Numbers in their order, then words, then nothing."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (0, float(value), "")
    return (2, 0.0, "") if value is None else (1, 0.0, shown(value))


def _is_compared(key: str) -> bool:
    last = key.rpartition(".")[2]
    if key in _NOT_COMPARED or last in _WIDTHS | {"_target_", "_partial_"}:
        return False
    if key.startswith("callbacks.") and not key.startswith(_CALLBACKS):
        return False
    if key.startswith("features.") and key not in _OF_FEATURES:
        return False
    if key.startswith("trainer.") and last in _WATCHING:
        return False
    return not any(key == group or key.startswith(f"{group}.") for group in _NOT_COMPARED_GROUPS)


def _rank(key: str) -> tuple[int, int, str]:
    """Copies last, then the depth; embedding_dim and what has options before single numbers."""
    return (key.startswith(_COPIES), key.count("."), key)


def _column(runs: Sequence[Run], key: str) -> tuple[Hashable, ...]:
    return tuple(shown(setting(run, key)) if key in run.config else _ABSENT for run in runs)


def _varies(runs: Sequence[Run], key: str, column: Sequence[Hashable]) -> bool:
    stated = {value for value in column if value is not _ABSENT}
    if key.endswith(".seed") and all(run.config[key] == run.seed for run in runs if key in run.config):
        return False  # the run's own, which that of a part usually is
    return len(stated) > 1 or (len(stated) < len(set(column)) and _is_left_out(runs, key))


def _is_left_out(runs: Sequence[Run], key: str) -> bool:
    """Whether a run does without a setting that another one has, rather than not knowing it."""
    makers = {_maker(run) for run in runs if key in run.config}
    return any(_maker(run) in makers for run in runs if key not in run.config and _maker(run) is not None)


def _maker(run: Run) -> str | None:
    """What two runs share that state the same keys unless something else was chosen."""
    return (run.commit if run.states_all else None) if run.provenance or run.states_all else "a command"


def _follows(key: str, varying: Sequence[str], columns: dict[str, tuple[Hashable, ...]]) -> bool:
    """Whether the option of a node above decides the setting: it has one value for each option."""
    parts = key.split(".")
    above = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    return any(node in varying and _decides(columns[node], columns[key]) for node in above)


def _decides(options: tuple[Hashable, ...], values: tuple[Hashable, ...]) -> bool:
    return len({*zip(options, values, strict=True)}) == len(set(options))


def _is_copy(key: str, varying: Sequence[str], columns: dict[str, tuple[Hashable, ...]]) -> bool:
    """A key of the model that varies as a key elsewhere does, or one that says what another one does."""
    if (source := _AS_ELSEWHERE.get(key, "")) in varying:
        return all(value in (_ABSENT, said) for value, said in zip(columns[key], columns[source], strict=True))
    return key.startswith(_COPIES) and any(
        all(copy in (_ABSENT, said) for copy, said in zip(columns[key], columns[other], strict=True))
        for other in varying
        if not other.startswith(_COPIES)
    )
