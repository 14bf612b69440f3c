"""Photos as RGB, whatever they were stored as, and a check of all of them before any long work."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from os import cpu_count
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.progress import track

from xmodal.data.faults import name_some
from xmodal.data.full_disk import told_where_full
from xmodal.errors import DataError

_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError)

PHOTO_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def read_image(path: Path) -> Image.Image:
    """Decode one photo fully, as RGB with its EXIF rotation applied.

    Transparent parts are laid over white, CMYK and grey are converted, 16-bit grey is scaled to 8 bits.

    Raises:
        DataError: naming the file, where it is missing, unreadable, truncated or no image.
    """
    try:
        return _decoded(_content(path))
    except _UnusableError as fault:
        raise DataError(f"The image {path} {fault}. Fetch it again or remove its entry.") from fault


def read_untrusted(content: bytes, most_pixels: int) -> Image.Image:
    """Decode a photo that a stranger sent, as ``read_image`` does.

    Its size is read from its header and judged before a pixel of it is decoded. Only formats of photos are tried:
    others (PostScript …) are read by programs of their own.

    Raises:
        DataError: a sentence for the one who sent it.
    """
    try:
        return _decoded(_not_empty(content), formats=PHOTO_FORMATS, most_pixels=most_pixels)
    except _UnusableError as fault:
        raise DataError(f"This photo {fault}. Send another: JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF.") from fault


def read_small(path: Path, side: int) -> Image.Image:
    """One photo, no side of it longer than ``side``; JPEG is decoded at a smaller scale right away.

    Raises:
        DataError: as ``read_image``; also for what is no plain file, such as a pipe, which would never end.
    """
    try:
        if path.exists() and not path.is_file():
            raise _UnusableError("is no file")
        image = _decoded(_content(path), small_side=2 * side)
    except (_UnusableError, OSError, ValueError) as fault:  # a name that is too long, or holds a NUL
        raise DataError(f"The image {str(path)[:200]!r} {fault}.") from fault
    image.thumbnail((side, side))
    return image


@dataclass(frozen=True)
class Examined:
    """What a look at photos found: the SHA-256 of the content of each good file, and why each other one is none."""

    digests: dict[Path, str]
    faults: dict[Path, str]  # "doesn't exist", "can't be decoded (…)" …


def check_images(paths: Iterable[Path], memo: Path, progress: bool = True) -> dict[Path, str]:
    """Decode every photo once and return the SHA-256 of each file's content; see ``examine_images``.

    Raises:
        DataError: one for all photos that are missing or can't be decoded, with counts and names.
    """
    found = examine_images(paths, memo, progress)
    if found.faults:
        raise DataError(
            f"{len(found.faults)} of {len(found.faults) + len(found.digests)} images can't be used:\n"
            f"{listed_faults((str(path), fault) for path, fault in found.faults.items())}\n"
            "Fetch them again, or remove their entries from the data set's file; or type data.on_error=skip to leave "
            "them out with their captions: with train.py, of every later figure of the run too; with xmodal evaluate "
            "and xmodal extract, of that call alone."
        )
    return found.digests


def examine_images(paths: Iterable[Path], memo: Path, progress: bool = True) -> Examined:
    """Decode every photo once, with as many threads as there are cores.

    JPEG photos are decoded at their smallest scale, which reads every byte of them all the same. ``memo`` is a file of
    JSON lines that remembers what was found good by path, size and time of change, so that a second call decodes only
    what is new. Lines are appended whole, so that several runs may share it and a killed run loses no more than its
    last line.

    Raises:
        XmodalError: no space is left for ``memo``.
    """
    wanted = list(dict.fromkeys(paths))
    stamps = {path: _stamp(path) for path in wanted}
    known = _read_memo(memo)
    digests = {path: known[stamp] for path, stamp in stamps.items() if stamp is not None and stamp in known}
    unseen = [path for path in wanted if path not in digests]
    faults: dict[Path, str] = {}
    with _appender(memo) as remember:
        for path, found in zip(unseen, _examined(unseen, progress), strict=True):
            if isinstance(found, _UnusableError):
                faults[path] = str(found)
                continue
            digests[path] = found
            if (stamp := stamps[path]) is not None:
                remember([*stamp, found])
    return Examined({path: digests[path] for path in wanted if path in digests}, faults)


def listed_faults(faults: Iterable[tuple[str, str]]) -> str:
    """A line for each kind of fault, with its count and the first few places; from pairs of place and fault."""
    by_kind: dict[str, list[str]] = defaultdict(list)
    for place, fault in faults:
        by_kind[fault.partition(" (")[0]].append(place)
    return "\n".join(f"  - {kind}: {name_some(files)}" for kind, files in sorted(by_kind.items()))


class _UnusableError(Exception):
    """Why a file is no photo that can be used."""


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise _UnusableError("doesn't exist") from error
    except IsADirectoryError as error:
        raise _UnusableError("is a folder") from error
    except OSError as error:
        raise _UnusableError(f"can't be read ({error.strerror})") from error
    return _not_empty(content)


def _not_empty(content: bytes) -> bytes:
    if not content:
        raise _UnusableError("is empty (0 bytes)")
    return content


def _decoded(
    content: bytes,
    small_side: int | None = None,
    formats: tuple[str, ...] | None = None,
    most_pixels: int | None = None,
) -> Image.Image:
    """The photo as RGB; JPEG at the least scale (down to an eighth) at which its sides keep ``small_side`` pixels."""
    try:
        with Image.open(BytesIO(content), formats=formats) as image:  # reads its header alone
            if most_pixels is not None and image.width * image.height > most_pixels:
                raise _UnusableError(_too_large(image, most_pixels))
            if small_side is not None:
                image.draft(None, (small_side, small_side))
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return as_rgb(image)
    except Image.DecompressionBombError as error:  # so large that PIL opens it no further than to its size
        raise _UnusableError(_far_too_large(most_pixels)) from error
    except _UNREADABLE as error:
        raise _UnusableError(f"can't be decoded ({_reason(error)})") from error


def _too_large(image: Image.Image, most_pixels: int) -> str:
    size = f"{image.width:,} × {image.height:,} pixels"
    return f"has {size}, more than the {most_pixels / 1e6:,.0f} million that are taken"


def _far_too_large(most_pixels: int | None) -> str:
    most = 2 * (Image.MAX_IMAGE_PIXELS or 0) if most_pixels is None else most_pixels
    return f"has far more than the {most / 1e6:,.0f} million pixels that are taken"


def _reason(error: Exception) -> str:
    """PIL names the object in memory that it was given, which says nothing to a user."""
    return "no image in a known format" if isinstance(error, UnidentifiedImageError) else str(error)


def as_rgb(image: Image.Image) -> Image.Image:
    """The photo as RGB, over white where it is transparent; itself where it is RGB already."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _SIXTEEN_BITS:  # convert("RGB") would clip everything above 255 to white
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey of 16 bits, 0 … 65,535, to 0 … 255."""
    return (values.astype(np.int64).clip(0, 65535) // 257).astype(np.uint8)


Stamp = tuple[str, int, int]


def _stamp(path: Path) -> Stamp | None:
    """What changes when a file changes: (path, size, time of change in ns); None where there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (str(path.absolute()), status.st_size, status.st_mtime_ns) if path.is_file() else None


