"""Building a saved index, adding to it and taking from it; each at once or not at all."""

import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import track

from xmodal import __version__
from xmodal.config.suggestions import did_you_mean
from xmodal.data.faults import name_some
from xmodal.errors import ConfigError
from xmodal.experiment.opened_run import SavedRun
from xmodal.features.disk_space import readable
from xmodal.models.checkpoint import model_digest
from xmodal.search.building import RecallMeasure, build_gallery, drawn_queries, tuned, vectors_file
from xmodal.search.choice import GOOD_RECALL, Asked, choose
from xmodal.search.correction import Correction, read_corrections, write_corrections
from xmodal.search.folder import Change
from xmodal.search.gallery import NumberedGallery, as_queries, clusters_beside, read_gallery
from xmodal.search.items_table import IndexedItems, Item
from xmodal.search.manifest import BANK, CONFIG, ITEMS, MODEL, TARGETS, Manifest, Side, Target
from xmodal.search.sources import Source

log = logging.getLogger(__name__)

_ASKED_AGAIN = 200  # most queries that recall is measured with after a change, which is to be quick
_NONE: Mapping[Target, int] = {"images": 0, "captions": 0}


@dataclass(frozen=True)
class Settings:
    """How an index is to be built.

    Attributes:
        asked: which index, or none in particular.
        memory_bytes: that an index may take.
        inverse_temperature: of the correction for hubs, where the source has a bank.
        includes_model: whether the checkpoint is copied into the folder, which may then be moved anywhere.
    """

    asked: Asked
    memory_bytes: int
    inverse_temperature: float | None = None
    includes_model: bool = False


def build_index(change: Change, folder: Path, saved: SavedRun, source: Source, settings: Settings) -> Manifest:
    """Embed the items of a source and write the index of them.

    Raises:
        XmodalError: whatever is wrong with items or settings.
        OSError: it can't be written.
    """
    began = time.monotonic()
    vectors = {target: _embedded(change, source, target) for target in TARGETS if len(source.rows.get(target, ()))}
    corrections = {
        target: Correction.of(bank, source.run.model.similarity, settings.inverse_temperature)
        for target, bank in source.bank.items()
        if target in vectors
    }
    sides: dict[Target, Side] = {}
    for target in vectors:
        sides[target], gallery = _built(change, target, vectors, source.run.model.similarity, settings)
        if target in corrections:
            numbers = np.arange(len(gallery))
            with_offsets = corrections[target].with_vectors(vectors[target], numbers, gallery.similarity)
            corrections[target] = with_offsets.activated_in(gallery)
    IndexedItems.of(source.items(_NONE)).write(change.path(ITEMS))
    width = next(iter(vectors.values())).shape[1]
    vectors.clear()
    for target in sides:
        change.drop(_vectors_name(target))
    if corrections:
        write_corrections(change.path(BANK), corrections)
    change.path(CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.create(saved.saved_config)), encoding="utf-8")
    if settings.includes_model:
        shutil.copyfile(saved.file, change.path(MODEL))
    return change.commit(_manifest(folder, saved, source, sides, width, time.monotonic() - began))


def add_items(change: Change, folder: Path, manifest: Manifest, source: Source) -> Manifest:
    """The index with the items of a source behind its own; what was in it keeps its ids and numbers.

    Raises:
        ConfigError: items of a side that the index does not have, ids that it has already, clusters on disk, codes
            that were learned from too few.
        FeatureError: embeddings of another width.
    """
    items = IndexedItems.read(folder / ITEMS)
    first = {target: side.next_number for target, side in manifest.sides.items()}
    new = source.items({**_NONE, **first})
    if taken := [item.id for item in new if item.id in items]:
        raise ConfigError(f"Ids that the index has already, {name_some(taken)}. Remove these items first: --remove ID")
    root, old_items, new_items = _below_one_root(manifest, items, source, new)
    corrections = read_corrections(folder / BANK) if BANK in manifest.files else {}
    sides, galleries = dict(manifest.sides), {}
    for target in (one for one in TARGETS if len(source.rows.get(one, ()))):
        require_room(manifest, target, len(source.rows[target]))
        gallery = galleries[target] = _opened_for_change(folder, manifest, target)
        vectors = np.concatenate([batch.cpu().numpy() for batch in _shown(source, target)])
        queries = as_queries(vectors, gallery.width, gallery.similarity)
        numbers = np.arange(first[target], first[target] + len(queries))
        gallery.add(queries, numbers)
        if target in corrections:
            corrections[target] = corrections[target].with_vectors(queries, numbers, gallery.similarity)
        sides[target] = replace(sides[target], count=len(gallery), next_number=first[target] + len(queries))
        _write_changed(change, target, gallery, corrections)
    sides |= _with_recall(folder, manifest, sides, galleries)
    joined = old_items.joined(new_items)
    joined.write(change.path(ITEMS))
    changed = replace(manifest, sides=sides, splits=joined.splits, root=str(root))
    return _commit(change, manifest, changed, corrections)


