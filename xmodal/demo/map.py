"""Where embeddings lie, flattened to a plane: what the page draws, and what it says of each point."""

from typing import Any

from xmodal.demo.collection import Collection

_MOST_LETTERS = 140  # of a caption


def points(collection: Collection) -> dict[str, Any]:
    """Columns of equal length: ``x`` and ``y`` in −1 … 1, ``side``, ``number``, ``id``, ``caption`` and ``text``.

    ``caption`` is the place of a caption among its item's, None for a photo.
    """
    found = collection.engine.map_points()
    xy = found.xy - (found.xy.max(axis=0) + found.xy.min(axis=0)) / 2 if len(found.xy) else found.xy
    reach = float(abs(xy).max(initial=1e-9))
    columns: dict[str, Any] = {
        "x": [round(float(x) / reach, 4) for x in xy[:, 0]],
        "y": [round(float(y) / reach, 4) for y in xy[:, 1]],
        "side": list(found.targets),
        "number": [int(number) for number in found.numbers],
        "id": list(found.ids),
        "caption": [],
        "text": [],
    }
    for item_id, target, number in zip(found.ids, found.targets, columns["number"], strict=True):
        item = collection.items.item(item_id)
        place = collection.place_of(item, number) if target == "captions" else None
        columns["caption"].append(place)
        said = item.captions[place or 0] if item.captions else item.id
        columns["text"].append(said[:_MOST_LETTERS])
    return columns
