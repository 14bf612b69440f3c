"""What an index is built from: a split of a run's data set, or photos and sentences of one's own."""

import copy
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from xmodal.config.evaluation import ROLES, EvaluationOptions
from xmodal.data.faults import Faults, name_some
from xmodal.data.images import PHOTO_FORMATS, examine_images, listed_faults
from xmodal.data.items import Caption, ImageItem, Items
from xmodal.errors import DataError
from xmodal.experiment.features import Dataset, features_of, load_dataset
from xmodal.experiment.opened_run import OpenedRun, SavedRun
from xmodal.experiment.parts import Parts
from xmodal.models.query_encoders import Modality
from xmodal.search.items_table import Item
from xmodal.search.manifest import TARGETS, Target
from xmodal.tokens import tokenize

log = logging.getLogger(__name__)

OWN = "own"  # the split of photos and sentences that belong to no data set
ALL = "all"
_SMALL = 512  # items of one's own from which on their features are kept, so that an interruption costs little
_MODALITY: dict[Target, Modality] = {"images": "image", "captions": "text"}


@dataclass(frozen=True)
class Source:
    """Items, and the model that embeds them.

    Attributes:
        name: of the data set, or of the folder or file.
        splits: that the items are of, in order.
        rows: of the images and of the captions that are in the index; a side that is not is absent.
        root: folder that all photos lie below.
        bank: of training queries, by the side that they search; empty without.
    """

    name: str
    run: OpenedRun
    splits: tuple[str, ...]
    rows: Mapping[Target, Int[np.ndarray, "n"]]
    root: Path
    bank: Mapping[Target, Float[np.ndarray, "B E"]]

    def embedded(self, target: Target) -> Iterator[Float[Tensor, "b E"]]:
        """Embeddings of a side, batch by batch."""
        batches = self.run.batches_of_images if target == "images" else self.run.batches_of_texts
        return batches(self.rows[target])

    def items(self, first: Mapping[Target, int]) -> list[Item]:
        """The items, whose vectors are numbered from ``first`` on in the order of ``rows``.

        Ids are texts; items of sentences alone are called after their caption.
        """
        items, captions = self.run.items, self.rows.get("captions", np.zeros(0, np.int64))
        numbers_of: dict[int, list[tuple[int, str]]] = {}
        for place, row in enumerate(captions.tolist()):
            caption = items.captions[row]
            numbers_of.setdefault(caption.image, []).append((first["captions"] + place, caption.text))
        image_number = {row: first["images"] + place for place, row in enumerate(self._image_rows())}
        rows = sorted({*image_number, *numbers_of})
        return [self._item(row, image_number.get(row), numbers_of.get(row, [])) for row in rows]

    def _image_rows(self) -> list[int]:
        return self.rows["images"].tolist() if "images" in self.rows else []

    def _item(self, row: int, image_number: int | None, captions: Sequence[tuple[int, str]]) -> Item:
        image = self.run.items.images[row]
        file = None if image.path is None else os.path.relpath(image.path.absolute(), self.root)
        numbers, texts = tuple(number for number, _ in captions), tuple(text for _, text in captions)
        return Item(str(image.image_id), file, image_number, texts, numbers, self._role(image.split))

    def _role(self, split: str) -> str:
        """What a split of the source is here: train, val or test, where it plays one of these."""
        played = [role for role in ROLES if split in self.run.items.splits.get(role, ())]
        return played[0] if played else split


def split_source(saved: SavedRun, split: str | None, bank_size: int) -> Source:
    """Images and captions of a split of the run's data set (None: test where there is one, else val).

    Args:
        split: ``train``, ``val``, ``test`` or ``all``.
        bank_size: most training images, and captions, for a correction of hubs; 0 for none.

    Raises:
        DataError: no such split, or whatever is wrong with the data set.
        ConfigError, FeatureError, WeightsError: see `xmodal.experiment.embedded_run.embed_run`.
    """
    parts = saved.parts()
    dataset = load_dataset(saved.cfg, parts)
    items = dataset.used
    chosen = split or ("test" if items.has_split("test") else "val")
    splits = tuple(role for role in ROLES if items.has_split(role)) if chosen == ALL else (chosen,)
    if absent := [one for one in splits if not items.has_split(one)]:
        there = [role for role in ROLES if items.has_split(role)]
        raise DataError(f"{items.name} has no split {absent[0]}. Type --split {' or '.join([*there, ALL])}.")
    run = saved.opened(parts, dataset)
    rows: dict[Target, np.ndarray] = {
        "images": _once([items.image_rows(one) for one in splits]),
        "captions": _once([items.caption_rows(one) for one in splits]),
    }
    photos = [items.images[row].path for row in rows["images"].tolist()]
    return Source(items.name, run, splits, rows, root_of(photos), bank_of(run, bank_size))