def remove_items(change: Change, folder: Path, manifest: Manifest, ids: Sequence[str]) -> Manifest:
    """The index without some items, photos and captions both; numbers of theirs are never given again.

    Raises:
        ConfigError: ids that it does not have, all that it has, or clusters on disk.
    """
    items = IndexedItems.read(folder / ITEMS)
    if unknown := [one for one in ids if one not in items]:
        raise ConfigError(
            f"Ids that the index does not have, {name_some(unknown)}.{did_you_mean(unknown[0], items.ids)} Its ids "
            f"look like {', '.join(items.ids[:3])}; xmodal search {folder} 'a sentence' --json shows those of what it "
            f"finds, and the column id of {folder / ITEMS} all."
        )
    gone = [items.item(one) for one in dict.fromkeys(ids)]
    if len(gone) == len(items):
        raise ConfigError("These are all items of the index: nothing would be left. Delete its folder instead.")
    corrections = read_corrections(folder / BANK) if BANK in manifest.files else {}
    sides, galleries = dict(manifest.sides), {}
    for target in manifest.sides:
        numbers = _numbers_of(gone, target)
        if not len(numbers):
            continue
        gallery = galleries[target] = _opened_for_change(folder, manifest, target)
        if len(numbers) == len(gallery):
            raise ConfigError(f"All {target} of the index would be gone. Build an index without them instead.")
        gallery.remove(numbers)
        sides[target] = replace(sides[target], count=len(gallery))
        _write_changed(change, target, gallery, corrections)
    sides |= _with_recall(folder, manifest, sides, galleries)
    left = items.without([one.id for one in gone])
    left.write(change.path(ITEMS))
    return _commit(change, manifest, replace(manifest, sides=sides, splits=left.splits), corrections)


def _embedded(change: Change, source: Source, target: Target) -> Float[np.ndarray, "N E"]:
    """The vectors of a side as FAISS takes them, on disk."""
    vectors, start = np.zeros((0, 0), np.float32), 0
    for batch in _shown(source, target):
        rows = as_queries(batch.cpu().numpy(), batch.shape[1], source.run.model.similarity)
        if start == 0:
            vectors = vectors_file(change.path(_vectors_name(target)), len(source.rows[target]), rows.shape[1])
        vectors[start : start + len(rows)] = rows
        start += len(rows)
    return vectors


