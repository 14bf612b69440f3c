"""Data sets in Karpathy's JSON: Flickr8k, Flickr30k, COCO, and the built-in scenes.

Schema: A. Karpathy and L. Fei-Fei, Deep Visual-Semantic Alignments for Generating Image Descriptions, CVPR 2015.
"""

import gzip
import json
import logging
import zlib
from pathlib import Path
from typing import Any

from xmodal.data.faults import Faults
from xmodal.data.items import Caption, ImageItem, Items
from xmodal.errors import ConfigError, DataError
from xmodal.tokens import tokenize

FILE_NAMES = ("dataset.json", "dataset.json.gz")
CHOICES = {"on_empty_caption": ("error", "drop"), "on_captionless": ("error", "keep")}
log = logging.getLogger(__name__)


class KarpathyData:
    """Images and captions of ``root/dataset.json`` (or ``.json.gz``), photos under ``root/image_folder``.

    ``imgid`` and ``sentid`` become the ids (the position where a file has none), ``filepath`` is a folder below
    ``image_folder``. Published files are dirty, so odd spaces, capitals, empty tokens and repeated captions pass;
    the text of a caption is ``raw``, or its tokens where ``raw`` has no words. Without the folder of photos the data
    set is text alone.

    Args:
        name: what reports and feature files call the data set.
        root: folder of the data set.
        file: name of the JSON file below ``root``, or an absolute path; None takes whichever of the usual two exists.
        image_folder: folder of the photos below ``root``.
        on_empty_caption: ``error``, or ``drop`` a caption without a single word (the count is logged).
        on_captionless: ``error``, or ``keep`` an image without captions in the gallery.
    """

    def __init__(
        self,
        name: str,
        root: str | Path,
        file: str | None = None,
        image_folder: str = "images",
        on_empty_caption: str = "error",
        on_captionless: str = "error",
    ) -> None:
        faults = _bad_choice("data.on_empty_caption", on_empty_caption, CHOICES["on_empty_caption"])
        faults += _bad_choice("data.on_captionless", on_captionless, CHOICES["on_captionless"])
        if faults:
            raise ConfigError(faults)
        self.name = name
        self.root = Path(root)
        self.file = file
        self.image_folder = image_folder
        self.on_empty_caption = on_empty_caption
        self.on_captionless = on_captionless

    @property
    def json_path(self) -> Path:
        """The JSON file: the one that was named, else the first of the usual names that exists."""
        candidates = [self.root / name for name in ([self.file] if self.file else FILE_NAMES)]
        return next((path for path in candidates if path.is_file()), candidates[0])

    def missing(self) -> list[str]:
        """Sentences about what has to be there before loading and isn't; empty where all is well."""
        if not self.root.is_dir():
            return [
                f"The folder of the data set {self.name} doesn't exist: {self.root}. Put {FILE_NAMES[0]} and "
                f"{self.image_folder}/ there, or type where they are: data.root=/path/to/{self.name}."
            ]
        if not self.json_path.is_file():
            expected = self.file or " or ".join(FILE_NAMES)
            found = ", ".join(sorted(path.name for path in self.root.iterdir())[:8]) or "nothing"
            return [
                f"The data set {self.name} has no {expected} in {self.root} (found there: {found}). "
                "Put it there, or name it: data.file=name.json."
            ]
        return []

    def load(self) -> Items:
        """Read and check everything; raises one DataError that lists all faults."""
        if absent := self.missing():
            raise DataError("\n".join(absent))
        reading = _Reading(self)
        for position, entry in enumerate(_entries(self.json_path)):
            reading.add_image(position, entry)
        return reading.items()