@dataclass(frozen=True)
class Known:
    """What an index that is added to has already: ids, photos by their absolute paths, and how many captions it ever
    had."""

    ids: frozenset[str] = frozenset()
    files: frozenset[Path] = frozenset()
    captions: int = 0


def _once(rows: Sequence[Int[np.ndarray, "_"]]) -> Int[np.ndarray, "n"]:
    """All rows, in order; one that plays several roles is there once."""
    return np.array(list(dict.fromkeys(np.concatenate(rows).tolist())), dtype=np.int64)


def own_source(
    saved: SavedRun,
    images: Path | None,
    captions: Path | None,
    on_error: str = "error",
    bank_size: int = 0,
    known: Known = Known(),
    admit: Callable[[Target, int], None] | None = None,
) -> Source:
    """Photos below a folder and sentences of a file, encoded as those that the model was trained on.

    Args:
        on_error: ``error``, or ``skip`` photos that can't be decoded or named.
        known: photos that are passed over, for the index has them already, and ids that are taken.
        admit: raises where so many items of a side are not wanted; asked before any is encoded.

    Raises:
        DataError: nothing there or nothing new, photos that can't be decoded, whose names are not UTF-8 or whose ids
            are taken, captions without a word.
        FeatureError: the run's features were precomputed, by an encoder that it does not name.
    """
    below = _images_below(images) if images is not None else []
    found = [path for path in below if _is_utf8(path)]
    faults = {path: "has a name that is not in UTF-8" for path in below if not _is_utf8(path)}
    sentences = read_captions(captions) if captions is not None else []
    name = _readable((images or captions or Path("own")).resolve().stem)
    if faults and not found:
        raise DataError(f"None of the {len(below)} photos can be used:\n{_listed(faults)}\nRename them.")
    items = Items(name, *_own_items(images, found, sentences, known), {})  # of no role
    dataset = _examined(saved, items, faults, on_error)
    photos = np.flatnonzero([image.path is not None for image in dataset.used.images]).astype(np.int64)
    rows: dict[Target, np.ndarray] = {"images": photos, "captions": np.arange(len(dataset.used.captions))}
    rows = {target: there for target, there in rows.items() if len(there)}
    for target, there in rows.items():
        if admit is not None:
            admit(target, len(there))
    run = _opened(saved, dataset, [target for target in TARGETS if target in rows])
    bank = split_source(saved, "train", bank_size).bank if bank_size else {}
    return Source(name, run, (OWN,), rows, root_of([image.path for image in dataset.used.images]), bank)


def bank_of(run: OpenedRun, bank_size: int) -> dict[Target, Float[np.ndarray, "B E"]]:
    """Training captions, which search images, and training images, which search captions."""
    if not bank_size:
        return {}
    banks = run.banks(EvaluationOptions(bank_size=bank_size, rerank="querybank"))
    return {"images": banks["bank_texts"].cpu().numpy(), "captions": banks["bank_images"].cpu().numpy()}


def root_of(photos: Iterable[Path | None]) -> Path:
    """The innermost folder that all photos lie below; the current one where there are none."""
    folders = {str(photo.absolute().parent) for photo in photos if photo is not None}
    return Path(os.path.commonpath(folders)) if folders else Path.cwd()


