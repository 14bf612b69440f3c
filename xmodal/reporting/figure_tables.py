"""Tables of figures: one per direction, one per direction and aggregator, and pivots over two settings."""

from collections.abc import Iterator, Sequence
from itertools import combinations

from xmodal.reporting.groups import DIRECTIONS, SIZE, Group
from xmodal.reporting.marking import column_of, loss_column, notes_on
from xmodal.reporting.names import slug
from xmodal.reporting.replicates import Replicates
from xmodal.reporting.swept import heading, setting, shown, sortable
from xmodal.reporting.table import NOTHING, Cell, Column, Table, word

_MOST_PIVOTS = 6  # of one pair of settings, for the values of all others
_LOSSES = {"train/loss": Column("Train loss", "train_loss"), "val/loss": Column("Validation loss", "val_loss")}
_FIGURES = {
    "R1": Column("R@1 (accuracy)", "R1"),
    "R5": Column("R@5", "R5"),
    "R10": Column("R@10", "R10"),
    "medR": Column("medR", "medR"),
    "mAP": Column("mAP", "mAP"),
}


def figure_tables(group: Group) -> Iterator[Table]:
    """For each direction, all runs; then, where embedding sizes differ among other settings, a table of sizes for each
    value of these."""
    for way in group.directions:
        name = f"{slug(group.title)}_{_of(way)}"
        yield _figures(group, way, f"{name}_all", DIRECTIONS[way], group.rows, group.keys)
        others = [key for key in group.keys if key != SIZE]
        if SIZE in group.keys and others:
            for words, rows in _by_value(group.rows, others):
                if len(rows) > 1:
                    yield _figures(group, way, f"{name}_{slug(words)}", f"{DIRECTIONS[way]}, {words}", rows, (SIZE,))


def pivot_tables(group: Group) -> Iterator[Table]:
    """R@1 of each direction, and rsum, over each two settings that differ; one for each value of the other settings."""
    figures = {f"{way}_R1": f"R@1 (accuracy), {DIRECTIONS[way].lower()}" for way in group.directions}
    for first, second in combinations(group.keys, 2):
        others = [key for key in group.keys if key not in (first, second)]
        parts = _by_value([row for row in group.rows if _states(row, group.keys)], others)
        for words, rows in parts[:_MOST_PIVOTS]:
            down, across = sorted((first, second), key=lambda key: (key != SIZE, -len(_values(rows, key)), key))
            if min(len(_values(rows, down)), len(_values(rows, across))) > 1:
                for figure, title in [*figures.items(), ("rsum", "rsum")]:
                    yield _pivot(group, figure, title, (down, across), words, rows, len(parts))


def keys_cells(row: Replicates, keys: Sequence[str]) -> list[Cell]:
    """What heads a row: its settings; where it states none, the names of its runs."""
    if not any(key in row.runs[0].config for key in keys):
        return [word(row.name), *[NOTHING] * (len(keys) - 1)]
    return [_setting(row, key) for key in keys]


def keys_columns(keys: Sequence[str]) -> list[Column]:
    """The heads of ``keys_cells``."""
    return [Column(_title(key), key, False) for key in keys] or [Column("Run", "run", False)]


def _figures(group: Group, way: str, name: str, title: str, rows: Sequence[Replicates], keys: Sequence[str]) -> Table:
    columns = [*keys_columns(keys), *_seeds_column(rows), *_LOSSES.values(), *_FIGURES.values()]
    losses = [loss_column(rows, loss) for loss in _LOSSES]
    figures = [column_of(rows, f"{way}_{figure}") for figure in _FIGURES]
    heads = [[*keys_cells(row, keys), *_seeds_cell(row, rows)] for row in rows]
    body = [(*head, *cells) for head, *cells in zip(heads, *losses, *figures, strict=True)]
    notes = [*notes_on([cell for column in [*losses, *figures] for cell in column]), *group.notes]
    return Table(name, "figures", group.title, title, tuple(columns), tuple(body), tuple(notes))


def _pivot(
    group: Group, figure: str, title: str, keys: tuple[str, str], words: str, rows: Sequence[Replicates], parts: int
) -> Table:
    down, across = keys
    cells = dict(zip(rows, column_of(rows, figure), strict=True))
    places = {(_text(row, down), _text(row, across)): cell for row, cell in cells.items()}
    columns = [Column(_title(down), down, False)]
    columns += [Column(f"{heading(across)} {value}", f"{across}={value}") for value in _values(rows, across)]
    body = [
        (word(value), *(places.get((value, other), NOTHING) for other in _values(rows, across)))
        for value in _values(rows, down)
    ]
    short = f"{_of(figure.split('_')[0])}_{figure.split('_')[1]}" if "_" in figure else figure
    name = f"{slug(group.title)}_pivot_{slug(down)}_{slug(across)}_{short}" + (f"_{slug(words)}" if words else "")
    notes = [*notes_on(list(cells.values()), one_figure=True), *group.notes]
    if parts > _MOST_PIVOTS:
        notes.append(f"The other settings have {parts} values; the first {_MOST_PIVOTS} have such tables.")
    full = f"{title}: {heading(down)} × {heading(across)}" + (f", {words}" if words else "")
    return Table(name, "pivot", group.title, full, tuple(columns), tuple(body), tuple(notes))


def _by_value(rows: Sequence[Replicates], keys: Sequence[str]) -> list[tuple[str, list[Replicates]]]:
    """Rows by the values of some settings; ``text aggregator sum`` says which."""
    found: dict[str, list[Replicates]] = {}
    for row in sorted(rows, key=lambda row: [sortable(setting(row.runs[0], key)) for key in keys]):
        words = ", ".join(f"{heading(key)} {_text(row, key)}" for key in keys)
        found.setdefault(words, []).append(row)
    return list(found.items())


def _values(rows: Sequence[Replicates], key: str) -> list[str]:
    ordered = sorted(rows, key=lambda row: sortable(setting(row.runs[0], key)))
    return list(dict.fromkeys(_text(row, key) for row in ordered))


def _text(row: Replicates, key: str) -> str:
    run = row.runs[0]
    return shown(setting(run, key)) if key in run.config else "not stated"


def _states(row: Replicates, keys: Sequence[str]) -> bool:
    return all(key in row.runs[0].config for key in keys)


def _setting(row: Replicates, key: str) -> Cell:
    run = row.runs[0]
    value = setting(run, key)
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else _text(row, key)
    return Cell(_text(row, key), number) if key in run.config else NOTHING


def _title(key: str) -> str:
    head = heading(key)
    return head[:1].upper() + head[1:] if "." not in key else head


def _seeds_column(rows: Sequence[Replicates]) -> list[Column]:
    return [Column("n", "seeds")] if any(len(row.runs) > 1 for row in rows) else []


def _seeds_cell(row: Replicates, rows: Sequence[Replicates]) -> list[Cell]:
    return [Cell(str(len(row.runs)), len(row.runs))] if _seeds_column(rows) else []


def _of(way: str) -> str:
    return slug(DIRECTIONS[way].replace("→", "to"))