def _examined(paths: list[Path], progress: bool) -> Iterator[str | _UnusableError]:
    """Digest of each photo, or what is wrong with one that can't be used, in order."""
    pool = ThreadPoolExecutor(cpu_count() or 1)  # PIL releases the GIL while it decodes
    try:
        results = pool.map(_examine, paths)
        hidden = not progress or not paths
        console = Console(stderr=True)
        yield from track(results, "Checking images", total=len(paths), disable=hidden, console=console)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C doesn't wait for the rest


def _examine(path: Path) -> str | _UnusableError:
    try:
        content = _content(path)
        _decoded(content, small_side=1)
        return hashlib.sha256(content).hexdigest()
    except _UnusableError as fault:
        return fault


def _read_memo(memo: Path) -> dict[Stamp, str]:
    known: dict[Stamp, str] = {}
    if not memo.is_file():
        return known
    for line in memo.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            path, size, changed, digest = json.loads(line)
            known[(path, size, changed)] = digest
        except (ValueError, TypeError):
            continue  # the last line of a run that was killed
    return known


@contextmanager
def _appender(memo: Path) -> Iterator[Callable[[list[str | int]], None]]:
    """A function that appends one record; each write is one whole line, so that runs side by side don't mix theirs."""
    with told_where_full(memo.parent, "paths.cache_dir"):
        memo.parent.mkdir(parents=True, exist_ok=True)
        file = memo.open("ab", buffering=0)
    with file:

        def remember(record: list[str | int]) -> None:
            # the line break in front ends what a killed run may have left unfinished
            with told_where_full(memo.parent, "paths.cache_dir"):
                file.write(b"\n" + json.dumps(record).encode() + b"\n")

        yield remember
