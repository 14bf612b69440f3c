"""What a saved index says of itself: model, data, sizes, settings, and the digests of its files."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from xmodal.errors import DataError

Target = Literal["images", "captions"]

TARGETS: tuple[Target, ...] = ("images", "captions")
NAME = "index.json"
ITEMS = "items.parquet"
CONFIG = "config.yaml"
BANK = "bank.npz"
MODEL = "model.ckpt"
UNFINISHED = ".next"  # ending of files that are being written
_FORMAT = 1
_AGAIN = "Build the index again: xmodal index RUN --output … --overwrite"


@dataclass(frozen=True)
class Side:
    """The vectors of one side.

    Attributes:
        count: how many there are.
        next_number: the number that the next vector gets; no number is ever given twice.
        index: ``flat``, ``hnsw`` or ``ivf_pq``, with ``settings``.
        recall: percent of the exact top 10 that the index returned when it was built or last changed, over
            ``recall_queries`` queries (``recall_of``: captions or images); None where there was nothing to ask, or
            where codes were added to, for they can't be compared with.
        recall_count: of how many vectors the index was then; of codes, of how many they were learned from.
    """

    count: int
    next_number: int
    index: str
    settings: Mapping[str, int]
    recall: float | None = None
    recall_queries: int = 0
    recall_of: str = ""
    recall_count: int = 0


@dataclass(frozen=True)
class Manifest:
    """``index.json`` of a saved index.

    Attributes:
        name: of the run that made the embeddings.
        data_name: of the data set, or of the folder of photos.
        splits: those that are in the index, in order.
        similarity: by which the model compares.
        embedding_dim: width E of its space.
        checkpoint: of the model, seen from where the index was built, and ``checkpoint_nearby``: from the index.
        model_digest: of the model's parameters and encoders, see `xmodal.models.checkpoint.model_digest`.
        root: folder that the files of the items lie below.
        sides: ``images``, ``captions``, or both.
        files: SHA-256 and size in bytes of each file of the index.
        seconds: how long building took.
        made: date and time of the last change, ISO 8601.
        version: of xmodal.
    """

    name: str
    data_name: str
    splits: tuple[str, ...]
    similarity: str
    embedding_dim: int
    checkpoint: str
    checkpoint_nearby: str
    model_digest: str
    root: str
    sides: Mapping[Target, Side]
    seconds: float
    made: str
    version: str
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Vectors of each side; 0 for one that is not there."""
        return {target: self.sides[target].count if target in self.sides else 0 for target in TARGETS}

    def as_json(self) -> str:
        content = asdict(self)
        return (
            json.dumps({"format": _FORMAT, **content, "digest": _digest(content)}, indent=2, ensure_ascii=False) + "\n"
        )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a saved index.

    Raises:
        DataError: there is no index, an unfinished one, one of a later format, or a damaged manifest.
    """
    path = folder / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(_no_index(folder)) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read ({error}). {_AGAIN}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != _FORMAT:
        raise DataError(f"{path} has the format {found!r}, this version of xmodal reads {_FORMAT}. {_AGAIN}")
    del content["format"]
    if content.pop("digest", None) != _digest(content):
        raise DataError(f"{path} is damaged: it has another content than when it was written. {_AGAIN}")
    try:
        sides = {target: Side(**side) for target, side in content.pop("sides").items()}
        return Manifest(**{**content, "splits": tuple(content["splits"])}, sides=sides)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}). {_AGAIN}") from error


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of what a manifest says, in whatever order and layout."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _no_index(folder: Path) -> str:
    if not folder.exists():
        return f"There is no folder {folder}. Build an index first: xmodal index RUN --output {folder}"
    if not folder.is_dir():
        return f"{folder} is a file. An index is a folder: xmodal index RUN --output DIR makes one."
    if (folder / "checkpoints").is_dir():
        return f"{folder} is a run, and no index of it yet: xmodal index {folder}"
    if any(folder.glob(f"*{UNFINISHED}")):
        return f"The index in {folder} was never finished. Give the command that was to build it again."
    below = sorted(found.parent for found in folder.glob(f"*/{NAME}"))[:3]
    hint = f" Did you mean {' or '.join(map(str, below))}?" if below else ""
    return f"{folder} holds no index (no {NAME}).{hint}"
