"""What `xmodal index` is asked for, carried out."""

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from xmodal.errors import ConfigError, DataError
from xmodal.experiment.evaluation import chosen_device
from xmodal.experiment.opened_run import SavedRun
from xmodal.models.checkpoint import model_digest
from xmodal.search.choice import Asked
from xmodal.search.engine import checkpoint_file
from xmodal.search.folder import LEFTOVERS, change_of, verified
from xmodal.search.gallery import memory_of_machine
from xmodal.search.items_table import IndexedItems
from xmodal.search.manifest import ITEMS, NAME, TARGETS, Manifest, Target, read_manifest
from xmodal.search.saving import (
    Settings,
    add_items,
    build_index,
    description,
    remove_items,
    require_changeable,
    require_room,
)
from xmodal.search.sources import Known, Source, own_source, split_source

log = logging.getLogger(__name__)

_SHARE = 0.5  # of the main memory that an index may take


@dataclass(frozen=True)
class Request:
    """The words of the command line; see its help."""

    asked: Asked
    overrides: Sequence[str] = ()
    split: str | None = None
    images: Path | None = None
    captions: Path | None = None
    on_error: str = "error"
    bank_size: int = 0
    inverse_temperature: float | None = None
    includes_model: bool = False
    memory_gb: float | None = None
    device: str = "auto"
    checkpoint: Path | None = None
    overwrites: bool = False

    @property
    def own_targets(self) -> list[Target]:
        """Sides that photos or sentences of one's own are taken for."""
        given = zip(TARGETS, (self.images, self.captions), strict=True)
        return [target for target, place in given if place is not None]

    @property
    def memory_bytes(self) -> int:
        return int(memory_of_machine() * _SHARE if self.memory_gb is None else self.memory_gb * 1e9)

    @property
    def settings(self) -> Settings:
        return Settings(self.asked, self.memory_bytes, self.inverse_temperature, self.includes_model)


def new_index(place: Path, output: Path, request: Request) -> Manifest:
    """Build an index of a run and say what it holds.

    Raises:
        XmodalError: whatever is wrong with run, items, settings or folder.
    """
    _require_no_index(place, request)
    _require_free(output, request.overwrites)
    saved = SavedRun.read(place, request.overrides, chosen_device(request.device))
    _require_bank_settings(saved, request)
    with change_of(output) as change:
        _require_free(output, request.overwrites)  # another process may have built one meanwhile
        manifest = build_index(change, output, saved, _source(saved, request, Known()), request.settings)
    log.info("%s, built in %.1f s", description(manifest), manifest.seconds)
    log.info("Index: %s\nSearch it: xmodal search %s 'a sentence'", output, output)
    return manifest


def change_index(folder: Path, request: Request, removed: Sequence[str] | None) -> Manifest:
    """Add items to an index, or remove some (``removed``: their ids), and say what it holds then.

    Raises:
        XmodalError: whatever is wrong with index, items or model.
    """
    manifest = verified(folder)
    if request.asked.kind is not None:
        raise ConfigError(f"index={request.asked.kind}: an index keeps its kind. Build another with --output.")
    with change_of(folder, is_of_new=False) as change:
        manifest = verified(folder)  # another process may have changed it meanwhile
        if removed is not None:
            manifest = remove_items(change, folder, manifest, removed)
        else:
            for target in request.own_targets:  # before anything is encoded
                require_changeable(manifest, target)
            saved = _saved_of(folder, manifest, request)
            source = _source(saved, request, _known(folder, manifest), partial(require_room, manifest))
            manifest = add_items(change, folder, manifest, source)
    log.info("%s", description(manifest))
    return manifest


def _source(
    saved: SavedRun, request: Request, known: Known, admit: Callable[[Target, int], None] | None = None
) -> Source:
    if not request.own_targets:
        return split_source(saved, request.split, request.bank_size)
    return own_source(saved, request.images, request.captions, request.on_error, request.bank_size, known, admit)


def _saved_of(folder: Path, manifest: Manifest, request: Request) -> SavedRun:
    saved = SavedRun.read(
        checkpoint_file(folder, manifest, request.checkpoint), request.overrides, chosen_device(request.device)
    )
    if model_digest(saved.content) != manifest.model_digest:
        raise DataError(
            f"{saved.file} has changed since the index {folder} was made of it: what it embeds now can't be compared. "
            "Build the index again: xmodal index RUN"
        )
    return saved


def _known(folder: Path, manifest: Manifest) -> Known:
    items = IndexedItems.read(folder / ITEMS)
    files = (items.file_at(row) for row in range(len(items)))
    root = Path(manifest.root)
    taken = frozenset(Path(os.path.abspath(root / file)) for file in files if file is not None)
    captions = manifest.sides["captions"].next_number if "captions" in manifest.sides else 0
    return Known(frozenset(items.ids), taken, captions)


def _require_no_index(place: Path, request: Request) -> None:
    """Raise ConfigError for an index in the place of a run."""
    if (place / NAME).is_file():
        given = {"--images": request.images, "--captions": request.captions}
        items = " ".join(f"{flag} {path}" for flag, path in given.items() if path is not None)
        raise ConfigError(
            f"{place} is an index, not a run. To put items into it, add --add: xmodal index {place} --add "
            f"{items or '--images FOLDER'}. A new index needs the run that it is of: xmodal index RUN"
        )


def _require_free(output: Path, overwrites: bool) -> None:
    """Raise ConfigError unless the folder is new or empty, or an index that may be replaced as a whole."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is a file; name a folder.")
    if (output / NAME).exists():
        if not overwrites:
            raise ConfigError(
                f"{output} is an index already: {_what_is_in(output)}. Put photos and sentences of your own into it: "
                f"xmodal index {output} --add --images FOLDER; or build another beside it: --output DIR; or replace it "
                "as a whole: --overwrite."
            )
    elif output.is_dir():
        leftovers = {path for pattern in (*LEFTOVERS, f"{NAME}.lock") for path in output.glob(pattern)}
        if others := [path.name for path in output.iterdir() if path not in leftovers]:
            raise ConfigError(
                f"--output {output} holds something else than an index ({others[0]} …); name a new folder."
            )


def _what_is_in(folder: Path) -> str:
    try:
        manifest = read_manifest(folder)
    except DataError as error:
        return f"one that can't be opened ({str(error).rstrip('.')})"
    return f"{description(manifest)}, of the model {manifest.checkpoint}, last changed {manifest.made}"


def _require_bank_settings(saved: SavedRun, request: Request) -> None:
    beta = request.inverse_temperature
    if beta is not None and not (math.isfinite(beta) and beta > 0):
        raise ConfigError(f"--inverse-temperature must be a positive number, found {beta}.")
    if beta is not None and not request.bank_size:
        raise ConfigError("--inverse-temperature is of --query-bank N, which is not asked for.")
    similarity = saved.cfg.model.similarity
    if request.bank_size and similarity == "euclidean":
        raise ConfigError("--query-bank corrects cosines and dot products; this model compares by euclidean distances.")
    if request.bank_size and similarity == "dot" and beta is None:
        raise ConfigError(
            "--query-bank: under dot products, say its --inverse-temperature, which depends on their scale."
        )
