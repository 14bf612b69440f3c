"""``report.html``: one file with everything in it, which asks for nothing from anywhere."""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from xmodal.errors import DataError
from xmodal.reporting.findings import FOOTNOTE, Topic, compared, findings
from xmodal.reporting.groups import DIRECTIONS, Group
from xmodal.reporting.html_tables import View, common_notes, view, without_constants
from xmodal.reporting.pictures import Drawn, Plate
from xmodal.reporting.qualitative import Examples, examples_of
from xmodal.reporting.ranking import from_best, headline, in_words
from xmodal.reporting.replicates import Figure
from xmodal.reporting.runs import Run
from xmodal.reporting.swept import heading
from xmodal.reporting.table import NOTHING, Cell, Column, Table
from xmodal.reporting.thumbnails import Thumbnails

_MOST_PIVOTS_AT_ONCE = 3
_MOST_REFERENCES_AT_ONCE = 16  # figures
_MOST_PAIRS_AT_ONCE = 12
_MOST_ROWS_AT_ONCE = 8  # of provenance


@dataclass(frozen=True)
class Best:
    """The best row of a group: its settings, and the figures by which it is known."""

    words: str
    by: str
    figures: tuple[tuple[str, Figure], ...]


@dataclass(frozen=True)
class Section:
    """What a page says of one group of runs.

    Attributes:
        tables: shown at once.
        more: tables shown when asked for.
        notes: on all of them.
    """

    anchor: str
    group: Group
    compared: str
    best: Best
    findings: tuple[Topic, ...]
    tables: tuple[View, ...]
    more: tuple[View, ...]
    notes: tuple[str, ...]
    plates: tuple[Plate, ...]
    examples: Examples | None


@dataclass(frozen=True)
class Origin:
    """A table of provenance: what all runs share, and what they differ in."""

    view: View
    shared: tuple[tuple[Column, Cell], ...]


def page_of(
    runs: Sequence[Run],
    groups: Sequence[Group],
    tables: Sequence[Table],
    plates: Sequence[Plate],
    pictures: Mapping[str, Drawn],
    faults: Sequence[str],
) -> str:
    """The whole page.

    Args:
        runs: all of them, those without figures too.
        groups: of the others.
        tables: of the runs.
        plates: of the groups.
        pictures: drawn, by their names.
        faults: what could not be drawn; a sentence each.
    """
    photos = Thumbnails()
    faults = list(faults)
    sections = [
        _section(f"runs-{number}", group, tables, plates, photos, faults)
        for number, group in enumerate(groups, start=1)
    ]
    if photos.missing:
        faults.append(_missing_photos(photos))
    origins = [_origin(table) for table in tables if table.kind == "provenance" and _says_anything(table)]
    svg = {name: Markup(one.svg) for name, one in pictures.items()}  # made by matplotlib, which escapes all text
    style, script = (_part(name) for name in ("report.css", "report.js"))
    return _environment().get_template("report.html").render(
        title=_title(groups), runs=runs, sections=sections, footnote=FOOTNOTE, style=style, script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(), faults=faults,
        svg=svg, photos=photos.shown,
        left_out=[view(table) for table in tables if table.kind == "runs"],
        most_rows=_MOST_ROWS_AT_ONCE, origins=origins,
    ) + "\n"  # fmt: skip


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("xmodal.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip


def _part(name: str) -> Markup:
    """Style or script, put into the page as it is."""
    return Markup((files("xmodal.reporting") / "templates" / name).read_text(encoding="utf-8"))


def _title(groups: Sequence[Group]) -> str:
    """``flickr8k, test: embedding size × text aggregator``."""
    names = "; ".join(group.title for group in groups)
    keys = " × ".join(dict.fromkeys(heading(key) for group in groups for key in group.keys))
    return f"{names}: {keys}" if keys and len(groups) == 1 else names


def _section(
    anchor: str, group: Group, tables: Sequence[Table], plates: Sequence[Plate], photos: Thumbnails, faults: list[str]
) -> Section:
    own = [table for table in tables if table.section == group.title]
    notes = common_notes(own)
    at_once = list(_at_once(own))
    try:
        examples = examples_of(group, photos)
    except DataError as fault:
        faults.append(f"{group.title}: {fault}")
        examples = None
    return Section(
        anchor,
        group,
        compared(group),
        _best(group),
        tuple(findings(group)),
        tuple(view(table, notes) for table in at_once),
        tuple(view(table, notes) for table in own if table not in at_once),
        tuple(notes),
        tuple(plate for plate in plates if plate.section == group.title),
        examples,
    )


def _at_once(tables: Sequence[Table]) -> Iterator[Table]:
    """A table of each direction, the first pivots, and what an experiment expects; the others repeat what these say."""
    pivots = 0
    for table in tables:
        pivots += table.kind == "pivot"
        is_shown = {
            "figures": table.title in DIRECTIONS.values(),
            "pivot": pivots <= _MOST_PIVOTS_AT_ONCE,
            "pairs": len(table.rows) <= _MOST_PAIRS_AT_ONCE,
            "reference": len(table.rows) <= _MOST_REFERENCES_AT_ONCE,
        }
        if is_shown.get(table.kind, True):
            yield table


def _best(group: Group) -> Best:
    best, by = from_best(group)[0], headline(group)
    names = {f"{way}_R1": f"R@1, {DIRECTIONS[way].lower()}" for way in group.directions} | {"rsum": "rsum"}
    found = [(words, figure) for name, words in names.items() if (figure := best.figure(name))]
    return Best(in_words(best, group.keys), by, tuple(found))


def _origin(table: Table) -> Origin:
    shared, rest = without_constants(table) if table.name != "settings" else ([], table)
    return Origin(view(rest), tuple(shared))


def _says_anything(table: Table) -> bool:
    """Of results that are kept without their run folder, not even the command may be known."""
    return any(cell != NOTHING for row in table.rows for cell in row[1:])


def _missing_photos(photos: Thumbnails) -> str:
    first = sorted(photos.missing)[0]
    return f"{len(photos.missing)} photos can't be shown, and stand by their ids; the first: {photos.missing[first]}"
