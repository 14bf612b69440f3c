"""What a search found, for a screen and for programs."""

import logging
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from xmodal.search.engine import Hit, SearchEngine
from xmodal.search.manifest import Target

log = logging.getLogger(__name__)

_WIDE = 100_000  # columns of a table that no screen bounds: one line for each hit


@dataclass(frozen=True)
class Asking:
    """How to search: see ``SearchEngine.search_text``; ``target`` None is the other side of each query."""

    k: int
    target: Target | None
    split: str | None
    corrected: bool | None


@dataclass(frozen=True)
class Answer:
    """One query and what was found for it.

    Attributes:
        kind: ``text`` or ``image``.
        query: the sentence, or the path of the photo.
        target: what was searched.
    """

    kind: str
    query: str
    target: Target
    hits: Sequence[Hit]


def answers(engine: SearchEngine, texts: Sequence[str], images: Sequence[Path], asking: Asking) -> list[Answer]:
    """All sentences, then all photos, each kind encoded and searched in one go.

    Raises:
        XmodalError: see ``SearchEngine.search_text`` and ``search_image``.
    """
    of_texts, of_images = asking.target or "images", asking.target or "captions"
    for target in ([of_texts] if texts else []) + ([of_images] if images else []):  # before anything is encoded
        engine.check(asking.k, target, asking.split, asking.corrected)
    began = time.monotonic()
    options: dict[str, Any] = {"split": asking.split, "corrected": asking.corrected}
    found_texts = engine.search_text(texts, asking.k, target=of_texts, **options) if texts else []
    found_images = engine.search_image(images, asking.k, target=of_images, **options) if images else []
    log.info("%d queries in %.3f s", len(texts) + len(images), time.monotonic() - began)
    return [
        *(Answer("text", text, of_texts, hits) for text, hits in zip(texts, found_texts, strict=True)),
        *(Answer("image", str(image), of_images, hits) for image, hits in zip(images, found_images, strict=True)),
    ]


def as_json(engine: SearchEngine, found: Sequence[Answer]) -> dict[str, Any]:
    """Plain containers: the index, and for each query its hits."""
    return {
        "index": str(engine.folder),
        "similarity": engine.manifest.similarity,
        "results": [
            {
                "kind": answer.kind,
                "query": answer.query,
                "target": answer.target,
                "hits": [hit.as_dict() for hit in answer.hits],
            }
            for answer in found
        ],
    }


def as_tables(found: Sequence[Answer]) -> str:
    """A table for each query, for standard output: as wide as it needs where that is no screen."""
    is_screen = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if is_screen else _WIDE
    text = StringIO()
    console = Console(file=text, width=width, force_terminal=is_screen)
    for answer in found:
        console.print(Text(answer.query, style="bold"))
        console.print(_table(answer))
    return text.getvalue()


def _table(answer: Answer) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right")
    table.add_column("caption" if answer.target == "captions" else "photo", overflow="fold")
    table.add_column("of photo" if answer.target == "captions" else "its first caption", overflow="fold", style="dim")
    for hit in answer.hits:
        found, beside = (hit.caption, hit.file) if answer.target == "captions" else (hit.file, _first(hit.captions))
        table.add_row(str(hit.rank), f"{hit.score:.4f}", Text(found or hit.id), Text(beside or ""))
    return table


def _first(captions: Sequence[str]) -> str:
    return captions[0] if captions else ""
