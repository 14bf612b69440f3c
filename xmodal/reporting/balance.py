"""One setting by itself: each of its values over the same values of all other settings, and the same seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from xmodal.reporting.groups import Group
from xmodal.reporting.replicates import Replicates
from xmodal.reporting.swept import heading, setting, shown, sortable

_MOST_VALUES = 8


@dataclass(frozen=True)
class Balance:
    """What may be averaged to compare the values of a setting.

    Attributes:
        values: of each value the rows, in the same order of the other settings, all with the same seeds.
        scope: what is averaged, in words: ``mean over 5 values of embedding size``; empty where the values are rows.
    """

    values: dict[str, tuple[Replicates, ...]]
    scope: str

    def pooled(self) -> list[Replicates]:
        """All runs of each value as one row, in which every row of before weighs the same."""
        return [Replicates(tuple(run for row in rows for run in row.runs)) for rows in self.values.values()]


def balance_of(group: Group, key: str) -> Balance | None:
    """None unless there are two values at least, and with several settings two common values of the others at least."""
    others = [other for other in group.keys if other != key]
    found = _by_value(group, key, others)
    if not 2 <= len(found) <= _MOST_VALUES:
        return None
    rests = list(dict.fromkeys(rest for rows in found.values() for rest in rows))
    common = [rest for rest in rests if all(rest in rows for rows in found.values())]
    values = _with_common_seeds({value: tuple(rows[rest] for rest in common) for value, rows in found.items()})
    if len(common) < (2 if others else 1) or not values:
        return None
    left_out = [rest for rest in rests if rest not in common]
    return Balance(values, _scope(group, key, others, len(common), left_out, next(iter(values.values()))))


def _by_value(group: Group, key: str, others: Sequence[str]) -> dict[str, dict[tuple[str, ...], Replicates]]:
    stating = [row for row in group.rows if all(one in row.runs[0].config for one in group.keys)]
    stating.sort(key=lambda row: sortable(setting(row.runs[0], key)))
    found: dict[str, dict[tuple[str, ...], Replicates]] = {}
    for row in stating:
        rest = tuple(shown(setting(row.runs[0], other)) for other in others)
        found.setdefault(shown(setting(row.runs[0], key)), {})[rest] = row
    return found


def _with_common_seeds(values: dict[str, tuple[Replicates, ...]]) -> dict[str, tuple[Replicates, ...]]:
    """The runs whose seed every row has, or else a row with more seeds would weigh more; empty where there is none."""
    rows = [row for found in values.values() for row in found]
    if all(len(row.runs) == 1 for row in rows):
        return values
    common = set.intersection(*({run.seed for run in row.runs} for row in rows)) if rows else set()

    def kept(row: Replicates) -> Replicates:
        return replace(row, runs=tuple(run for run in row.runs if run.seed in common))

    return {value: tuple(map(kept, found)) for value, found in values.items()} if common else {}


def _scope(
    group: Group,
    key: str,
    others: Sequence[str],
    number: int,
    left_out: Sequence[tuple[str, ...]],
    rows: Sequence[Replicates],
) -> str:
    if not others:
        return ""
    named = " × ".join(map(heading, others))
    said = f"mean over {number} values of {named}"
    if left_out:
        listed = ", ".join(" and ".join(rest) for rest in left_out[:3]) + (" …" if len(left_out) > 3 else "")
        said += f"; without {listed}, not run with every {heading(key)}"
    most = max(len(row.runs) for row in group.rows)
    return said + (f"; {len(rows[0].runs)} of {most} seeds, those that all have" if len(rows[0].runs) < most else "")
