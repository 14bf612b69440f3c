"""Data sets: which are there, what their own classes read of them, and whether their photos are."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from xmodal.config.check import source_config
from xmodal.doctor.finding import Finding, Mark, shortened
from xmodal.errors import XmodalError

if TYPE_CHECKING:
    from xmodal.data.items import Items

_SAMPLE = 32  # photos that are decoded where not all of them are
_NAMED = 3  # in a line


def folder(data_dir: Path, is_stated: bool) -> Iterator[Finding]:
    """The folder of data sets, and what is in it.

    Args:
        is_stated: whether somebody said that it is there (``paths.data_dir`` or ``XMODAL_DATA``).
    """
    advice = "export XMODAL_DATA=/path/to/data, or paths.data_dir=/path/to/data"
    if data_dir.exists() and not data_dir.is_dir():
        yield Finding("data folder", "fault" if is_stated else "optional", f"{data_dir} is a file, no folder", advice)
        return
    if not data_dir.is_dir():
        mark: Mark = "missing" if is_stated else "optional"
        yield Finding("data folder", mark, f"{data_dir} doesn't exist; data=scenes needs none", advice)
        return
    names = sorted(place.name for place in data_dir.iterdir() if place.is_dir())
    held = ", ".join(names[:12]) + (", …" if len(names) > 12 else "") if names else "no folder"
    yield Finding("data folder", "ok", f"{data_dir} holds {held}", values={"folder": str(data_dir), "folders": names})


def data_set(option: str, cfg: DictConfig, is_needed: bool, is_thorough: bool) -> Iterator[Finding]:
    """What the data set's own class reads, as a run would read it; then its photos.

    Args:
        option: of the group ``data``.
        is_needed: whether it was asked for, so that its absence is a fault.
        is_thorough: whether every photo is decoded.
    """
    what = f"data={option}"
    try:
        source = _source(cfg)
        if absent := source.missing():
            yield _absent(what, absent[0], _begun(cfg) or is_needed)
            return
        if _is_unmade(source):
            yield Finding(what, "ok", f"not rendered yet: the first run makes it in {source.root}")
            return
        items = _items(cfg, source)
    except XmodalError as error:
        yield Finding(what, "fault", shortened(str(error)), f"put it right, then: xmodal doctor {what}")
        return
    yield _counts(what, items)
    if items.has_photos:
        yield from _photos(f"{what} photos", cfg, items, is_thorough)
    else:
        yield _no_photos(f"{what} photos", cfg, is_needed and "made_by" not in cfg.image_encoder)


def _source(cfg: DictConfig) -> Any:
    try:
        return instantiate(source_config(cfg))
    except InstantiationException as error:  # around what the class itself says
        raise error.__cause__ or error from None


def _is_unmade(source: Any) -> bool:
    """Whether loading would make the data set, which is not for a look at it to do."""
    from xmodal.data.scenes import SceneData

    return isinstance(source, SceneData) and not source.folder.is_dir()


def _begun(cfg: DictConfig) -> bool:
    """Whether there is something in the data set's folder."""
    root = Path(cfg.data.root) if cfg.data.get("root") else None
    return root is not None and root.is_dir() and any(root.iterdir())


def _absent(what: str, sentence: str, is_needed: bool) -> Finding:
    """Classes say in one sentence or two what is not there, and what to type."""
    found, _, advice = sentence.partition(". ")
    return Finding(what, "missing" if is_needed else "optional", shortened(found.rstrip(".")), advice.rstrip("."))


def _items(cfg: DictConfig, source: Any) -> "Items":
    """All items, with roles; raises XmodalError where a run would refuse them."""
    items: Items = source.load().with_splits(OmegaConf.to_container(cfg.data.splits)).with_holdout(cfg.data.holdout)
    items.require("train", "val")
    if cfg.data.get("relevance") == "class":
        items.require_labels()
    return items


