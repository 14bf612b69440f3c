"""FAISS indexes of an evaluated split as files, with the ids of what they hold."""

import json
from pathlib import Path

from xmodal.atomic import complete_file
from xmodal.callbacks.retrieval import EmbeddedSplit, Retrieved
from xmodal.data.items import Items
from xmodal.retrieval.index import Index


def write_indexes(
    folder: Path, index: Index, items: Items, found: Retrieved, embedded: EmbeddedSplit, similarity: str
) -> None:
    """Write ``images.faiss``, ``captions.faiss`` and ``ids.json``: row i of an index is item i of its list of ids.

    Raises:
        OSError: the folder is absent or full.
    """
    folder.mkdir(exist_ok=True)
    for name, vectors in (("images", embedded.image), ("captions", embedded.text)):
        with complete_file(folder / f"{name}.faiss") as partial:
            index.build(vectors.cpu().numpy(), similarity).write(partial)
    ids = {
        "similarity": similarity,
        "images": [items.images[row].image_id for row in found.image_rows],
        "captions": [items.captions[row].caption_id for row in found.caption_rows],
    }
    with complete_file(folder / "ids.json") as partial:
        partial.write_text(json.dumps(ids), encoding="utf-8")
