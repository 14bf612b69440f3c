"""Which images take part in a run: all but those in ``data.exclude`` and, where they are skipped, damaged ones."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from xmodal.atomic import complete_file
from xmodal.config.suggestions import did_you_mean
from xmodal.data.faults import name_some
from xmodal.data.images import check_images, examine_images, listed_faults
from xmodal.data.items import ROLES, ImageItem, Items
from xmodal.errors import ConfigError, DataError
from xmodal.experiment.embedded import counted

log = logging.getLogger(__name__)

TYPED = "named in data.exclude"
_LEAST = 0.5  # share of a split that must stay


@dataclass(frozen=True)
class Excluded:
    """An image that takes no part, and why."""

    image_id: int | str
    path: Path | None
    reason: str


@dataclass(frozen=True)
class Selection:
    """The images that take part, the digests of their photos (where photos were looked at), and who was left out."""

    items: Items
    digests: dict[Path, str]
    excluded: tuple[Excluded, ...]


def select_items(cfg: DictConfig, full: Items, limited: Items, reads_photos: bool) -> Selection:
    """``limited`` without the images of ``data.exclude`` and, where ``data.on_error=skip``, without damaged photos.

    Args:
        full: the whole data set, which knows every id.
        limited: the part of it that the run takes.
        reads_photos: whether photos are to be decoded at all; each of them is then looked at once, now.

    Raises:
        ConfigError: an id in ``data.exclude`` that the data set does not have.
        DataError: damaged or missing photos where ``data.on_error=error``, all in one message; or more than half of a
            split left out.
    """
    named = _named(_typed(cfg), full, limited)
    items = limited.without([one.image_id for one in named])
    digests, damaged = _looked_at(cfg, items) if reads_photos else ({}, ())
    kept = items.without([one.image_id for one in damaged])
    selection = Selection(kept, digests, (*named, *damaged))
    _require_enough(limited, selection)
    _tell(limited, selection)
    return selection


def with_exclusions(cfg: DictConfig, excluded: Sequence[Excluded]) -> DictConfig:
    """The configuration that a run is to be remembered by: who was left out stays out, and no other follows.

    So ``data.on_error`` becomes ``error``: a photo that is damaged later is not left out of later figures in silence.
    """
    cfg = cfg.copy()
    OmegaConf.set_readonly(cfg, False)
    typed = _typed(cfg)
    skipped = [one.image_id for one in excluded if one.reason != TYPED]
    OmegaConf.update(cfg, "data.exclude", [*typed, *skipped], force_add=True)
    OmegaConf.update(cfg, "data.on_error", "error", force_add=True)
    return cfg


def write_excluded(folder: Path, excluded: Sequence[Excluded]) -> None:
    """``excluded.json``: id, path and reason of every image that was left out; no file where there is none."""
    if not excluded:
        return
    records = [
        {"id": one.image_id, "path": None if one.path is None else str(one.path), "reason": one.reason}
        for one in excluded
    ]
    with complete_file(folder / "excluded.json") as partial:
        partial.write_text(json.dumps(records, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def left_out(excluded: Sequence[Excluded]) -> str:
    """``, 3 images of the data set left out`` for the description of an evaluation; nothing where all take part."""
    if not excluded:
        return ""
    return f", {len(excluded):,} image{'' if len(excluded) == 1 else 's'} of the data set left out"


def _named(ids: Sequence[Any], full: Items, limited: Items) -> tuple[Excluded, ...]:
    known = {str(image.image_id) for image in full.images}
    unknown = [str(image_id) for image_id in ids if str(image_id) not in known]
    if unknown:
        raise ConfigError(
            f"data.exclude names {len(unknown)} of {len(ids)} images that {full.name} does not have: "
            f"{name_some(unknown)}.{did_you_mean(unknown[0], known)} Its ids look like "
            f"{', '.join(repr(image.image_id) for image in full.images[:3])}."
        )
    wanted = {str(image_id) for image_id in ids}
    return tuple(Excluded(i.image_id, i.path, TYPED) for i in limited.images if str(i.image_id) in wanted)


def _typed(cfg: DictConfig) -> list[Any]:
    return list(cfg.data.get("exclude") or [])  # the config of an older run has no such key


def _looked_at(cfg: DictConfig, items: Items) -> tuple[dict[Path, str], tuple[Excluded, ...]]:
    """Digests of the good photos, and the images whose photo is not; an error for these unless they are skipped."""
    paths = [_photo(image) for image in items.images]
    memo = Path(cfg.paths.cache_dir) / "images.jsonl"
    if cfg.data.get("on_error", "error") == "error":
        return check_images(paths, memo), ()
    found = examine_images(paths, memo)
    damaged = [
        (image, found.faults[path]) for image, path in zip(items.images, paths, strict=True) if path in found.faults
    ]
    return found.digests, tuple(Excluded(image.image_id, image.path, fault) for image, fault in damaged)


def _photo(image: ImageItem) -> Path:
    if image.path is None:
        raise DataError(f"Image {image.image_id!r} names no photo file, so the image encoder has nothing to encode.")
    return image.path


def _require_enough(before: Items, selection: Selection) -> None:
    """Figures on less than half of a split would be of another data set: then a folder is wrong, not some photos."""
    counts = {role: (len(before.image_rows(role)), len(selection.items.image_rows(role))) for role in ROLES}
    short = [f"{was - left:,} of {was:,} of {role}" for role, (was, left) in counts.items() if left < was * _LEAST]
    if short:
        raise DataError(
            f"Too many images of {before.name} would be left out: {', '.join(short)}. At least half of each split must "
            f"stay, or figures are of another data set. Left out would be:\n{_reasons(selection.excluded)}\n"
            "A wrong data.root, or an archive of photos that was half unpacked, looks like this."
        )


def _tell(before: Items, selection: Selection) -> None:
    if selection.excluded:
        gone = counted(len(selection.excluded), len(before.captions) - len(selection.items.captions))
        of = counted(len(before.images), len(before.captions))
        log.warning("Left out of %s (%s): %s.\n%s", before.name, of, gone, _reasons(selection.excluded))


def _reasons(excluded: Sequence[Excluded]) -> str:
    return listed_faults((str(one.path or repr(one.image_id)), one.reason) for one in excluded)
