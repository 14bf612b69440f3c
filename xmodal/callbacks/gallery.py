"""A picture of what was retrieved: queries, ground truth and the top-5 in both directions, hits and misses."""

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from xmodal.callbacks.retrieval import TOP_K, Retrieved
from xmodal.data.images import read_image
from xmodal.data.items import Caption, ImageItem, Items
from xmodal.errors import DataError

_HIT, _MISS, _INK = "#1a7f37", "#c62828", "#222222"
_ROWS_PER_DIRECTION, _COLUMNS = 4, TOP_K + 2
_CELL, _DPI = 184, 80  # pixels of a cell to both sides, and per inch
_TITLE, _HEADING, _LABEL = 0.3, 0.25, 0.12  # height of a line of text, in cells
_MARGIN = 0.04
_WIDTH, _HEIGHT = _COLUMNS, _TITLE + 2 * (_HEADING + _ROWS_PER_DIRECTION)


class Page:
    """What is drawn upon, measured in cells from the upper left; a pair of axes for each cell would take seconds."""

    def __init__(self) -> None:
        self.photos = Image.new("RGBA", (round(_CELL * _WIDTH), round(_CELL * _HEIGHT)), "white")
        inches = (self.photos.width / _DPI, self.photos.height / _DPI)
        self.figure = Figure(figsize=inches, dpi=_DPI, facecolor="none")
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, _WIDTH), ylim=(_HEIGHT, 0), autoscale_on=False)
        self.axes.set_axis_off()

    def photo(self, picture: Image.Image, x: float, y: float, width: float, height: float) -> None:
        small = picture.resize((max(1, round(_CELL * width)), max(1, round(_CELL * height))))
        self.photos.paste(small, (round(_CELL * (x - width / 2)), round(_CELL * (y - height / 2))))

    def frame(self, x: float, y: float, width: float, height: float, color: str) -> None:
        corner = (x - width / 2, y - height / 2)
        self.axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=color, linewidth=3))

    def text(self, x: float, y: float, text: str, size: int, color: str) -> None:
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": size, "color": color}
        self.axes.text(x, y, text, **style, parse_math=False)  # a caption may hold dollar signs

    def save(self, path: Path) -> None:
        canvas = FigureCanvasAgg(self.figure)
        canvas.draw()
        lines = Image.fromarray(np.asarray(canvas.buffer_rgba()))
        Image.alpha_composite(self.photos, lines).convert("RGB").save(path)


@dataclass(frozen=True)
class Cell:
    """A square of the page, in which a photo or a text stands in a frame, above a line for a label."""

    page: Page
    left: float
    top: float

    @property
    def middle(self) -> tuple[float, float]:
        return self.left + 0.5, self.top + (1 - _LABEL) / 2

    @property
    def room(self) -> tuple[float, float]:
        """Width and height that a content may take."""
        return 1 - 2 * _MARGIN, 1 - _LABEL - 2 * _MARGIN


def draw_gallery(items: Items, retrieved: Retrieved, path: Path, title: str) -> Path:
    """Write a PNG with four queries per direction: half of them found at rank 1, half not, where there are both.

    Args:
        items: where photos and captions are; items without a photo are shown by their id.
        retrieved: the evaluated split.
        path: file to write.
        title: first line of the picture.
    """
    page = Page()
    page.text(_WIDTH / 2, _TITLE / 2, title, 14, _INK)
    _image_queries(page, _TITLE, items, retrieved)
    _text_queries(page, _TITLE + _HEADING + _ROWS_PER_DIRECTION, items, retrieved)
    page.save(path)
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


def _image_queries(page: Page, top: float, items: Items, retrieved: Retrieved) -> None:
    _heading(page, top, "image → text: photo, one of its captions, then the top five captions")
    ranks = retrieved.result.ranks["i2t"]
    for cells, query in _rows(page, top + _HEADING, sample_queries(ranks, _ROWS_PER_DIRECTION)):
        row = int(retrieved.image_rows[query])
        _show_image(cells[0], items, row, _INK, f"rank {ranks[query]}")
        for own in np.flatnonzero(items.caption_images == row)[:1]:  # by class, an image without caption has matches
            _show_text(cells[1], _words(items, items.captions[own]), _INK)
        for cell, position in _found(cells, retrieved.captions_of_images[query]):
            caption = items.captions[retrieved.caption_rows[position]]
            _show_text(cell, _words(items, caption), _HIT if retrieved.is_match(row, caption.image) else _MISS)


def _text_queries(page: Page, top: float, items: Items, retrieved: Retrieved) -> None:
    _heading(page, top, "text → image: caption, its photo, then the top five photos")
    ranks = retrieved.result.ranks["t2i"]
    for cells, query in _rows(page, top + _HEADING, sample_queries(ranks, _ROWS_PER_DIRECTION)):
        caption = items.captions[retrieved.caption_rows[query]]
        _show_text(cells[0], _words(items, caption), _INK)
        _show_image(cells[1], items, caption.image, _INK, f"rank {ranks[query]}")
        for cell, position in _found(cells, retrieved.images_of_captions[query]):
            row = int(retrieved.image_rows[position])
            _show_image(cell, items, row, _HIT if retrieved.is_match(row, caption.image) else _MISS)


def _rows(page: Page, top: float, queries: Int[np.ndarray, "Q"]) -> list[tuple[list[Cell], int]]:
    return [
        ([Cell(page, float(column), top + row) for column in range(_COLUMNS)], query)
        for row, query in enumerate(queries.tolist())
    ]


def _found(cells: list[Cell], positions: Int[np.ndarray, "K"]) -> list[tuple[Cell, int]]:
    """A cell for each retrieved item; an approximate index may find fewer than K and says −1 for the rest."""
    return [(cell, int(p)) for cell, p in zip(cells[2:], positions, strict=False) if p >= 0]


def _show_image(cell: Cell, items: Items, row: int, color: str, label: str = "") -> None:
    image = items.images[row]
    if image.path is None:
        _show_text(cell, _with_label(f"image {image.image_id}", image), color)
        return
    try:
        picture = read_image(image.path)
    except DataError:  # photos are only looked at where they are encoded: with features of others they may be absent
        _show_text(cell, f"image {image.image_id}\n(no photo)", color)
        return
    (x, y), scale = cell.middle, min(cell.room[0] / picture.width, cell.room[1] / picture.height)
    width, height = picture.width * scale, picture.height * scale
    cell.page.photo(picture, x, y, width, height)
    cell.page.frame(x, y, width, height, color)
    cell.page.text(x, y + height / 2 + _LABEL / 2, label, 9, _INK)


def _words(items: Items, caption: Caption) -> str:
    """The caption, or else its id and the label of its image."""
    return caption.text or _with_label(str(caption.caption_id), items.images[caption.image])


def _with_label(name: str, image: ImageItem) -> str:
    return name if image.label is None else f"{name} ({image.label})"


def _show_text(cell: Cell, text: str, color: str) -> None:
    cell.page.text(*cell.middle, "\n".join(textwrap.wrap(text, 24)[:7]), 9, color)
    cell.page.frame(*cell.middle, *cell.room, color)


def _heading(page: Page, top: float, text: str) -> None:
    page.text(_WIDTH / 2, top + _HEADING / 2, text, 11, _INK)
