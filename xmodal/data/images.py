"""Photos as RGB, whatever they were stored as, and a check of all of them before any long work."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from os import cpu_count
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.progress import track

from xmodal.data.faults import name_some
from xmodal.data.items import file_digest
from xmodal.errors import DataError

log = logging.getLogger(__name__)
_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_image(path: Path) -> Image.Image:
    """Decode one photo fully, as RGB with its EXIF rotation applied.

    Transparent parts are laid over white, CMYK and grey are converted, 16-bit grey is scaled to 8 bits.

    Raises:
        DataError: naming the file, where it is missing, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return as_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise DataError(f"The image {path} doesn't exist.") from error
    except _UNREADABLE as error:
        raise DataError(f"The image {path} can't be decoded ({error}). Fetch it again or remove its entry.") from error


def check_images(paths: Iterable[Path], memo: Path, progress: bool = True) -> dict[Path, str]:
    """Decode every photo once and return the SHA-256 of each file's content.

    ``memo`` is a file of JSON lines that remembers what was found good by path, size and time of change, so that a
    second call decodes only what is new. Lines are appended whole, so that several runs may share it and a killed run
    loses no more than its last line.

    Raises:
        DataError: one for all photos that are missing or can't be decoded, with counts and names.
    """
    wanted = list(dict.fromkeys(paths))
    stamps = {path: _stamp(path) for path in wanted}
    known = _read_memo(memo)
    digests = {path: known[stamp] for path, stamp in stamps.items() if stamp is not None and stamp in known}
    unseen = [path for path in wanted if stamps[path] is not None and path not in digests]
    broken: list[str] = []
    with _appender(memo) as remember:
        for path, found in zip(unseen, _examined(unseen, progress), strict=True):
            if isinstance(found, DataError):
                broken.append(str(path))
                continue
            digests[path] = found
            remember([*(stamps[path] or ()), found])
    _raise_faults([str(path) for path in wanted if stamps[path] is None], broken, len(wanted))
    return {path: digests[path] for path in wanted}


def as_rgb(image: Image.Image) -> Image.Image:
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


def _examined(paths: list[Path], progress: bool) -> Iterator[str | DataError]:
    """Digest of each photo, or the error of one that can't be decoded, in order."""
    pool = ThreadPoolExecutor(cpu_count() or 1)  # PIL releases the GIL while it decodes
    try:
        results = pool.map(_examine, paths)
        hidden = not progress or not paths
        console = Console(stderr=True)
        yield from track(results, "Checking images", total=len(paths), disable=hidden, console=console)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C doesn't wait for the rest


def _examine(path: Path) -> str | DataError:
    try:
        read_image(path)
        return file_digest(path)
    except DataError as error:
        return error


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
    memo.parent.mkdir(parents=True, exist_ok=True)
    with memo.open("ab", buffering=0) as file:

        def remember(record: list[str | int]) -> None:
            # the line break in front ends what a killed run may have left unfinished
            file.write(b"\n" + json.dumps(record).encode() + b"\n")

        yield remember


def _raise_faults(missing: list[str], broken: list[str], total: int) -> None:
    lines = [f"  - missing: {name_some(missing)}"] if missing else []
    lines += [f"  - can't be decoded (truncated, or no image): {name_some(broken)}"] if broken else []
    if lines:
        raise DataError(
            "\n".join([f"{len(missing) + len(broken)} of {total} images can't be used:", *lines])
            + "\nFetch them again, or remove their entries from the data set's file."
        )
