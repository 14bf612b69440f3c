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
    """A JPEG as a ``data:`` address, with its width and height in pixels; ``name`` is its own within the page."""

    name: str
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
                self._made[path] = _thumbnail(f"photo-{len(self._made) + 1}", _read(path))
            except DataError as fault:
                self.missing[path] = str(fault)
                return None
        return self._made[path]

    @property
    def shown(self) -> list[Thumbnail]:
        """Each once, in the order in which they were asked for first."""
        return list(self._made.values())


def _read(path: Path) -> Image.Image:
    try:
        is_special = path.exists() and not (path.is_file() or path.is_dir())  # a pipe would be waited for, for ever
        if not is_special:
            return read_image(path)
    except (OSError, ValueError) as fault:  # a name that is too long, or holds a NUL
        raise DataError(f"The image {str(path)[:200]!r} can't be read ({type(fault).__name__}).") from fault
    raise DataError(f"The image {path} is no file.")


def _thumbnail(name: str, image: Image.Image) -> Thumbnail:
    image.thumbnail((_SIDE, _SIDE))
    content = BytesIO()
    image.save(content, "JPEG", quality=_QUALITY, optimize=True)
    address = f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
    return Thumbnail(name, address, image.width, image.height)
