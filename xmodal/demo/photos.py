"""Photos of the items of an index, made small, by the ids of the items alone."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from threading import Lock

from PIL import Image, ImageDraw

from xmodal.data.images import read_small
from xmodal.demo.collection import Collection
from xmodal.errors import DataError

SIDES = {"small": 360, "large": 960}  # pixels of the longer side
_QUALITY = 82


class Photos:
    """JPEGs of items' photos; the latest ``most_bytes`` are kept.

    Whoever asks names an item, never a file; what is sent was decoded and encoded anew, so that no file that is not a
    photo can leave, and no photo's own metadata does.
    """

    def __init__(self, collections: Sequence[Collection], most_bytes: int = 64 * 2**20) -> None:
        self._collections = collections
        self._most_bytes = most_bytes
        self._kept: OrderedDict[tuple[int, str, str], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def jpeg(self, place: int, item_id: str, side: str) -> bytes | None:
        """None for an item or an index that is not there; a grey tile for a photo that can't be read."""
        if not 0 <= place < len(self._collections) or side not in SIDES:
            return None
        key = (place, item_id, side)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        item = self._collections[place].item(item_id)
        path = None if item is None else self._collections[place].photo(item)
        if path is None:
            return None
        try:
            content = _jpeg(read_small(path, SIDES[side]))
        except DataError:
            return tile()  # and not kept: the photo may come back
        self._keep(key, content)
        return content

    def _keep(self, key: tuple[int, str, str], content: bytes) -> None:
        with self._lock:
            self._bytes += len(content) - len(self._kept.pop(key, b""))
            self._kept[key] = content
            while self._bytes > self._most_bytes:
                _, gone = self._kept.popitem(last=False)
                self._bytes -= len(gone)


@cache
def tile() -> bytes:
    """Shown in place of a photo that can't be read."""
    image = Image.new("RGB", (240, 180), "#8d8d8d")
    draw = ImageDraw.Draw(image)
    draw.line((96, 66, 144, 114), fill="#b5b5b5", width=5)
    draw.line((96, 114, 144, 66), fill="#b5b5b5", width=5)
    return _jpeg(image)


def _jpeg(image: Image.Image) -> bytes:
    content = BytesIO()
    image.save(content, "JPEG", quality=_QUALITY)
    return content.getvalue()
