"""Photos made small enough to be carried by a page."""

import base64
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from PIL import Image

from xmodal.data.images import read_image
from xmodal.errors import DataError

_SIDE = 208  # pixels of the longer side
_QUALITY = 74


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG as a ``data:`` address, with its width and height in pixels."""

    address: str
    width: int
    height: int


@dataclass
class Thumbnails:
    """Each photo is read once.

    Attributes:
        missing: photos that are not there any more, or can't be read.
    """

    missing: dict[Path, str] = field(default_factory=dict)
    _made: dict[Path, Thumbnail] = field(default_factory=dict)

    def of(self, path: Path | None) -> Thumbnail | None:
        """None for a photo that can't be shown."""
        if path is None or path in self.missing:
            return None
        if path not in self._made:
            try:
                self._made[path] = _thumbnail(read_image(path))
            except DataError as fault:
                self.missing[path] = str(fault)
                return None
        return self._made[path]


def _thumbnail(image: Image.Image) -> Thumbnail:
    image.thumbnail((_SIDE, _SIDE))
    content = BytesIO()
    image.save(content, "JPEG", quality=_QUALITY, optimize=True)
    address = f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
    return Thumbnail(address, image.width, image.height)
