"""A search by Optuna, whose study is kept on disk so that it can be gone on with."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Literal, cast, get_args

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from xmodal.config.compatible import LESS_IS_BETTER
from xmodal.errors import ConfigError

Direction = Literal["minimize", "maximize"]

_SWEEP = "sweep"  # what Optuna keeps of a trial beside its settings: the folder of its sweep


@dataclass(frozen=True)
class Search:
    """What is looked for, and what is known of it.

    Attributes:
        study: Optuna's, in its storage.
        space: the distribution of each key that is looked for.
        fixed: settings that all jobs have, ``key=value``.
    """

    study: Study
    space: dict[str, BaseDistribution]
    fixed: tuple[str, ...]

    @property
    def completed(self) -> int:
        """Trials that have a figure."""
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))

    def ask(self, sweep: Path) -> Trial:
        """The next trial, which will leave its run in this folder."""
        trial = self.study.ask(self.space)
        trial.set_user_attr(_SWEEP, str(sweep.absolute()))
        return trial

    def sweeps(self) -> list[Path]:
        """The folders that trials with a figure left their runs in, where they are still there."""
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        folders = dict.fromkeys(Path(trial.user_attrs[_SWEEP]) for trial in trials if _SWEEP in trial.user_attrs)
        return [folder for folder in folders if folder.is_dir()]

    def overrides(self, trial: Trial) -> list[str]:
        """The settings of its job."""
        return [*self.fixed, *(f"{key}={value}" for key, value in trial.params.items())]

    def tell(self, trial: Trial, figure: float) -> None:
        """What a trial came to; NaN: it failed."""
        if math.isnan(figure):
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, figure)

    def best(self) -> dict[str, Any] | None:
        """Study, settings and figure of the best trial; None where none has a figure."""
        if not self.completed:
            return None
        best = self.study.best_trial
        return {
            "name": "optuna",
            "study": self.study.study_name,
            "best_params": dict(best.params),
            "best_value": best.value,
        }


def open_study(name: str, storage: str | BaseStorage, direction: Direction, resume: bool) -> Study:
    """A new study, or with ``resume`` the one that was begun: trials that failed or were cut off come first.

    Raises:
        ConfigError: the study exists and is not to be resumed.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)
    before = study.get_trials(deepcopy=False)
    if before and not resume:
        fault = (
            f"hydra.sweeper.study_name={name}: this study has {len(before)} trials already. Add resume=true to go on"
        )
        raise ConfigError([f"{fault} with it, or choose another name."])
    _queue_again(study, before)
    return study


def storage_of(stated: str | None, folder: Path, name: str) -> str | BaseStorage:
    """A database by its address; else a journal, a plain file, by default in ``folder``."""
    if stated is not None and "://" in stated:
        return stated
    path = Path(stated) if stated is not None else folder / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def seeded(sampler: Callable[..., BaseSampler], seed: int | None, study: Study) -> BaseSampler:
    """A sampler that draws otherwise than it did for the trials that are there."""
    if seed is None or "seed" not in signature(sampler).parameters:
        return sampler()
    return sampler(seed=seed + len(study.get_trials(deepcopy=False)))


def direction_of(metric: str, stated: str) -> Direction:
    """``auto``: ``minimize`` for losses and mean ranks, ``maximize`` for the others.

    Raises:
        ConfigError: there is no such direction.
    """
    if stated not in ("auto", *get_args(Direction)):
        raise ConfigError([f"hydra.sweeper.direction={stated}: expected auto, minimize or maximize."])
    if stated != "auto":
        return cast(Direction, stated)
    return "minimize" if metric in LESS_IS_BETTER else "maximize"


def _queue_again(study: Study, before: Sequence[FrozenTrial]) -> None:
    """Trials without a figure are made anew: those that failed, and those that were cut off."""
    known: list[Any] = [trial.params for trial in before if trial.state == TrialState.COMPLETE]
    known += [trial.system_attrs.get("fixed_params") for trial in before if trial.state == TrialState.WAITING]
    for trial in before:
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
        if trial.state in (TrialState.RUNNING, TrialState.FAIL) and trial.params and trial.params not in known:
            known.append(trial.params)
            study.enqueue_trial(trial.params, skip_if_exists=False)
