"""Every two values of a setting held against each other, paired: is the one better than the other?"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

from xmodal.reporting.balance import Balance, balance_of
from xmodal.reporting.groups import DIRECTIONS, Group
from xmodal.reporting.marking import cell
from xmodal.reporting.names import slug
from xmodal.reporting.replicates import Replicates
from xmodal.reporting.significance import SWAPS, not_rejected, p_against
from xmodal.reporting.swept import heading
from xmodal.reporting.table import Cell, Column, Table, number, word


def pair_tables(group: Group) -> Iterator[Table]:
    """A table for each setting of which two values at least can be compared over the same other settings."""
    for key in group.keys:
        if (balance := balance_of(group, key)) is not None and (rows := list(_rows(group, balance))):
            title = f"{heading(key)[:1].upper()}{heading(key)[1:]}, each against each"
            notes = [
                *([f"R@1: {balance.scope}."] if balance.scope else []),
                f"p: two-sided paired randomisation test ({SWAPS:,} swaps of the query images). Significant: at 5 % "
                "after Holm's correction over the pairs of one direction.",
                *group.notes,
            ]
            name = f"{slug(group.title)}_pairs_{slug(key)}"
            yield Table(name, "pairs", group.title, title, tuple(_columns(key)), tuple(rows), tuple(notes))


def _columns(key: str) -> list[Column]:
    one = heading(key)[:1].upper() + heading(key)[1:]
    return [
        Column("Direction", "direction", False),
        Column(one, "one", False),
        Column("against", "other", False),
        Column("R@1", "one_R1"),
        Column("R@1, against", "other_R1"),
        Column("Difference", "difference"),
        Column("p", "p"),
        Column("Significant", "significant", False),
    ]


def _rows(group: Group, balance: Balance) -> Iterator[tuple[Cell, ...]]:
    names, rows = list(balance.values), balance.pooled()
    for way in group.directions:
        if all(row.queries is not None and row.figure(f"{way}_R1") is not None for row in rows):
            yield from _of_direction(way, names, rows)


def _of_direction(way: str, names: Sequence[str], rows: Sequence[Replicates]) -> Iterator[tuple[Cell, ...]]:
    figure = f"{way}_R1"
    pairs = list(combinations(range(len(rows)), 2))
    tested = dict(enumerate(_p(rows[one], rows[other], figure) for one, other in pairs))
    ties = not_rejected(tested)
    for place, (one, other) in enumerate(pairs):  # a deviation would be over settings, not over seeds
        first, second = rows[one].figure(figure), rows[other].figure(figure)
        assert first is not None
        assert second is not None
        cells = cell(replace(first, sd=None)), cell(replace(second, sd=None))
        difference = first.value - second.value
        yield (
            word(DIRECTIONS[way]), word(names[one]), word(names[other]), *cells,
            Cell(f"{difference:+z.1f}".replace("-", "−"), difference), number(tested[place], 4),
            word("no" if place in ties else "yes"),
        )  # fmt: skip


def _p(one: Replicates, other: Replicates, figure: str) -> float:
    assert one.queries is not None
    assert other.queries is not None
    return p_against(one.queries, [other.queries], figure)[0]