def _shown(source: Source, target: Target) -> Any:
    """Batches, with a bar for those who wait."""
    total = -(-len(source.rows[target]) // source.run.cfg.data.batch_size)
    console = Console(stderr=True)
    return track(source.embedded(target), f"Embedding {target}", total=total, console=console, transient=True)


def _vectors_name(target: Target) -> str:
    return f"{target}.vectors.npy"


def _built(
    change: Change, target: Target, vectors: Mapping[Target, np.ndarray], similarity: str, settings: Settings
) -> tuple[Side, NumberedGallery]:
    """The index of a side, written, with its recall; asked by the other side where it is there."""
    own = vectors[target]
    choice = choose(len(own), own.shape[1], settings.memory_bytes, settings.asked)
    log.info("%s: %s × %d, %s", target, f"{len(own):,}", own.shape[1], choice)
    path = change.path(f"{target}.faiss")
    if choice.on_disk:
        change.path(clusters_beside(Path(f"{target}.faiss")).name)
    gallery = build_gallery(own, choice, similarity, settings.memory_bytes, path)
    asking: Target = next((other for other in vectors if other != target), target)
    queries = drawn_queries(vectors[asking], own.shape[1], similarity)
    choice, recall = tuned(gallery, choice, RecallMeasure(own, queries, similarity))
    gallery.write(path)
    note = "" if choice.kind == "flat" else f" with{''.join(f' {k}={v}' for k, v in choice.settings.items())}"
    log.info(
        "%s: recall@10 against exact search %.2f %% over %d %s%s", target, recall.percent, recall.queries, asking, note
    )
    side = Side(
        len(own), len(own), choice.kind, choice.settings, recall.percent, recall.queries, asking, recall_count=len(own)
    )
    return side, gallery


def _manifest(
    folder: Path, saved: SavedRun, source: Source, sides: Mapping[Target, Side], width: int, seconds: float
) -> Manifest:
    file = saved.file.absolute()
    return Manifest(
        name=file.parent.parent.name if file.parent.name == "checkpoints" else file.stem,
        data_name=source.name,
        splits=source.splits,
        similarity=source.run.model.similarity,
        embedding_dim=width,
        checkpoint=str(file),
        checkpoint_nearby=os.path.relpath(file, folder.absolute()),
        model_digest=model_digest(saved.content),
        root=str(source.root),
        sides=sides,
        seconds=round(seconds, 2),
        made=_now(),
        version=__version__,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _below_one_root(
    manifest: Manifest, items: IndexedItems, source: Source, new: Sequence[Item]
) -> tuple[Path, IndexedItems, IndexedItems]:
    """Old and new items with their files below the innermost folder that holds all of them."""
    old_root = Path(manifest.root)
    if not any(item.file for item in new):
        return old_root, items, IndexedItems.of(new)
    root = Path(os.path.commonpath([old_root, source.root]))
    return root, items.moved(old_root, root), IndexedItems.of(new).moved(source.root, root)


def _opened_for_change(folder: Path, manifest: Manifest, target: Target) -> NumberedGallery:
    """A gallery in memory.

    Raises:
        ConfigError: see ``require_changeable``; on disk clusters would be half changed for a time.
    """
    require_changeable(manifest, target)
    return read_gallery(folder / f"{target}.faiss", manifest.similarity, None)


def require_changeable(manifest: Manifest, target: Target) -> None:
    """Raise ConfigError unless vectors of this side can be added and removed."""
    if target not in manifest.sides:
        raise ConfigError(
            f"The index holds {' and '.join(manifest.sides)} alone: {target} can't be added to it. Build one of both: "
            "xmodal index RUN"
        )
    if clusters_beside(Path(f"{target}.faiss")).name in manifest.files:
        raise ConfigError(
            f"The clusters of {target} lie on disk, as they did not fit into the memory that they were given: such an "
            "index is not changed, but built anew, with what it is to hold."
        )


def require_room(manifest: Manifest, target: Target, count: int) -> None:
    """Raise ConfigError where codes would be added to that were learned from less than what came after.

    Codes fit what they were learned from. Up to as many new vectors, an index of clusters finds a few percent less than
    one that is built anew; beyond, ever less.
    """
    side = manifest.sides[target]
    # of codes, recall is measured when they are learned, and at no other time
    learned_from, since = side.recall_count, side.next_number - side.recall_count
    if side.index == "ivf_pq" and since + count > learned_from:
        earlier = f", after {since:,} that were added earlier" if since else ""
        raise ConfigError(
            f"The codes of {target} (ivf_pq) were learned from {learned_from:,} vectors; {count:,} more{earlier}, are "
            "too many for them to describe, and would be found badly. Build the index again with all items, and the "
            "same --output: xmodal index RUN … --overwrite"
        )


def _with_recall(
    folder: Path, manifest: Manifest, sides: Mapping[Target, Side], galleries: Mapping[Target, NumberedGallery]
) -> dict[Target, Side]:
    """Sides whose galleries have changed, with the recall that they have now; none where it can't be measured."""
    found = {}
    for target, gallery in galleries.items():
        if gallery.is_exact:
            found[target] = _measured(folder, sides, target, galleries, manifest.similarity)
            continue
        before, count = sides[target].recall, sides[target].recall_count
        known = "" if before is None else f" It was {before:.2f} % over the {count:,} vectors that it was built of."
        log.warning(
            "%s: recall@10 of the changed index is not known, for it holds codes alone, which exact search is not made "
            "with.%s Building it again measures it.",
            target,
            known,
        )
        found[target] = replace(sides[target], recall=None, recall_queries=0, recall_of="")
    return found


def _measured(
    folder: Path,
    sides: Mapping[Target, Side],
    target: Target,
    galleries: Mapping[Target, NumberedGallery],
    similarity: str,
) -> Side:
    """A side with its recall, asked by the other one as when it was built, unless that holds codes."""
    gallery = galleries[target]
    asking: Target = next((one for one in sides if one != target and sides[one].index != "ivf_pq"), target)
    asker = galleries[asking] if asking in galleries else read_gallery(folder / f"{asking}.faiss", similarity)
    queries = drawn_queries(asker.held[0], gallery.width, similarity, _ASKED_AGAIN)
    vectors, numbers = gallery.held
    recall = RecallMeasure(vectors, queries, similarity, numbers)(gallery)
    said = "%s: recall@10 against exact search now %.2f %% over %d %s"
    log.info(said, target, recall.percent, recall.queries, asking)
    if recall.percent < GOOD_RECALL:
        log.warning("%s: less than %.0f %%. Building the index again finds better settings.", target, GOOD_RECALL)
    return replace(
        sides[target],
        recall=recall.percent,
        recall_queries=recall.queries,
        recall_of=asking,
        recall_count=len(gallery),
    )


def _write_changed(
    change: Change, target: Target, gallery: NumberedGallery, corrections: dict[Target, Correction]
) -> None:
    gallery.write(change.path(f"{target}.faiss"))
    if target in corrections:
        corrections[target] = corrections[target].activated_in(gallery)


def _commit(
    change: Change, manifest: Manifest, changed: Manifest, corrections: Mapping[Target, Correction]
) -> Manifest:
    if corrections:
        write_corrections(change.path(BANK), corrections)
    return change.commit(replace(changed, made=_now(), version=__version__), manifest.files)


def _numbers_of(items: Sequence[Item], target: Target) -> np.ndarray:
    if target == "images":
        return np.array([item.image_number for item in items if item.image_number is not None], dtype=np.int64)
    return np.array([number for item in items for number in item.caption_numbers], dtype=np.int64)


def description(manifest: Manifest) -> str:
    """What an index holds, for the user."""
    size = sum(int(stated["bytes"]) for stated in manifest.files.values())
    sides = ", ".join(f"{side.count:,} {target} ({side.index})" for target, side in manifest.sides.items())
    return f"{manifest.data_name}, {', '.join(manifest.splits)}: {sides}; {readable(size)} in all"
