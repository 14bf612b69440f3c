"""Photos that were sent: bounded, decoded once, encoded by each index, and then forgotten."""

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from time import perf_counter

from PIL import Image

from xmodal.data.images import read_untrusted
from xmodal.demo.collection import Collection
from xmodal.demo.query import Upload
from xmodal.errors import DataError, XmodalError

MOST_BYTES = 20 * 2**20
MOST_PIXELS = 50_000_000
_PREVIEW = 480  # pixels of the longer side


def taken(sent: str, folder: Path) -> bytes:
    """The content of a file that was sent, which is removed.

    Args:
        sent: the path that the browser says it was given; only one within ``folder`` is opened.

    Raises:
        DataError: another path, a file that is gone, or one that is too large.
    """
    try:
        path = Path(sent).resolve(strict=True)
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            raise DataError("This is no photo that was sent here.")
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"This file is larger than the {MOST_BYTES // 2**20} MiB that are taken.")
        content = path.read_bytes()
        path.unlink(missing_ok=True)
        return content
    except (OSError, ValueError) as error:  # gone; or a name with a NUL
        raise DataError("This photo did not arrive. Send it again.") from error


def encoded(content: bytes, name: str, collections: Sequence[Collection]) -> Upload:
    """Decode a photo, and embed it in each index; where one can't, the reason is kept in its place.

    Raises:
        DataError: it can't be decoded, or has too many pixels.
    """
    image = read_untrusted(content, MOST_PIXELS)
    vectors, faults, seconds = [], [], []
    for collection in collections:
        start = perf_counter()
        try:
            (vector,) = collection.engine.encode_images([image])
            vectors.append(vector)
            faults.append("")
        except XmodalError as fault:
            vectors.append(None)
            faults.append(str(fault))
        seconds.append(perf_counter() - start)
    return Upload(name[:120], _preview(image), tuple(vectors), tuple(faults), tuple(seconds))


def _preview(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((_PREVIEW, _PREVIEW))
    content = BytesIO()
    small.save(content, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
