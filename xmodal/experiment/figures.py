"""Figures of an evaluation under the names of ``metrics.json``, its record of every query, and the table of a run."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from xmodal.retrieval.evaluate import RetrievalResult
from xmodal.retrieval.record import EvaluationRecord

LOW, HIGH = "_low", "_high"
_WIDTH_OF_FILES = 140  # of output that goes to no terminal
_COLUMNS = {"R1": "R@1", "R5": "R@5", "R10": "R@10", "medR": "medR", "meanR": "meanR", "mAP": "mAP"}
_WITH_INTERVAL = ("R1", "R5", "R10", "mAP")
_DIRECTIONS = {
    "i2t": "image → text",
    "t2i": "text → image",
    "i2i": "image → image",
    "t2t": "text → text",
}


def flat_figures(name: str, result: RetrievalResult) -> dict[str, float]:
    """``{"test/i2t_R1": 18.0, …, "test/i2t_R1_low": 15.7, "test/i2t_R1_high": 20.4, …}`` for ``name="test"``.

    Args:
        name: the split, with the protocol's suffix where it isn't the plain one: ``test``, ``test_folds5`` …
        result: its intervals, where there are any, follow the figures. (``result.reranked`` is one by itself, and has
            a name of its own: ``test_querybank``.)

    Returns:
        Figures rounded to five decimals, as ``metrics.json`` has them.
    """
    figures = dict(result.metrics)
    for figure, (low, high) in result.intervals.items():
        figures |= {figure + LOW: low, figure + HIGH: high}
    return {f"{name}/{figure}": round(float(value), 5) for figure, value in figures.items()}


def record_of(
    name: str,
    data_name: str,
    similarity: str,
    result: RetrievalResult,
    image_ids: np.ndarray,
    content: str | None = None,
) -> EvaluationRecord:
    """What is kept of every query of an evaluation whose images were known by their rows.

    Args:
        name: as for ``flat_figures``.
        data_name: of the data set, as in ``data.name``.
        similarity: what embeddings were compared by.
        result: of ``evaluate_retrieval`` on rows as ids.
        image_ids: (all images of the data set,) the id that it gave to the image of each row.
        content: digest of the images and captions that were evaluated.
    """
    queries = {way: replace(side, groups=image_ids[side.groups]) for way, side in result.queries.items()}
    return EvaluationRecord(name=name, data_name=data_name, similarity=similarity, queries=queries, content=content)


def console() -> Console:
    """For the table and what goes with it; output that goes to no terminal is wide enough for all of it."""
    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else _WIDTH_OF_FILES)


def figures_table(figures: Mapping[str, float]) -> Table:
    """The main figures of every evaluation, a row per direction, its 95 % intervals in a dim row below."""
    splits = dict.fromkeys(name.rpartition("/")[0] for name in figures)
    shown = [split for split in splits if f"{split}/i2t_R1" in figures]
    has_intervals = any(f"{split}/i2t_R1{LOW}" in figures for split in shown)
    # without borders it fits into 80 columns, intervals and all
    table = Table(title="Retrieval (R@K and mAP in percent)", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.caption = "below a figure: its 95 % interval" if has_intervals else None
    table.add_column("split", overflow="fold")
    table.add_column("direction", no_wrap=True)
    for heading in (*_COLUMNS.values(), "rsum"):
        table.add_column(heading, justify="right", no_wrap=True)
    for split in shown:
        for row, style in _rows(split, figures):
            table.add_row(*row, style=style)
    return table


def _rows(split: str, figures: Mapping[str, float]) -> Iterator[tuple[list[str], str]]:
    """Cells and style of each row of one evaluation."""
    for way, words in _DIRECTIONS.items():
        if f"{split}/{way}_R1" not in figures:
            continue
        rsum = [f"{split}/rsum"] if way == "i2t" else []  # of both directions: once
        names = [f"{split}/{way}_{column}" for column in _COLUMNS] + rsum
        yield [split, words, *(f"{figures[name]:.1f}" if name in figures else "" for name in names)], ""
        with_interval = [f"{split}/{way}_{column}" for column in _WITH_INTERVAL] + rsum
        intervals = [_interval(name, figures) if name in with_interval else "" for name in names]
        if any(intervals):
            yield ["", "", *intervals], "dim"


def _interval(name: str, figures: Mapping[str, float]) -> str:
    low, high = figures.get(name + LOW), figures.get(name + HIGH)
    if low is None or high is None:
        return ""
    digits = 0 if name.endswith("/rsum") else 1
    return f"{low:.{digits}f}–{high:.{digits}f}"