def read_captions(path: Path) -> list[str]:
    """Sentences of a text file, one in each line, without the spaces around them; empty lines are passed over.

    Raises:
        DataError: no such file, not UTF-8, nothing in it, or lines without a word.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"The captions {path} can't be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in UTF-8 ({error}). Save it as UTF-8 and start again.") from error
    faults = Faults(str(path))
    for number, line in enumerate(lines, start=1):
        if line.strip() and not tokenize(line):
            faults.add("Lines without a single word", f"line {number}")
    faults.raise_if_any()
    if not (found := [line.strip() for line in lines if line.strip()]):
        raise DataError(f"{path} is empty: expected a sentence in each line.")
    return found


def _images_below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}: --images takes a folder of photos.")
    folder = folder.resolve()  # the same photos are the same, however the folder is typed
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in PHOTO_FORMATS}
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file())
    if not found:
        formats = ", ".join(PHOTO_FORMATS)
        raise DataError(f"{folder} holds no photo ({formats}; files such as .jpg or .png, in folders within it too).")
    inside = [path for path in found if path.resolve().is_relative_to(folder)]
    if not inside:
        raise DataError(f"{folder} holds links alone that lead out of it, such as {found[0]}: name the folder itself.")
    if outside := sorted(set(found) - set(inside)):
        log.warning("%d links that lead out of %s are passed over, %s first.", len(outside), folder, outside[0])
    return inside


def _own_items(
    folder: Path | None, photos: Sequence[Path], sentences: Sequence[str], known: Known
) -> tuple[tuple[ImageItem, ...], tuple[Caption, ...]]:
    """Photos are called after their paths below the folder, sentences after a number that none ever had."""
    images = []
    for photo in photos:
        assert folder is not None
        if photo not in known.files:
            images.append(ImageItem(photo.relative_to(folder.resolve()).as_posix(), OWN, photo))
    if taken := [str(image.image_id) for image in images if image.image_id in known.ids]:
        raise DataError(
            f"Names of other photos that the index has from another folder, {name_some(taken)}. "
            "Rename them, or give the folder above this one, which their names then begin with."
        )
    captions, number = [], known.captions
    for sentence in sentences:
        while f"caption {number}" in known.ids:
            number += 1
        captions.append(Caption(f"caption {number}", len(images), sentence))
        images.append(ImageItem(f"caption {number}", OWN))
        number += 1
    if not images:
        raise DataError(f"{folder}: the index has all of these {len(photos)} photos already.")
    return tuple(images), tuple(captions)


def _examined(saved: SavedRun, items: Items, faults: Mapping[Path, str], on_error: str) -> Dataset:
    """The items whose photos are good; an error, or a warning, for the others and for those that have ``faults``."""
    photos = [image.path for image in items.images if image.path is not None]
    found = examine_images(photos, Path(saved.cfg.paths.cache_dir) / "images.jsonl")
    faults, count = {**faults, **found.faults}, len(photos) + len(faults)
    if faults and on_error == "error":
        raise DataError(
            f"{len(faults)} of {count} photos can't be used:\n{_listed(faults)}\n"
            "Fetch them again, rename them, or take them away; or leave them out: --on-error skip"
        )
    if photos and not found.digests:
        raise DataError(f"None of the photos can be used:\n{_listed(faults)}")
    if faults:
        log.warning("Left out, %d of %d photos:\n%s", len(faults), count, _listed(faults))
    used = items.without(str(image.image_id) for image in items.images if image.path in found.faults)
    return Dataset(items, used, found.digests)


def _listed(faults: Mapping[Path, str]) -> str:
    return listed_faults((_readable(str(path)), fault) for path, fault in faults.items())


def _is_utf8(path: Path) -> bool:
    """Whether a path can be written to the files of an index."""
    return _readable(str(path)) == str(path)


def _readable(name: str) -> str:
    """A name with a backslash before the bytes that are not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _opened(saved: SavedRun, dataset: Dataset, wanted: Sequence[Target]) -> OpenedRun:
    """The model, with the encoders of new items, and the features of these."""
    encoders = saved.query_encoders()
    sides = {target: encoders.encoder(_MODALITY[target]) for target in wanted}
    tails = {side: encoders.encoder(side) for side in encoders.fine_tuned}
    parts = Parts(None, sides.get("images", tails.get("image")), sides.get("captions", tails.get("text")), {})
    cfg = copy.deepcopy(saved.cfg)
    OmegaConf.update(cfg, "data.name", dataset.used.name)
    OmegaConf.update(cfg, "features.store", bool(cfg.features.store) and len(dataset.used.images) > _SMALL)
    run = OpenedRun(cfg, saved.model(parts), dataset.used, {}, saved.device)
    photos = _with_photos(dataset)
    features = {}
    if "images" in wanted:
        features["image"] = features_of(cfg, parts, photos, ["image"])["image"]
    if "captions" in wanted:
        features["text"] = features_of(cfg, parts, dataset, ["text"])["text"]
    return replace(run, features=features)


def _with_photos(dataset: Dataset) -> Dataset:
    """Only the items with a photo, which come first."""
    images = tuple(image for image in dataset.used.images if image.path is not None)
    used = replace(dataset.used, images=images, captions=())
    return replace(dataset, used=used)
