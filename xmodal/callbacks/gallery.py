"""A picture of what was retrieved: queries, ground truth and the top-5 in both directions, hits and misses."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure

from xmodal.callbacks.retrieval import TOP_K, Retrieved
from xmodal.data.images import read_image
from xmodal.data.items import Caption, ImageItem, Items
from xmodal.errors import DataError

_HIT, _MISS, _INK = "#1a7f37", "#c62828", "#222222"
_ROWS_PER_DIRECTION = 4


def draw_gallery(items: Items, retrieved: Retrieved, path: Path, title: str) -> Path:
    """Write a PNG with four queries per direction: half of them found at rank 1, half not, where there are both.

    Args:
        items: where photos and captions are; items without a photo are shown by their id.
        retrieved: the evaluated split.
        path: file to write.
        title: first line of the picture.
    """
    figure = Figure(figsize=(2.3 * (TOP_K + 2), 2.3 * 2 * _ROWS_PER_DIRECTION), layout="constrained")
    figure.suptitle(title, fontsize=14, parse_math=False)
    halves: Any = figure.subfigures(2, 1)
    top, bottom = halves
    _image_queries(top, items, retrieved)
    _text_queries(bottom, items, retrieved)
    figure.savefig(path, dpi=80)
    return path


def sample_queries(ranks: Int[np.ndarray, "Q"], count: int) -> Int[np.ndarray, "count"]:
    """Positions of ``count`` queries, evenly spread over the split: half with rank 1, half with a worse rank."""
    hits, misses = np.flatnonzero(ranks == 1), np.flatnonzero(ranks > 1)
    of_hits = min(len(hits), max(count // 2, count - len(misses)))
    chosen = [spread(hits, of_hits), spread(misses, min(len(misses), count - of_hits))]
    return np.concatenate(chosen)


def spread(positions: Int[np.ndarray, "P"], count: int) -> Int[np.ndarray, "count"]:
    """``count`` of the positions, evenly spread, the first and the last among them; at most as many as there are."""
    return positions[np.linspace(0, len(positions) - 1, count).astype(np.int64)] if count else positions[:0]


def _image_queries(figure: Any, items: Items, retrieved: Retrieved) -> None:
    figure.suptitle("image → text: photo, one of its captions, then the top five captions", fontsize=11)
    ranks = retrieved.result.ranks["i2t"]
    for axes, query in _rows_of_axes(figure, sample_queries(ranks, _ROWS_PER_DIRECTION)):
        row = int(retrieved.image_rows[query])
        _show_image(axes[0], items, row, _INK, f"rank {ranks[query]}")
        for own in np.flatnonzero(items.caption_images == row)[:1]:  # by class, an image without caption has matches
            _show_text(axes[1], _words(items, items.captions[own]), _INK)
        for axis, position in _found(axes, retrieved.captions_of_images[query]):
            caption = items.captions[retrieved.caption_rows[position]]
            _show_text(axis, _words(items, caption), _HIT if retrieved.is_match(row, caption.image) else _MISS)


def _text_queries(figure: Any, items: Items, retrieved: Retrieved) -> None:
    figure.suptitle("text → image: caption, its photo, then the top five photos", fontsize=11)
    ranks = retrieved.result.ranks["t2i"]
    for axes, query in _rows_of_axes(figure, sample_queries(ranks, _ROWS_PER_DIRECTION)):
        caption = items.captions[retrieved.caption_rows[query]]
        _show_text(axes[0], _words(items, caption), _INK)
        _show_image(axes[1], items, caption.image, _INK, f"rank {ranks[query]}")
        for axis, position in _found(axes, retrieved.images_of_captions[query]):
            row = int(retrieved.image_rows[position])
            _show_image(axis, items, row, _HIT if retrieved.is_match(row, caption.image) else _MISS)


def _found(axes: Any, positions: Int[np.ndarray, "K"]) -> list[tuple[Any, int]]:
    """An axis for each retrieved item; an approximate index may find fewer than K and says −1 for the rest."""
    return [(axis, int(p)) for axis, p in zip(axes[2:], positions, strict=False) if p >= 0]


def _rows_of_axes(figure: Any, queries: Int[np.ndarray, "Q"]) -> list[tuple[Any, int]]:
    grid = figure.subplots(_ROWS_PER_DIRECTION, TOP_K + 2, squeeze=False)
    for axis in grid.flat:
        axis.set_axis_off()
    return list(zip(grid, queries.tolist(), strict=False))


def _show_image(axis: Any, items: Items, row: int, color: str, label: str = "") -> None:
    image = items.images[row]
    if image.path is None:
        _show_text(axis, _with_label(f"image {image.image_id}", image), color)
        return
    try:
        picture = read_image(image.path)
    except DataError:  # photos are only looked at where they are encoded: with features of others they may be absent
        _show_text(axis, f"image {image.image_id}\n(no photo)", color)
        return
    axis.imshow(picture)
    _frame(axis, color, label)


def _words(items: Items, caption: Caption) -> str:
    """The caption, or else its id and the label of its image."""
    return caption.text or _with_label(str(caption.caption_id), items.images[caption.image])


def _with_label(name: str, image: ImageItem) -> str:
    return name if image.label is None else f"{name} ({image.label})"


def _show_text(axis: Any, text: str, color: str) -> None:
    wrapped = "\n".join(textwrap.wrap(text, 24)[:7])
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9, "color": color, "parse_math": False}
    axis.text(0.5, 0.5, wrapped, transform=axis.transAxes, **style)  # a caption may hold dollar signs
    _frame(axis, color, "")


def _frame(axis: Any, color: str, label: str) -> None:
    axis.set_axis_on()
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel(label, fontsize=9)
    for spine in axis.spines.values():
        spine.set(color=color, linewidth=3)
