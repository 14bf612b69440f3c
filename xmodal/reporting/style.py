"""How figures look: legible in one column of a paper, for colour-blind readers, in print and on a dark page."""

from collections.abc import Sequence
from typing import Any

COLUMN = 3.25  # inches: one column of a two-column page
INK, MUTED, GRID, PAPER = "#1d2126", "#69717a", "#e3e6e9", "#ffffff"
# M. Okabe and K. Ito, Color Universal Design, 2008, in the order in which neighbours differ most; its yellow, which
# can't be seen on white, is left out, and its light tones are darkened
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b8568f", "#c98a00", "#3d9bd1")
MARKERS = ("o", "s", "^", "D", "v", "P")

# The page gives these other values on a dark ground (templates/report.css)
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)
}

RC: dict[Any, Any] = {  # matplotlib types their names
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so that pictures are the same everywhere
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.6,
    "axes.grid": False,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,  # names may hold dollar signs
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "figure.facecolor": PAPER,
    "figure.dpi": 72,
    "figure.constrained_layout.w_pad": 0.02,
    "figure.constrained_layout.h_pad": 0.02,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # publishers refuse Type 3
    "svg.fonttype": "none",
}


def colour_of(number: int) -> str:
    """Of a series; the seventh has that of the first."""
    return SERIES[number % len(SERIES)]


def marker_of(number: int) -> str:
    return MARKERS[number % len(MARKERS)]


def apart(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights of labels near to what they name, at least ``gap`` from one another where they find room between ``low``
    and ``high``."""
    order = sorted(range(len(heights)), key=lambda i: (heights[i], i))
    gap = min(gap, (high - low) / max(1, len(heights) - 1))
    placed = [0.0] * len(heights)
    below = low - gap
    for i in order:
        below = placed[i] = max(heights[i], below + gap)
    above = high + gap
    for i in reversed(order):
        above = placed[i] = min(placed[i], above - gap)
    return placed
