"""The sample of embeddings that a run leaves, and what a picture makes of it: a plane, and similarities."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from xmodal.errors import DataError
from xmodal.retrieval.record import UNREADABLE


@dataclass(frozen=True)
class Sample:
    """n images, each with one of its captions.

    Attributes:
        image: (n, E) embeddings of the images.
        text: (n, E) of the captions; row i of both match.
        similarity: by which they are compared: ``cosine``, ``dot`` or ``euclidean``.
    """

    image: Float[np.ndarray, "n E"]
    text: Float[np.ndarray, "n E"]
    similarity: str


def read_sample(path: Path) -> Sample:
    """Read ``embeddings_<split>.npz``.

    Raises:
        DataError: it is damaged, or something else; nothing in it is executed.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            image, text, similarity = arrays["image"], arrays["text"], str(arrays["similarity"])
        if image.ndim != 2 or image.shape != text.shape or not len(image):
            raise ValueError(f"image is {image.shape}, text is {text.shape}")
        if not (np.isfinite(image).all() and np.isfinite(text).all()):
            raise ValueError("it holds what is no finite number")
    except (*UNREADABLE, KeyError, TypeError, AttributeError) as fault:
        raise DataError(f"{path.name} can't be read ({type(fault).__name__}: {fault})") from fault
    return Sample(image.astype(np.float64), text.astype(np.float64), similarity)


def comparable(sample: Sample) -> tuple[Float[np.ndarray, "n E"], Float[np.ndarray, "n E"]]:
    """Both sides as they are compared: of length one where directions are."""
    if sample.similarity != "cosine":
        return sample.image, sample.text
    return _unit(sample.image), _unit(sample.text)


def similarities(sample: Sample) -> Float[np.ndarray, "n n"]:
    """Of every image (rows) with every caption (columns); the greater, the more alike."""
    image, text = comparable(sample)
    if sample.similarity != "euclidean":
        return image @ text.T
    squares = (image**2).sum(1)[:, None] + (text**2).sum(1)[None] - 2 * image @ text.T
    return -np.sqrt(np.maximum(squares, 0.0))


def principal_plane(vectors: Float[np.ndarray, "m E"]) -> tuple[Float[np.ndarray, "m 2"], tuple[float, float]]:
    """Coordinates on the first two principal components, and the shares of the variance that they hold.

    The sign of a component is arbitrary; here its largest loading is positive.
    """
    centred = vectors - vectors.mean(axis=0)
    _, sizes, components = np.linalg.svd(centred, full_matrices=False)
    plane = np.zeros((2, vectors.shape[1]))
    plane[: len(components[:2])] = components[:2]
    largest = np.abs(plane).argmax(axis=1)
    plane *= np.where(plane[np.arange(2), largest] < 0, -1.0, 1.0)[:, None]
    variance = np.zeros(2)
    total = float((sizes**2).sum())
    variance[: len(sizes[:2])] = sizes[:2] ** 2 / total if total else 0.0
    return centred @ plane.T, (float(variance[0]), float(variance[1]))


def evenly(count: int, most: int) -> Int[np.ndarray, "k"]:
    """At most so many positions, evenly spread."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def _unit(vectors: Float[np.ndarray, "n E"]) -> Float[np.ndarray, "n E"]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)
