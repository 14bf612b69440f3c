"""A sample of the embeddings of an evaluated split, for pictures of their space: ``embeddings_<split>.npz``."""

from pathlib import Path

import numpy as np

from xmodal.atomic import complete_file
from xmodal.callbacks.gallery import spread
from xmodal.callbacks.retrieval import EmbeddedSplit, Retrieved
from xmodal.data.items import Items

_MOST_IMAGES = 500


def write_sample(path: Path, items: Items, found: Retrieved, embedded: EmbeddedSplit, similarity: str) -> None:
    """Write at most 500 images, evenly spread over the split, each with its first caption; images without are left out.

    The file holds ``image`` (n, E) and ``text`` (n, E) in float32, ``image_ids`` (n,), ``captions`` (n,) strings and
    ``similarity``, without pickled objects.

    Raises:
        OSError: the folder is absent or full.
    """
    of_captions = items.caption_images[found.caption_rows]
    rows, first = np.unique(of_captions, return_index=True)  # the first caption of each image
    first_of = dict(zip(rows.tolist(), first.tolist(), strict=True))
    images = np.array([place for place, row in enumerate(found.image_rows) if row in first_of], dtype=np.int64)
    images = spread(images, min(len(images), _MOST_IMAGES))
    captions = np.array([first_of[row] for row in found.image_rows[images].tolist()], dtype=np.int64)
    shown = [items.captions[row] for row in found.caption_rows[captions]]
    with complete_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            image=embedded.image[images].float().cpu().numpy(),
            text=embedded.text[captions].float().cpu().numpy(),
            image_ids=items.image_ids[found.image_rows[images]],
            captions=np.array([caption.text or str(caption.caption_id) for caption in shown], dtype=np.str_),
            similarity=np.array(similarity),
        )
