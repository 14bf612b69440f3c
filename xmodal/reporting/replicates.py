"""Runs that differ in their seed alone, taken together: means, deviations over seeds, intervals."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from xmodal.reporting.runs import Run
from xmodal.reporting.swept import label, setting, shown, sortable
from xmodal.retrieval.metrics import Queries
from xmodal.retrieval.uncertainty import bootstrap_intervals

RESAMPLES = 1000  # of intervals that no run has computed


@dataclass(frozen=True)
class Figure:
    """A figure of one or several runs.

    Attributes:
        value: the mean over the runs.
        low: lower end of its 95 % interval, seeds taken for given; None where the queries are not kept.
        high: upper end.
        sd: standard deviation over seeds; None for a single run.
    """

    value: float
    low: float | None = None
    high: float | None = None
    sd: float | None = None


@dataclass(frozen=True, eq=False)
class Replicates:
    """Runs of one setting.

    Attributes:
        runs: with different seeds, at least one.
    """

    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """The names of its runs."""
        return ", ".join(run.name for run in self.runs)

    @cached_property
    def queries(self) -> dict[str, Queries] | None:
        """The queries of all its runs, one run after the other; None where a run has not kept them."""
        records = [run.evaluation for run in self.runs]
        kept = [record.queries for record in records if record is not None]
        if len(kept) < len(records):
            return None
        return {way: _joined([one[way] for one in kept]) for way in kept[0] if all(way in one for one in kept)}

    def loss(self, name: str) -> Figure | None:
        """``train/loss`` or ``val/loss`` of the best epoch."""
        return _mean([run.metrics.get(name) for run in self.runs])

    def figure(self, name: str) -> Figure | None:
        """A figure of the reported split, such as ``i2t_R1``; None unless every run has it."""
        found = _mean([run.figure(name) for run in self.runs])
        if found is None:
            return None
        low, high = self._interval(name)
        return Figure(found.value, low, high, found.sd)

    def _interval(self, name: str) -> tuple[float | None, float | None]:
        if len(self.runs) == 1:
            low, high = (self.runs[0].figure(f"{name}_{end}") for end in ("low", "high"))
            if low is not None and high is not None:
                return low, high
        elif name.endswith("medR"):
            return None, None  # that of the joined queries is of their median, not of the mean of medians
        return self._resampled.get(name, (None, None))

    @cached_property
    def _resampled(self) -> dict[str, tuple[float, float]]:
        return bootstrap_intervals(self.queries, RESAMPLES) if self.queries else {}


def replicates_of(runs: Sequence[Run], keys: Sequence[str]) -> tuple[list[Replicates], list[str]]:
    """Runs brought together by what they state for ``keys``, in the order of these values; and notes: of a run that was
    made twice, only the first counts.

    A run without any configuration stays alone: nothing says what it differs in. So does one that has the settings and
    the seed of another, and is not that run: it differs in what is not shown.
    """
    found: dict[tuple[str, ...], dict[int | None, Run]] = {}
    notes = []
    for run in runs:
        settings = tuple(shown(setting(run, key)) if key in run.config else "" for key in keys)
        alike = found.setdefault((str(run.states_all), *settings) if run.config else (run.name,), {})
        first = alike.setdefault(run.seed, run)
        if first is not run and first.identity == run.identity:
            notes.append(f"{run.name} has the settings and the seed of {first.name}, and is not counted again.")
        elif first is not run:
            found[run.name,] = {run.seed: run}
            notes.append(
                f"{run.name} has the settings and the seed of {first.name} as far as they are compared, and is another "
                "run (their identities in provenance.json differ): it has a row of its own."
            )
    groups = [Replicates(tuple(sorted(by_seed.values(), key=_by_seed))) for by_seed in found.values()]
    order = {run.name: i for i, run in enumerate(runs)}
    groups.sort(key=lambda one: ([sortable(setting(one.runs[0], key)) for key in keys], order[one.runs[0].name]))
    return groups, notes


def label_of(group: Replicates, keys: Sequence[str]) -> str:
    """The settings of the runs, or their names."""
    return label(group.runs[0], keys) if keys else group.name


def _by_seed(run: Run) -> tuple[bool, int, str]:
    return (run.seed is None, run.seed or 0, run.name)


def _mean(values: Sequence[float | None]) -> Figure | None:
    known = [value for value in values if value is not None and value == value]
    if len(known) < len(values):
        return None
    return Figure(statistics.fmean(known), sd=statistics.stdev(known) if len(known) > 1 else None)


def _joined(sides: Sequence[Queries]) -> Queries:
    names = [name for name in sides[0].values if all(name in side.values for side in sides)]
    return Queries(
        np.concatenate([side.ranks for side in sides]),
        {name: np.concatenate([side.values[name] for side in sides]) for name in names},
        np.concatenate([side.groups for side in sides]),
        np.concatenate([side.folds for side in sides]),
    )
