"""Recall with its intervals: against a number that was swept, else one run below the other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from xmodal.reporting.groups import DIRECTIONS, SIZE, Group
from xmodal.reporting.names import slug
from xmodal.reporting.pictures import Picture, Plate
from xmodal.reporting.ranking import from_best, in_words, values_in_words
from xmodal.reporting.replicates import Figure, Replicates
from xmodal.reporting.style import COLUMN, GRID, INK, MUTED, SERIES, apart, colour_of, marker_of
from xmodal.reporting.swept import heading, setting

_CUTOFFS = ("R1", "R5", "R10")
_MOST_ROWS = 40
_MOST_TICKS = 8
_HALF_LABEL = 16  # letters of a long label on either side of what is left out
_LEAST_BEGINNING = 8
_WIDE = 4  # a number that grows more than so often is shown on a logarithmic axis
_APART = 0.014  # between neighbouring series, as a share of the axis
_BARS = "Bars: 95 % intervals, query images resampled with all their captions."


@dataclass(frozen=True)
class _Series:
    """Rows that differ in the swept number alone."""

    words: str
    points: tuple[tuple[float, Figure], ...]


def recall_plates(group: Group) -> Iterator[Plate]:
    """R@1 of every direction at once, R@5 and R@10 when asked for."""
    if not group.directions:
        return
    if len(group.rows) == 1:
        pictures = [_of_one_row(group, way) for way in group.directions]
        caption = f"Recall of {in_words(group.rows[0], group.keys)}. {_BARS}"
        yield Plate("recall", group.title, "Recall", caption, tuple(pictures), is_overview=True)
        return
    key = swept_number(group)
    by_cutoff = {
        name: tuple(_against(group, key, way, name) if key else _listed(group, way, name) for way in group.directions)
        for name in _CUTOFFS
    }
    caption = _caption_against(group, key) if key else _caption_listed(group)
    title = f"Recall against {heading(key)}" if key else "Recall of all runs"
    more = by_cutoff["R5"] + by_cutoff["R10"]
    yield Plate("recall", group.title, title, caption, by_cutoff["R1"], more, is_overview=True)


def swept_number(group: Group) -> str | None:
    """The key for the horizontal axis: the embedding size, else the number with most values among what differs."""
    numbers = [key for key in group.keys if len(_numbers(group.rows, key)) > 1]
    return max(numbers, key=lambda key: (key == SIZE, len(_numbers(group.rows, key))), default=None)


def _numbers(rows: Sequence[Replicates], key: str) -> set[float]:
    """Its values; none where a row states something else."""
    values = [setting(row.runs[0], key) for row in rows if key in row.runs[0].config]
    are_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return {float(value) for value in values} if are_numbers else set()


def _caption_against(group: Group, key: str) -> str:
    series = _series(group, key, f"{group.directions[0]}_R1")
    others = [heading(other) for other in group.keys if other != key]
    lines = f"One line per {' and '.join(others)}. " if len(series) > 1 else ""
    grey = f"In grey: {len(series) - len(SERIES)} whose best recall is lower. " if len(series) > len(SERIES) else ""
    return f"Share of queries with a match among the first K results, against {heading(key)}. {lines}{grey}{_BARS}"


def _caption_listed(group: Group) -> str:
    kept = f"The best {_MOST_ROWS} of {len(group.rows)} rows by rsum. " if len(group.rows) > _MOST_ROWS else ""
    keys = ", ".join(map(heading, group.keys))
    return f"Share of queries with a match among the first K results{f', by {keys}' if keys else ''}. {kept}{_BARS}"


def _name(group: Group, way: str, figure: str = "") -> str:
    return "_".join(part for part in (slug(group.title), "recall", way, figure) if part)


def _title(way: str, figure: str) -> str:
    return f"{DIRECTIONS[way]}, {_at(figure)}"


def _at(figure: str) -> str:
    return f"R@{figure[1:]}"


def _series(group: Group, key: str, figure: str) -> list[_Series]:
    """The best of them first."""
    others = [other for other in group.keys if other != key]
    found: dict[str, list[tuple[float, Figure]]] = {}
    for row in group.rows:
        value = row.figure(figure)
        if key in row.runs[0].config and value is not None:
            found.setdefault(values_in_words(row, others) if others else "", []).append(
                (float(setting(row.runs[0], key)), value)
            )
    series = [_Series(words, tuple(sorted(points, key=lambda p: p[0]))) for words, points in found.items()]
    return sorted(series, key=lambda one: (-max(point.value for _, point in one.points), one.words))


def _against(group: Group, key: str, way: str, figure: str) -> Picture:
    series = _series(group, key, f"{way}_{figure}")
    best_first = _series(group, key, f"{group.directions[0]}_R1")
    order = {one.words: i for i, one in enumerate(best_first)}  # one colour at all cut-offs, in all directions

    def draw(axes: Axes) -> None:
        places = sorted({x for one in series for x, _ in one.points})
        _scale(axes, places, key)
        named = [one for one in series if order.get(one.words, len(SERIES)) < len(SERIES)]
        for one in series:
            if one not in named:
                axes.plot([x for x, _ in one.points], [y.value for _, y in one.points], color=MUTED, lw=0.7, alpha=0.45)
        for one in named:
            _line(axes, one, order[one.words], len(named), (places[0], places[-1]))
        _fit(axes, [point for one in series for _, point in one.points])
        if len(series) > 1:
            _label_ends(axes, named, order)
        axes.set_title(DIRECTIONS[way])
        axes.set(xlabel=heading(key), ylabel=f"{_at(figure)} (%)")

    return Picture(_name(group, way, figure), _title(way, figure), draw)


def _scale(axes: Axes, values: Sequence[float], key: str) -> None:
    """Powers of two for sizes, of ten for what spans much; ticks where there is something to see."""
    if not values:
        return
    if values[0] > 0 and (key == SIZE or values[-1] / values[0] > _WIDE):
        axes.set_xscale("log", base=2 if key == SIZE else 10)
        axes.minorticks_off()
    step = -(-len(values) // _MOST_TICKS)
    axes.set_xticks(values[::step], [f"{value:g}" for value in values[::step]])
    axes.grid(axis="y")


def _line(axes: Axes, one: _Series, number: int, of: int, ends: tuple[float, float]) -> None:
    """Points and intervals, each series a little beside the others so that no bar hides another."""
    left, right = ends
    shift = (number % len(SERIES) - (of - 1) / 2) * _APART
    is_log = axes.get_xscale() == "log"
    x = [value * (right / left) ** shift if is_log else value + shift * (right - left) for value, _ in one.points]
    y = [point.value for _, point in one.points]
    colour = colour_of(number)
    low = [point.value - point.low if point.low is not None else 0.0 for _, point in one.points]
    high = [point.high - point.value if point.high is not None else 0.0 for _, point in one.points]
    axes.errorbar(x, y, yerr=[[max(0.0, e) for e in low], [max(0.0, e) for e in high]], fmt="none", ecolor=colour,
                  elinewidth=0.9, alpha=0.55)  # fmt: skip
    axes.plot(x, y, color=colour, marker=marker_of(number), markeredgewidth=0)


def _fit(axes: Axes, points: Sequence[Figure]) -> None:
    ends = [end for point in points for end in (point.value, point.low, point.high) if end is not None]
    room = 0.06 * (max(ends) - min(ends)) or 1.0
    axes.set_ylim(max(0.0, min(ends) - room), min(100.0 + room, max(ends) + room))


def _label_ends(axes: Axes, series: Sequence[_Series], order: dict[str, int]) -> None:
    """The name of each line at its end, for no legend is read as easily."""
    low, high = axes.get_ylim()
    heights = apart([(one.points[-1][1].value - low) / (high - low) for one in series], 0.085, 0.0, 1.0)
    labels = _shortened([one.words for one in series])
    for one, label, height in zip(series, labels, heights, strict=True):
        axes.text(1.02, height, label, color=colour_of(order[one.words]), va="center", fontsize=7,
                  transform=axes.transAxes)  # fmt: skip


def _listed(group: Group, way: str, figure: str) -> Picture:
    """One row below the other, the best at the top."""
    name = f"{way}_{figure}"
    rows = [(row, found) for row in from_best(group)[:_MOST_ROWS] if (found := row.figure(name)) is not None]
    rows.sort(key=lambda pair: pair[1].value)
    labels = _shortened([values_in_words(row, group.keys) for row, _ in rows])

    def draw(axes: Axes) -> None:
        _dots(axes, labels, [point for _, point in rows])
        axes.set_title(DIRECTIONS[way])
        axes.set_xlabel(f"{_at(figure)} (%)")

    return Picture(_name(group, way, figure), _title(way, figure), draw, (COLUMN, 0.75 + 0.17 * len(rows)))


def _of_one_row(group: Group, way: str) -> Picture:
    found = [(figure, group.rows[0].figure(f"{way}_{figure}")) for figure in reversed(_CUTOFFS)]
    points = [(figure, point) for figure, point in found if point is not None]

    def draw(axes: Axes) -> None:
        _dots(axes, [_at(figure) for figure, _ in points], [point for _, point in points])
        axes.set_title(DIRECTIONS[way])
        axes.set_xlabel("queries with a match among the first K (%)")
        axes.set_xlim(0, 100)

    return Picture(_name(group, way), f"{DIRECTIONS[way]}, recall", draw, (COLUMN, 1.4))


def _dots(axes: Axes, labels: Sequence[str], points: Sequence[Figure]) -> None:
    places = range(len(points))
    axes.hlines(places, 0, 1, transform=axes.get_yaxis_transform(), color=GRID, lw=0.6, zorder=0)
    for place, point in zip(places, points, strict=True):
        if point.low is not None and point.high is not None:
            axes.plot([point.low, point.high], [place, place], color=SERIES[0], lw=1.1, alpha=0.55)
    axes.plot([point.value for point in points], places, "o", color=SERIES[0], markersize=4.5, markeredgewidth=0)
    for place, point in zip(places, points, strict=True):
        axes.text(1.02, place, f"{point.value:.1f}", transform=axes.get_yaxis_transform(), va="center", color=INK,
                  fontsize=7)  # fmt: skip
    axes.set_yticks(places, labels)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(-0.6, len(points) - 0.4)


def _shortened(texts: Sequence[str]) -> list[str]:
    """Each without its middle where it is long; the end grows until no two are alike."""
    for kept in range(_HALF_LABEL, max(map(len, texts), default=0) + 1):
        labels = [_without_middle(text, 2 * _HALF_LABEL - kept, kept) for text in texts]
        if len(set(labels)) == len(set(texts)):
            return labels
    return list(texts)


def _without_middle(text: str, first: int, last: int) -> str:
    first = max(first, _LEAST_BEGINNING)
    return text if len(text) <= first + last + 1 else f"{text[:first]}…{text[-last:]}"
