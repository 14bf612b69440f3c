"""At which ranks the first match of a query was found: a histogram over bins that grow as ranks do."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes

from xmodal.reporting.groups import DIRECTIONS, Group
from xmodal.reporting.names import slug
from xmodal.reporting.pictures import Picture, Plate
from xmodal.reporting.ranking import from_best, which_run
from xmodal.reporting.runs import Run
from xmodal.reporting.style import COLUMN, MUTED, SERIES

_NEAR = 10


def rank_plates(group: Group) -> Iterator[Plate]:
    """Of the best run that keeps its queries."""
    run = next((run for row in from_best(group) for run in row.runs if run.evaluation is not None), None)
    if run is None or run.evaluation is None:
        return
    caption = (
        f"Rank of the first match of every query, of {which_run(group, run)}. Bars end at the rank below them; the "
        "solid ones are found at rank 1, the lighter ones make up R@10, the grey ones are missed. The gallery differs "
        "in size between directions."
    )
    yield Plate(
        "ranks", group.title, "Ranks", caption, tuple(_picture(group, run, way) for way in run.evaluation.queries)
    )


def upper_ends(largest: int) -> list[int]:
    """1, 2, 5, 10, 20, 50 … up to the first that reaches the largest rank."""
    ends = [1]
    while ends[-1] < largest:
        leading = int(str(ends[-1])[0])
        ends.append(ends[-1] * 5 // 2 if leading == 2 else ends[-1] * 2)
    return ends


def shares(ranks: Int[np.ndarray, "Q"], ends: list[int]) -> list[float]:
    """Percent of the ranks that lie above one end and up to the next."""
    up_to = [100.0 * float((ranks <= end).mean()) for end in ends]
    return [after - before for before, after in zip([0.0, *up_to], up_to, strict=False)]


def _picture(group: Group, run: Run, way: str) -> Picture:
    assert run.evaluation is not None
    side = run.evaluation.queries[way]
    ranks = side.ranks[side.matched]

    def draw(axes: Axes) -> None:
        ends = upper_ends(int(ranks.max(initial=1)))
        heights = shares(ranks, ends)
        for place, (end, height) in enumerate(zip(ends, heights, strict=True)):
            colour, alpha = (SERIES[0], 1.0 if end == 1 else 0.55) if end <= _NEAR else (MUTED, 0.4)
            axes.bar(place, height, width=0.86, color=colour, alpha=alpha, lw=0)
            if height:
                axes.text(place, height + 0.01 * max(heights), _percent(height), ha="center", va="bottom", fontsize=6.5)
        axes.set_xticks(range(len(ends)), [_short(end) for end in ends])
        axes.set_yticks([])
        axes.margins(y=0.1)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="x", length=0)
        axes.set_title(DIRECTIONS[way])
        axes.set_title(_said(ranks), loc="right", fontsize=7, fontweight="normal")
        axes.set_xlabel("rank of the first match, up to (above: % of queries)")

    return Picture(f"{slug(group.title)}_ranks_{way}", f"{DIRECTIONS[way]}, ranks of all queries", draw, (COLUMN, 1.9))


def _said(ranks: Int[np.ndarray, "Q"]) -> str:
    return f"{len(ranks):,} queries, median rank {np.median(ranks):g}"


def _percent(share: float) -> str:
    return f"{share:.0f}" if share >= 9.95 else f"{share:.1f}"


def _short(number: int) -> str:
    """``500``, ``2k``, ``50k``: ten of them stand side by side."""
    return f"{number // 1000}k" if number >= 1000 else str(number)
