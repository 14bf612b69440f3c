"""One factor at a time: a base run, and those that differ from it in a single setting."""

from collections.abc import Iterator, Sequence

from xmodal.reporting.groups import DIRECTIONS, Group
from xmodal.reporting.marking import INTERVALS_NOTE, cell
from xmodal.reporting.names import slug
from xmodal.reporting.replicates import Replicates, label_of
from xmodal.reporting.significance import SWAPS, p_against
from xmodal.reporting.swept import heading, setting, shown, sortable
from xmodal.reporting.table import NOTHING, Cell, Column, Table, number, word

_FEWEST = 2  # rows beside the base


def ablation_tables(group: Group) -> Iterator[Table]:
    """A table, where one run is the centre that at least two others differ from in a single setting."""
    base = base_of(group.rows, group.all_keys)
    if base is None:
        return
    changes = [(row, found[0]) for row in group.rows if len(found := differing(base, row, group.all_keys)) == 1]
    changes.sort(key=lambda change: (group.all_keys.index(change[1]), sortable(setting(change[0].runs[0], change[1]))))
    figures = [*(f"{way}_R1" for way in ("i2t", "t2i") if way in group.directions), "rsum"]
    columns = [Column("Change", "change", False), *(_column(figure) for figure in figures)]
    columns += [Column("Δ rsum", "rsum_difference"), Column("p", "p")]
    rows = [(word(f"none: {label_of(base, group.keys)}"), *_figures(base, figures), NOTHING, NOTHING)]
    rows += [(word(_change(base, row, key)), *_figures(row, figures), *_against(base, row)) for row, key in changes]
    others = len(group.rows) - 1 - len(changes)
    notes = [
        INTERVALS_NOTE,
        f"p: two-sided paired randomisation test of rsum against the base ({SWAPS:,} swaps), each by itself.",
        *([_and_further(others)] if others else []),
        *group.notes,
    ]
    name, title = f"{slug(group.title)}_ablation", f"One factor at a time, from {base.name}"
    yield Table(name, "ablation", group.title, title, tuple(columns), tuple(rows), tuple(notes))


def base_of(rows: Sequence[Replicates], keys: Sequence[str]) -> Replicates | None:
    """The row from which most others differ in exactly one setting; None where fewer than two do, or where several rows
    are such centres (a full grid has no centre)."""
    counts = [sum(len(differing(one, other, keys)) == 1 for other in rows) for one in rows]
    most = max(counts, default=0)
    return rows[counts.index(most)] if most >= _FEWEST and counts.count(most) == 1 else None


def differing(one: Replicates, other: Replicates, keys: Sequence[str]) -> list[str]:
    """The settings in which two rows differ, without those below an option that differs itself."""
    configs = one.runs[0].config, other.runs[0].config
    if not all(configs):
        return list(keys)
    found = [
        key
        for key in keys
        if any(key in config for config in configs) and len({_text(row, key) for row in (one, other)}) > 1
    ]
    return [key for key in found if not any(key.startswith(f"{above}.") for above in found)]


def _and_further(rows: int) -> str:
    differ = "1 further row differs" if rows == 1 else f"{rows} further rows differ"
    return f"{differ} from the base in more than one setting."


def _change(base: Replicates, row: Replicates, key: str) -> str:
    return f"{heading(key)}: {_text(base, key)} → {_text(row, key)}"


def _text(row: Replicates, key: str) -> str:
    run = row.runs[0]
    return shown(setting(run, key)) if key in run.config else "not stated"


def _column(figure: str) -> Column:
    way = figure.split("_")[0]
    return Column(f"R@1 (accuracy), {DIRECTIONS[way].lower()}" if way in DIRECTIONS else figure, figure)


def _figures(row: Replicates, figures: Sequence[str]) -> list[Cell]:
    return [cell(row.figure(figure)) for figure in figures]


def _against(base: Replicates, row: Replicates) -> tuple[Cell, Cell]:
    """Difference in rsum, and its p-value."""
    before, after = base.figure("rsum"), row.figure("rsum")
    if before is None or after is None:
        return NOTHING, NOTHING
    difference = Cell(f"{after.value - before.value:+.1f}".replace("-", "−"), after.value - before.value)
    if base.queries is None or row.queries is None:
        return difference, NOTHING
    return difference, number(p_against(base.queries, [row.queries], "rsum")[0], 4)
