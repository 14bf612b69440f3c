"""Where a run comes from, in ``provenance.json`` of its folder: from its first moment on, and however it ends."""

import json
import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only

from xmodal.atomic import complete_file
from xmodal.config.identity import identity
from xmodal.config.values import resolved
from xmodal.data.items import Items
from xmodal.errors import XmodalError
from xmodal.experiment import surroundings

log = logging.getLogger(__name__)

PROVENANCE = "provenance.json"
INTERRUPTED = 130  # what a shell reports for a command ended by Ctrl-C
_FORMAT = 1
_LONGEST_ERROR = 500  # characters

Status = Literal["running", "finished", "failed", "interrupted"]


@dataclass
class Provenance:
    """What is known of a run so far; each change is written at once, by the first of its processes.

    A file that can't be written is said in a warning: figures are never lost for it.
    """

    folder: Path
    stated: dict[str, Any]
    _began: float = field(default_factory=time.monotonic)

    @classmethod
    def begin(cls, cfg: DictConfig, folder: Path) -> "Provenance":
        """Write down what is known before anything is built."""
        stated = {
            "format": _FORMAT,
            "status": "running",
            "error": None,
            "command": surroundings.command(),
            "overrides": surroundings.overrides(),
            "identity": identity(resolved(cfg)),
            "sweep": surroundings.sweep_of(folder),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": None,
            "data": None,
            "git": surroundings.commit(),
            "versions": surroundings.versions(),
            "machine": surroundings.machine(),
        }
        begun = cls(folder, stated)
        begun._write()
        return begun

    def tell_data(self, items: Items) -> None:
        """Add the data set: its fingerprint and sizes."""
        self.stated["data"] = described(items)
        self._write()

    def end(self, status: Status, error: BaseException | None = None) -> None:
        """The run is over; of several ends the first one counts."""
        if self.stated["status"] != "running":
            return
        said = None if error is None else one_line(error)
        self.stated |= {"status": status, "error": said, "seconds": round(time.monotonic() - self._began, 2)}
        self._write()

    def end_by(self, error: BaseException) -> None:
        """The run is over because of this: an interruption, or a failure."""
        is_interrupted = isinstance(error, KeyboardInterrupt) or getattr(error, "code", None) == INTERRUPTED
        self.end(*(("interrupted", None) if is_interrupted else ("failed", error)))

    def _write(self) -> None:
        if getattr(rank_zero_only, "rank", 0) != 0:
            return
        path = self.folder / PROVENANCE
        try:
            with complete_file(path) as partial:
                partial.write_text(json.dumps(self.stated, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            log.warning("%s can't be written (%s): a report will not know where the run comes from.", path, error)


def described(items: Items) -> dict[str, Any]:
    """Name, fingerprint and sizes of a data set; of each role that any image plays, its images and captions."""
    roles = [role for role in items.splits if items.has_split(role)]
    return {
        "name": items.name,
        "fingerprint": items.fingerprint(),
        "images": len(items.images),
        "captions": len(items.captions),
        "splits": {role: [len(items.image_rows(role)), len(items.caption_rows(role))] for role in roles},
    }


def one_line(error: BaseException) -> str:
    """What an error says, in one line; with its kind where it is not one of xmodal's own."""
    text = " ".join(str(error).split())
    said = text if isinstance(error, XmodalError) else ": ".join(filter(None, [type(error).__name__, text]))
    return said if len(said) <= _LONGEST_ERROR else said[: _LONGEST_ERROR - 1] + "…"
