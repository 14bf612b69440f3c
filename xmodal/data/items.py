"""What a data set is, whatever it was read from: images, captions that point at them, and the roles of the splits."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from xmodal.errors import ConfigError, DataError

ROLES = ("train", "val", "test")


@dataclass(frozen=True)
class ImageItem:
    """One image: the id that its source gave it, the source's split, and where the photo is (None: there is none)."""

    image_id: int | str
    split: str
    path: Path | None = None
    label: int | str | None = None


@dataclass(frozen=True)
class Caption:
    """One caption of the image in row ``image`` of ``Items.images``."""

    caption_id: int | str
    image: int
    text: str


@dataclass(frozen=True)
class Items:
    """N images and M captions, any number of captions per image, in the order of their source.

    ``splits`` says which splits of the source play each role (COCO trains on ``train`` and ``restval``).
    """

    name: str
    images: tuple[ImageItem, ...]
    captions: tuple[Caption, ...]
    splits: dict[str, tuple[str, ...]] = field(default_factory=lambda: {role: (role,) for role in ROLES})

    def image_rows(self, role: str) -> Int64[np.ndarray, "rows"]:
        """Rows of the images whose split plays ``role``, in order; raises ConfigError for an unknown role."""
        return np.flatnonzero(self._plays(role)).astype(np.int64)

    def caption_rows(self, role: str) -> Int64[np.ndarray, "rows"]:
        """Rows of the captions whose image plays ``role``, in order; raises ConfigError for an unknown role."""
        return np.flatnonzero(self._plays(role)[self.caption_images]).astype(np.int64)

    @cached_property
    def caption_images(self) -> Int64[np.ndarray, "M"]:
        """The image row of each caption."""
        return np.array([caption.image for caption in self.captions], dtype=np.int64)

    @cached_property
    def labels(self) -> np.ndarray:
        """The class label of each image, (N,) integers or strings; raises DataError as ``require_labels`` does."""
        self.require_labels()
        return _as_array([image.label for image in self.images if image.label is not None])

    @cached_property
    def image_ids(self) -> np.ndarray:
        """The id that the source gave to each image, (N,) integers or strings."""
        return _as_array([image.image_id for image in self.images])

    def require_labels(self) -> None:
        """Raise DataError where images have no label, naming how many of them and the first."""
        without = [image.image_id for image in self.images if image.label is None]
        if without:
            raise DataError(
                f"Relevance by class needs a label for every image, but {len(without)} of the "
                f"{len(self.images)} images of {self.name} have none, the first of them {without[0]!r}. Add the labels "
                "(column label of a table), or go by pairs: relevance=instance in training, data.relevance=instance or "
                "--relevance instance in evaluation."
            )

    def has_split(self, role: str) -> bool:
        """Whether any image plays ``role``."""
        return bool(self._plays(role).any())

    @property
    def has_photos(self) -> bool:
        """Whether every image names a photo (which may still be missing: see ``images.check_images``)."""
        return bool(self.images) and all(image.path is not None for image in self.images)

    @property
    def has_texts(self) -> bool:
        """Whether every caption has words of its own (a benchmark of ready-made features has none)."""
        return bool(self.captions) and all(caption.text for caption in self.captions)

    def with_splits(self, splits: Mapping[str, Sequence[str]]) -> "Items":
        """The same items with other splits of the source in the roles; raises ConfigError for an unknown role."""
        unknown = [role for role in splits if role not in ROLES]
        if unknown:
            raise ConfigError(f"data.splits has the unknown role {unknown[0]!r}; expected {', '.join(ROLES)}.")
        return replace(self, splits={role: tuple(names) for role, names in splits.items()})

    def require(self, *roles: str) -> None:
        """Raise DataError naming each of ``roles`` that no image plays, and the splits that there are."""
        absent = [role for role in roles if not self.has_split(role)]
        if not absent:
            return
        counts = Counter(image.split for image in self.images)
        found = ", ".join(f"{split!r} ({count} images)" for split, count in counts.items()) or "no images at all"
        wanted = "; ".join(f"{role} (data.splits.{role}={list(self.splits.get(role, ()))})" for role in absent)
        raise DataError(
            f"{self.name} has no images for: {wanted}. Splits found: {found}. "
            f"Name one of them, for example data.splits.{absent[0]}=[{next(iter(counts), 'train')}]."
        )

    def limited(self, n: int) -> "Items":
        """The first ``n`` images of each split of the source, with their captions."""
        if n < 1:
            raise ConfigError(f"data.limit must be at least 1 (or null for all images), found {n}.")
        seen: Counter[str] = Counter()
        kept = []
        for row, image in enumerate(self.images):
            seen[image.split] += 1
            if seen[image.split] <= n:
                kept.append(row)
        return self._chosen(kept)

    def without(self, image_ids: Iterable[int | str]) -> "Items":
        """The same items but the images with these ids, and their captions; 7 and "7" name the same image."""
        gone = {str(image_id) for image_id in image_ids}
        kept = [row for row, image in enumerate(self.images) if str(image.image_id) not in gone]
        return self if len(kept) == len(self.images) else self._chosen(kept)

    def with_holdout(self, n: int) -> "Items":
        """The last ``n`` training images moved to ``test``; raises ConfigError where a test split exists."""
        if n < 0:
            raise ConfigError(f"data.holdout must be 0 (no hold-out) or positive, found {n}.")
        if n == 0:
            return self
        self._check_holdout(n)
        moved = {int(row) for row in self.image_rows("train")[-n:]}
        split = (*self.splits.get("test", ()), "test")[0]
        images = tuple(replace(image, split=split) if row in moved else image for row, image in enumerate(self.images))
        return replace(self, images=images, splits={**self.splits, "test": (split,)})

    def image_fingerprint(self, digests: Mapping[Path, str] | None = None) -> str:
        """SHA-256 (hex) over the image ids and the content of their files, in order; splits don't count.

        ``digests`` are the content digests that ``images.check_images`` returned; without them each file is read.
        """
        known = {} if digests is None else digests
        return _sha256(
            (image.image_id, None if image.path is None else known.get(image.path) or file_digest(image.path))
            for image in self.images
        )

    def caption_fingerprint(self) -> str:
        """SHA-256 (hex) over the caption ids, their image ids and texts, in order; splits don't count."""
        return _sha256((c.caption_id, self.images[c.image].image_id, c.text) for c in self.captions)

    def fingerprint(self) -> str:
        """SHA-256 (hex) over ids, labels and splits of images, ids and texts of captions, and the roles of splits.

        What photos show does not count: this is quick, and a data set without photos has one too.
        """
        images = [(image.image_id, image.split, image.label) for image in self.images]
        roles = sorted((role, *names) for role, names in self.splits.items())
        return _sha256([("images", *images), ("roles", *roles), ("captions", self.caption_fingerprint())])

    def content(self, images: Int64[np.ndarray, "n"], captions: Int64[np.ndarray, "m"]) -> str:
        """SHA-256 (hex) over the ids of some images, and over the texts of some captions with the ids of their images.

        Args:
            images, captions: rows.
        """
        owners = ((self.captions[row], self.images[self.captions[row].image].image_id) for row in captions.tolist())
        names = (("image", self.images[row].image_id) for row in images.tolist())
        return _sha256(itertools.chain(names, ((owner, caption.text) for caption, owner in owners)))

    def _plays(self, role: str) -> np.ndarray:
        if role not in ROLES:
            raise ConfigError(f"Unknown role {role!r} of a split; expected one of {', '.join(ROLES)}.")
        names = self.splits.get(role, ())
        return np.array([image.split in names for image in self.images], dtype=bool)

    def _chosen(self, rows: list[int]) -> "Items":
        new_row = {row: position for position, row in enumerate(rows)}
        captions = tuple(replace(c, image=new_row[c.image]) for c in self.captions if c.image in new_row)
        return replace(self, images=tuple(self.images[row] for row in rows), captions=captions)

    def _check_holdout(self, n: int) -> None:
        found = len(self.image_rows("test"))
        if found:
            raise ConfigError(
                f"data.holdout={n} makes a test split, but {self.name} already has one of {found} images. "
                "Leave data.holdout=0."
            )
        train = len(self.image_rows("train"))
        if n >= train:
            raise ConfigError(
                f"data.holdout={n} must leave images to train on, but {self.name} has {train} training images. "
                f"Choose data.holdout between 1 and {max(1, train - 1)}."
            )


def _as_array(values: Sequence[int | str]) -> np.ndarray:
    """Whole numbers within int64 as int64; strings where any value is something else."""
    is_whole = all(isinstance(value, int) and -(2**63) <= value < 2**63 for value in values)
    return np.array(values, dtype=np.int64 if is_whole else np.str_)


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's content; raises DataError where it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"The image {path} can't be read ({error.strerror}).") from error


def _sha256(records: Iterable[tuple[Any, ...]]) -> str:
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(record, ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()
