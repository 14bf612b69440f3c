"""The runs of a report: found in folders, read, and brought into an order that does not depend on who asked."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from xmodal.errors import ConfigError
from xmodal.reporting.run_files import METRICS, RunFiles, flat, is_run, run_behind, settings_of_command
from xmodal.retrieval.metrics import named_figures
from xmodal.retrieval.record import EvaluationRecord

FINISHED = "finished"
UNFINISHED = "unfinished"
_PREFERRED = ("test", "val")
_ROUNDING = 0.01  # of figures in metrics.json
NO_OPTION = "none"
_FILES = {"file", "path", "vectors", "weights"}  # keys of files
_NOT_SEARCHED = {"wandb", "checkpoints", "lightning_logs"}


@dataclass(frozen=True, eq=False)
class Run:
    """One run, with whatever its folder holds.

    Attributes:
        folder: absolute.
        name: unique among the runs found: the folder's name, with as many of its parents as it takes.
        config: values by dotted keys (``loss.margin``); a node with a ``_target_`` also has the name of the chosen
            option under its own key (``loss``: ``triplet``; ``none`` where it has no target), and a file is called by
            its name. Empty where the folder has none.
        states_all: whether ``config`` is a run's own record of all its settings.
        metrics: figures by their names, ``test/i2t_R1``, ``test/i2t_R1_low``.
        history: the figures of each epoch.
        provenance: what ``provenance.json`` says, or None.
        evaluation: rank and values of every query of the reported split, where they are kept.
        split: the evaluation that is reported: ``test``, else ``val``, or what was asked for; None where the run has
            no figures of it.
        seed: of the run.
        status: ``finished``, or ``running``, ``failed``, ``interrupted``, ``unfinished`` (nothing is known).
        error: why it did not finish, in a line.
        command: that started it.
        faults: files that are damaged, and what else is wrong; a sentence each.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    states_all: bool
    metrics: dict[str, float]
    history: list[dict[str, float]]
    provenance: dict[str, Any] | None
    evaluation: EvaluationRecord | None
    split: str | None
    seed: int | None
    status: str
    error: str | None
    command: str | None
    faults: tuple[str, ...]

    @property
    def is_finished(self) -> bool:
        """Whether it has figures to report."""
        return self.status == FINISHED and self.split is not None

    @property
    def identity(self) -> str | None:
        """Of the settings, by the run's own record: equal for the same run made twice."""
        return self._told("identity")

    @property
    def sweep(self) -> str | None:
        """The sweep that it is a job of."""
        return self._told("sweep")

    @property
    def commit(self) -> str | None:
        """Of the code that made it."""
        git = (self.provenance or {}).get("git")
        return str(git["commit"]) if isinstance(git, Mapping) and git.get("commit") else None

    def _told(self, name: str) -> str | None:
        found = (self.provenance or {}).get(name)
        return None if found is None else str(found)

    @property
    def data_name(self) -> str:
        """The data set; ``data not stated`` where nothing says."""
        stated = (self.provenance or {}).get("data")
        stated = stated.get("name") if isinstance(stated, Mapping) else None
        named = self.evaluation.data_name if self.evaluation else stated or self.config.get("data.name")
        return str(named or self.config.get("data") or "data not stated")

    def figure(self, name: str) -> float | None:
        """A figure of the reported split by its name without it (``i2t_R1``); None where there is none or it is NaN."""
        found = self.metrics.get(f"{self.split}/{name}")
        return found if found is not None and found == found else None


def find_runs(paths: Sequence[Path], split: str | None = None) -> list[Run]:
    """The runs in these folders, each once, in the natural order of their paths.

    Args:
        paths: run folders, or folders of run folders at any depth.
        split: the evaluation to report: ``val``, ``test_folds5`` …; None: ``test`` where a run has it, else ``val``.

    Raises:
        ConfigError: for each path that is absent, no folder, or without any run in it.
    """
    faults = []
    folders: set[Path] = set()
    for path in paths:
        found = list(_run_folders(path.resolve())) if path.is_dir() else []
        folders.update(found)
        if not found:
            faults.append(_nothing_in(path))
    if faults:
        raise ConfigError(faults)
    ordered = sorted(folders, key=_natural)
    runs = [_read(folder, name, split) for folder, name in zip(ordered, _names(ordered), strict=True)]
    return _with_names_of_files(_with_options(runs, [RunFiles(folder).choices() for folder in ordered]))