class _Reading:
    """One pass over the entries of a file: what was read so far, and what was wrong with it."""

    def __init__(self, source: KarpathyData) -> None:
        self.source = source
        self.images: list[ImageItem] = []
        self.captions: list[Caption] = []
        self.faults = Faults(str(source.json_path))
        self.image_ids: set[int | str] = set()
        self.caption_ids: set[int | str] = set()
        self.sentences = 0
        self.dropped: list[str] = []
        folder = source.root / source.image_folder
        self.folder = folder if folder.is_dir() else None
        if self.folder is None:
            log.info("%s: no folder %s, so the captions are read without photos.", source.name, folder)

    def add_image(self, position: int, entry: Any) -> None:
        if not isinstance(entry, dict):
            self.faults.add("Entries of 'images' that are no objects", f"position {position}")
            return
        where = str(entry.get("filename") or f"position {position}")
        sentences = self._list(entry, "sentences", where)
        self.images.append(
            ImageItem(
                image_id=self._new_id(entry.get("imgid"), position, self.image_ids, "imgid", where),
                split=self._split(entry, where),
                path=self._path(entry, where),
            )
        )
        before = len(self.captions)
        for sentence in sentences:
            self._add_caption(sentence, where)
        if len(self.captions) == before and self.source.on_captionless == "error":
            self.faults.add("Images without a caption (data.on_captionless=keep keeps them)", where)

    def _add_caption(self, sentence: Any, where: str) -> None:
        position = self.sentences
        self.sentences += 1
        if not isinstance(sentence, dict):
            self.faults.add("Images with a caption that is no object", where)
            return
        caption_id = self._new_id(sentence.get("sentid"), position, self.caption_ids, "sentid", where)
        text = caption_text(sentence)
        if text is not None:
            self.captions.append(Caption(caption_id, len(self.images) - 1, text))
        elif self.source.on_empty_caption == "drop":
            self.dropped.append(f"{where} (sentid {caption_id})")
        else:
            kind = "Captions without a single word (data.on_empty_caption=drop leaves them out)"
            self.faults.add(kind, f"{where} (sentid {caption_id})")

    def items(self) -> Items:
        self.faults.raise_if_any()
        if self.dropped:
            log.warning(
                "%s: dropped %d captions without a word, the first of %s.",
                self.source.name,
                len(self.dropped),
                self.dropped[0],
            )
        return Items(self.source.name, tuple(self.images), tuple(self.captions))

    def _list(self, entry: dict[str, Any], key: str, where: str) -> list[Any]:
        value = entry.get(key, [])
        if isinstance(value, list):
            return value
        self.faults.add(f"Images whose {key!r} is no list", where)
        return []

    def _split(self, entry: dict[str, Any], where: str) -> str:
        split = entry.get("split")
        if isinstance(split, str) and split.strip():
            return split.strip()
        self.faults.add("Images without a 'split' (expected 'train', 'val', 'test', …)", where)
        return "train"

    def _path(self, entry: dict[str, Any], where: str) -> Path | None:
        if self.folder is None:
            return None
        if not isinstance(entry.get("filename"), str) or not entry["filename"]:
            self.faults.add("Images without a 'filename'", where)
            return None
        return self.folder / str(entry.get("filepath") or "") / entry["filename"]

    def _new_id(self, value: Any, position: int, seen: set[int | str], key: str, where: str) -> int | str:
        given = position if value is None else value
        if isinstance(given, bool) or not isinstance(given, int | str):
            self.faults.add(f"Values of {key!r} that are neither a whole number nor a text", f"{given!r} ({where})")
            return position
        if given in seen:
            self.faults.add(f"Values of {key!r} used more than once", f"{given!r} ({where})")
        seen.add(given)
        return given


def caption_text(sentence: dict[str, Any]) -> str | None:
    """``raw`` with single spaces, or the joined tokens where ``raw`` has no words; None where neither has any."""
    raw, tokens = sentence.get("raw"), sentence.get("tokens")
    joined = " ".join(str(token) for token in tokens if token is not None) if isinstance(tokens, list) else ""
    for text in (raw, joined):
        if isinstance(text, str) and tokenize(text):
            return " ".join(text.split())
    return None


def _entries(path: Path) -> list[Any]:
    """The list under ``images``; raises DataError where the file is no JSON of that form."""
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig") as file
        ):
            document = json.load(file)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"{path} is no readable JSON file ({error}). Fetch it again, or name another: data.file=…"
        ) from error
    images = document.get("images") if isinstance(document, dict) else None
    if images == []:
        raise DataError(f"{path} has no images: the list under 'images' is empty.")
    if not isinstance(images, list):
        found = f"keys {sorted(document)[:8]}" if isinstance(document, dict) else f"a {type(document).__name__}"
        raise DataError(
            f"{path} is not in Karpathy's form: expected an object with a list under 'images', found {found}. "
            "For other forms see data=table."
        )
    return images


def _bad_choice(option: str, value: str, choices: tuple[str, ...]) -> list[str]:
    return [] if value in choices else [f"{option} must be one of {', '.join(choices)}, found {value!r}."]
