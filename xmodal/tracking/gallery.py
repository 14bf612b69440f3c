"""What was retrieved, as a table of W&B with pictures: query, ground truth and top five, found at which rank."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from xmodal.data.images import read_image
from xmodal.errors import DataError
from xmodal.tracking.staging import staged_with_run
from xmodal.tracking.wandb_run import WandbRun

_LONGEST_SIDE = 224  # pixels
_HIT, _MISS = "✓", "✗"

Query = dict[str, Any]  # as `retrieved_<split>.json` has it


def log_retrieved(logger: WandbRun, role: str, ways: Mapping[str, Sequence[Query]]) -> None:
    """Log ``i2t/test_retrieved`` and the same of every other direction.

    Args:
        role: the split.
        ways: the queries of each direction, as they stand in ``retrieved_<split>.json``.
    """
    run = logger.experiment
    with staged_with_run(run):
        for way, queries in ways.items():
            if queries:
                run.log({f"{way}/{role}_retrieved": retrieved_table(queries)})


def retrieved_table(queries: Sequence[Query]) -> Any:
    """A row per query: its kind, rank and id, itself, its ground truth, and what was found, with ✓ or ✗ and score.

    Photos are small copies. Of several captions that are true, all are shown; of several photos the first. A photo that
    can't be read leaves its cell empty; where a column has no photo at all, it has ids.
    """
    import wandb

    longest = max(len(query["top"]) for query in queries)
    rows = [_Row(query, longest) for query in queries]
    found = [f"top {place}" for place in range(1, longest + 1)]
    table = wandb.Table(columns=["kind", "rank", "id", "query", "ground truth", *found])
    photos = _Photos()
    has_photos = {
        side: any(photos.of(item) is not None for row in rows for item in row.items(side)) for side in _Row.SIDES
    }
    for row in rows:
        table.add_data(*row.cells(photos, has_photos))
    return table


class _Photos:
    """Small copies of photos, each read once."""

    def __init__(self) -> None:
        self._read: dict[str, Image.Image | None] = {}

    def of(self, item: Mapping[str, Any]) -> Image.Image | None:
        path = item["path"]
        if path is not None and path not in self._read:
            self._read[path] = _small(Path(path))
        return None if path is None else self._read[path]


class _Row:
    """One query."""

    SIDES = ("query", "found")

    def __init__(self, query: Query, longest: int) -> None:
        self._query = query
        self._top = [*query["top"], *[None] * (longest - len(query["top"]))]

    def items(self, side: str) -> list[dict[str, Any]]:
        if side == "query":
            return [self._query["query"]]
        return [*self._query["truth"], *(one["item"] for one in self._query["top"])]

    def cells(self, photos: _Photos, has_photos: Mapping[str, bool]) -> list[Any]:
        asked = _shown(self._query["query"], "", photos, has_photos["query"])
        found = [self._found(one, photos, has_photos["found"]) for one in self._top]
        truth = self._truth(photos, has_photos["found"])
        return [self._query["kind"], self._query["rank"], self._query["query"]["id"], asked, truth, *found]

    def _truth(self, photos: _Photos, has_photos: bool) -> Any:
        truth = self._query["truth"]
        if has_photos:
            return _shown(truth[0], "", photos, True) if truth else None
        return "\n".join(_words(item) for item in truth)

    def _found(self, one: Mapping[str, Any] | None, photos: _Photos, has_photos: bool) -> Any:
        if one is None:
            return None
        return _shown(one["item"], f"{_HIT if one['match'] else _MISS} {one['score']:.3f}", photos, has_photos)


def _shown(item: Mapping[str, Any], said: str, photos: _Photos, has_photos: bool) -> Any:
    """A photo with what is said of it, or words after it."""
    import wandb

    if not has_photos:
        return f"{said} {_words(item)}".strip()
    photo = photos.of(item)
    return None if photo is None else wandb.Image(photo, caption=f"{said} {item['id']}".strip(), file_type="jpg")


def _words(item: Mapping[str, Any]) -> str:
    """The caption, or else the id and the label."""
    label = f" ({item['label']})" if item["label"] is not None else ""
    return item["text"] or f"{item['id']}{label}"


def _small(path: Path) -> Image.Image | None:
    try:
        photo = read_image(path)
    except DataError:  # with features of others, photos may be absent
        return None
    photo.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    return photo