def _nothing_in(path: Path) -> str:
    if not path.exists():
        return f"{path}: there is no such folder. Name folders of runs, such as outputs/multirun/<time>."
    if not path.is_dir():
        return f"{path} is a file. Name the folder of a run, or a folder of runs: {path.parent}"
    return (
        f"{path} holds no run: expected provenance.json, {METRICS} or history.csv in it or in a folder below. "
        "`python train.py` leaves runs in outputs/runs, `python train.py -m` in outputs/multirun."
    )


def _run_folders(folder: Path) -> Iterator[Path]:
    if is_run(folder):
        yield run_behind(folder)
        return
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink() and entry.name not in _NOT_SEARCHED and entry.name[0] != ".":
            yield from _run_folders(entry)


def _natural(path: Path) -> list[list[tuple[int, str]]]:
    """Job 10 stands behind job 9."""
    return [
        [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", part)]
        for part in path.parts
    ]


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell all of them apart."""
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if max(Counter(names).values()) == 1:
            return names
    raise AssertionError("the same folder twice")


def _read(folder: Path, name: str, split: str | None) -> Run:
    files = RunFiles(folder)
    provenance, metrics = files.provenance(), files.metrics()
    stated, states_all = files.config()
    config = {key: value for key, value in flat(stated).items() if not _is_unresolved(value)}
    command = (provenance or {}).get("command") or files.command()
    config = config or settings_of_command(command or "")
    chosen = split or next((one for one in _PREFERRED if _has(one, metrics, files)), None)
    evaluation = files.evaluation(chosen) if chosen else None
    if evaluation is not None:
        metrics = _with_figures_of(evaluation, f"{chosen}/", metrics, files)
    shown = chosen if chosen and any(figure.startswith(f"{chosen}/") for figure in metrics) else None
    status, error = _outcome(provenance, metrics, files, shown, split)
    seed = config.get("seed")
    return Run(
        folder, name, config, states_all, metrics, files.history(), provenance, evaluation, shown,
        seed if isinstance(seed, int) else None, status, error, command, tuple(files.faults),
    )  # fmt: skip


def _is_unresolved(value: object) -> bool:
    """As Hydra writes settings down before a run has read them."""
    return isinstance(value, str) and "${" in value


def _with_figures_of(
    evaluation: EvaluationRecord, prefix: str, metrics: dict[str, float], files: RunFiles
) -> dict[str, float]:
    """The metrics, with those of the queries where there are none (`xmodal evaluate` leaves its queries alone)."""
    figures = {f"{prefix}{name}": value for name, value in named_figures(evaluation.queries).items()}
    others = [name for name, value in figures.items() if abs(metrics.get(name, value) - value) > _ROUNDING]
    if others:
        name = min(others, key=lambda other: not other.endswith("rsum"))
        more = f" (and {len(others) - 1} figures more)" if len(others) > 1 else ""
        files.faults.append(
            f"{METRICS} has {name} {metrics[name]:.2f}, the queries kept have {figures[name]:.2f}{more}: they are of "
            "another evaluation, or a file was changed. Tables show the first; intervals and tests may be of the other"
        )
    return metrics if f"{prefix}rsum" in metrics else metrics | figures


def _has(split: str, metrics: Mapping[str, float], files: RunFiles) -> bool:
    return f"{split}/rsum" in metrics or split in files.evaluations()


def _outcome(
    provenance: Mapping[str, Any] | None,
    metrics: Mapping[str, float],
    files: RunFiles,
    shown: str | None,
    split: str | None,
) -> tuple[str, str | None]:
    """How the run ended, and what is to be said where it has nothing to report."""
    status = str((provenance or {}).get("status") or (FINISHED if metrics else UNFINISHED))
    said = (provenance or {}).get("error")
    if status != FINISHED:
        words = {"running": "still running, or ended without a word", "interrupted": "interrupted (Ctrl-C)"}
        missing = f"{METRICS} is absent: it failed, was killed, or is still running" if not metrics else None
        if earlier := files.earlier_run():
            missing = f"it was finished before, in {earlier}, which is not there any more"
        return status, str(said or words.get(status) or missing or "no error is recorded")
    if shown is None:
        wanted = f"no figures of {split}" if split else "no figures of test or val"
        known = ", ".join(files.evaluations()) or "none"
        return status, f"{wanted} in {METRICS} (evaluations kept: {known})"
    return status, str(said) if said else None


def _with_options(runs: list[Run], choices: list[dict[str, str]]) -> list[Run]:
    """Adds the option of each node with a ``_target_``; ``none`` where the node of a run has none.

    It is called as it was chosen (``sum_of_hinges``) where that is known of all runs that have the node, else after the
    module of its target, so that one option never has two names.
    """
    nodes = {key.removesuffix("._target_") for run in runs for key in run.config if key.endswith("._target_")}
    added: list[dict[str, Any]] = [{} for _ in runs]
    for node in sorted(nodes):
        group = node.replace(".", "/")
        having = [i for i, run in enumerate(runs) if run.config.get(f"{node}._target_")]
        are_chosen = all(group in choices[i] for i in having)
        for i in having:
            target = str(runs[i].config[f"{node}._target_"])
            added[i][node] = choices[i][group] if are_chosen else _option(target)
        if _is_choice(node) or any(group in one for one in choices):
            added = [one if node in one or not run.states_all else {**one, node: NO_OPTION}
                     for run, one in zip(runs, added, strict=True)]  # fmt: skip
    return [replace(run, config=run.config | options) for run, options in zip(runs, added, strict=True)]


def _is_choice(node: str) -> bool:
    """Whether a node is chosen by itself: the model's own repeat what is chosen elsewhere."""
    return not node.startswith("model.")


def _with_names_of_files(runs: list[Run]) -> list[Run]:
    """Files by their names alone, for one file may lie in several places; with as many of the folders above as tell
    them apart where the jobs of one sweep name several of one name."""
    keys = {key for run in runs for key, value in run.config.items() if _is_file(key, value)}
    added: list[dict[str, Any]] = [{} for _ in runs]
    for key in keys:
        values = [run.config.get(key) for run in runs]
        paths = [PurePath(str(value)) if _is_file(key, value) else None for value in values]
        apart = _named_twice_in_a_sweep(runs, paths)
        for one, path in zip(added, paths, strict=True):
            if path is not None:
                alike = {other for other in paths if other is not None and other.name == path.name}
                one[key] = _shortest_end(path, alike) if path.name in apart else path.name
    return [replace(run, config=run.config | files) for run, files in zip(runs, added, strict=True)]


def _named_twice_in_a_sweep(runs: Sequence[Run], paths: Sequence[PurePath | None]) -> set[str]:
    """Names that jobs of one sweep have for different files."""
    places: dict[tuple[str, str], set[PurePath]] = {}
    for run, path in zip(runs, paths, strict=True):
        if path is not None and run.sweep is not None:
            places.setdefault((run.sweep, path.name), set()).add(path)
    return {name for (_, name), found in places.items() if len(found) > 1}


def _shortest_end(path: PurePath, others: set[PurePath]) -> str:
    """The last parts of a path that no other one ends with."""
    for count in range(1, len(path.parts) + 1):
        if sum(other.parts[-count:] == path.parts[-count:] for other in others) == 1:
            return "/".join(path.parts[-count:]).replace("//", "/")
    return str(path)


def _is_file(key: str, value: object) -> bool:
    return key.rpartition(".")[2] in _FILES and isinstance(value, str)


def _option(target: str) -> str:
    """``xmodal.aggregators.lstm.LSTMAggregator`` → ``lstm``; of other packages, the last name."""
    parts = target.split(".")
    return parts[-2] if parts[0] == "xmodal" and len(parts) > 1 else parts[-1]