def _counts(what: str, items: "Items") -> Finding:
    from xmodal.data.items import ROLES

    splits = {role: (len(items.image_rows(role)), len(items.caption_rows(role))) for role in ROLES}
    told = ", ".join(
        f"{role} {images:,} / {captions:,}" if images else f"no {role}" for role, (images, captions) in splits.items()
    )
    found = f"{len(items.images):,} images, {len(items.captions):,} captions ({told})"
    values = {"images": len(items.images), "captions": len(items.captions)}
    parts = {role: {"images": images, "captions": captions} for role, (images, captions) in splits.items()}
    return Finding(what, "ok", found, values={**values, "splits": parts})


def _photos(what: str, cfg: DictConfig, items: "Items", is_thorough: bool) -> Iterator[Finding]:
    """How many photos are there, and whether they (or a sample of them) can be decoded."""
    paths = list(dict.fromkeys(image.path for image in items.images if image.path is not None))
    absent = _not_there(paths)
    looked_at = paths if is_thorough else _spread([path for path in paths if path not in absent])
    damaged = _damaged(cfg, looked_at, is_thorough)
    decoded = f"{'all' if is_thorough else len(looked_at)} decoded"
    values = {"photos": len(paths), "missing": len(absent), "damaged": len(damaged), "decoded": len(looked_at)}
    if not absent and not damaged:
        yield Finding(what, "ok", f"{len(paths):,} of {len(paths):,} are there, {decoded}", values=values)
        return
    yield _at_fault(what, cfg, len(paths), absent, damaged, values)


def _no_photos(what: str, cfg: DictConfig, is_needed: bool) -> Finding:
    """A run that is meant refuses them, unless its image features are a file's, which is "made by" something."""
    advice = "image_encoder=precomputed image_encoder.path=FILE"
    if cfg.data.get("image_folder"):
        advice = f"put photos into {Path(cfg.data.root) / cfg.data.image_folder}, or {advice}"
    if is_needed:
        return Finding(what, "missing", "none, and the image encoder reads photos", advice)
    return Finding(what, "optional", "none: captions and features alone", advice)


def _at_fault(
    what: str, cfg: DictConfig, count: int, absent: Iterable[Path], damaged: dict[Path, str], values: dict[str, Any]
) -> Finding:
    from xmodal.data.images import listed_faults

    faults = {**dict.fromkeys(absent, "doesn't exist"), **damaged}
    named = " ".join(listed_faults((path.name, fault) for path, fault in faults.items()).split())
    mark: Mark = "fault" if cfg.data.get("on_error", "error") == "error" else "warning"
    folders = sorted({str(path.parent) for path in faults})
    more = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
    advice = f"fetch them into {folders[0]}{more}; or data.on_error=skip"
    found = f"{len(faults):,} of {count:,} can't be used: {named.removeprefix('- ')}"
    return Finding(what, mark, shortened(found), advice, values)


def _not_there(paths: Sequence[Path]) -> set[Path]:
    """Those without a file; folders are read whole, which is quicker than asking for each file."""
    names = {parent: _names(parent) for parent in {path.parent for path in paths}}
    return {path for path in paths if path.name not in names[path.parent]}


def _names(parent: Path) -> set[str]:
    if not parent.is_dir():
        return set()
    with os.scandir(parent) as entries:
        return {entry.name for entry in entries}


def _spread(paths: Sequence[Path]) -> list[Path]:
    """A few of the paths, at equal distances."""
    count = min(_SAMPLE, len(paths))
    return [paths[place * len(paths) // count] for place in range(count)]


def _damaged(cfg: DictConfig, paths: Sequence[Path], is_thorough: bool) -> dict[Path, str]:
    """What is wrong with photos; of all of them, it is remembered which were found good, as a run does."""
    from xmodal.data.images import examine_images, read_image

    if is_thorough:
        return examine_images(paths, Path(cfg.paths.cache_dir) / "images.jsonl").faults
    damaged = {}
    for path in paths:
        try:
            read_image(path)
        except XmodalError as error:
            damaged[path] = str(error)
    return damaged
