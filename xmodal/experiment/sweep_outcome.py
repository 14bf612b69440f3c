"""How the jobs of a sweep ended, read from their folders, in whichever processes and on whichever machines they ran."""

import json
import os
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from xmodal.config.identity import PROVENANCE
from xmodal.experiment.earlier_runs import EARLIER_RUN

_OVERRIDES = Path(".hydra") / "overrides.yaml"
_BEGINNING = "multirun.yaml"  # which a sweeper writes before the first job
_SILENT = "it ended without a word: killed, out of memory, or still running elsewhere? See train.log there"


@dataclass(frozen=True)
class JobOutcome:
    """One job: where it ran, what was set for it, ``finished``, ``failed`` or ``interrupted``, and why."""

    folder: Path
    overrides: tuple[str, ...]
    status: str
    error: str | None


def outcomes(sweep: Path) -> list[JobOutcome]:
    """Those jobs of the sweep that were begun, in the order of their numbers.

    What an earlier sweep left in the same folder is not among them.
    """
    beginning = _written(sweep / _BEGINNING)
    folders = [folder for folder in _job_folders(sweep) if _written(folder / _OVERRIDES) >= beginning]
    return [_outcome(folder) for folder in sorted(folders, key=_natural)]


def described(jobs: Sequence[JobOutcome], sweep: Path, typed: Sequence[str]) -> str:
    """Which jobs did not finish: what is set for each alone, why, and where.

    Args:
        typed: the command line, which no job has for itself.
    """
    lost = [job for job in jobs if job.status != "finished"]
    common = set(typed) | (set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set())
    count = f"{len(lost)} of {len(jobs)} jobs that were begun did not finish:"
    return "\n".join([count, *(line for job in lost for line in _lines(job, sweep, common))])


def _lines(job: JobOutcome, sweep: Path, common: Container[str]) -> Iterator[str]:
    own = [line for line in job.overrides if line not in common]
    yield f"  #{job.folder.relative_to(sweep)} {' '.join(own)}"
    yield f"     {job.status}: {job.error}" if job.error else f"     {job.status}"
    yield f"     {job.folder}"


def _outcome(folder: Path) -> JobOutcome:
    found = yaml.safe_load((folder / _OVERRIDES).read_text(encoding="utf-8")) or []
    overrides = tuple(str(line) for line in found)
    if (folder / EARLIER_RUN).exists():
        return JobOutcome(folder, overrides, "finished", None)
    told = _provenance(folder)
    status = str(told.get("status"))
    if status not in ("finished", "failed", "interrupted"):
        return JobOutcome(folder, overrides, "failed", _SILENT)
    return JobOutcome(folder, overrides, status, told.get("error"))


def _provenance(folder: Path) -> dict[str, Any]:
    """That of this start: one that is older than the job belongs to an earlier sweep."""
    path = folder / PROVENANCE
    if _written(path) < _written(folder / _OVERRIDES):
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))  # written at once and whole
    return found if isinstance(found, dict) else {}


def _job_folders(sweep: Path) -> Iterator[Path]:
    for folder, below, _ in os.walk(sweep):
        is_job = (Path(folder) / _OVERRIDES).is_file()
        below[:] = [] if is_job else [name for name in below if name[0] != "."]
        if is_job:
            yield Path(folder)


def _written(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def _natural(path: Path) -> list[tuple[int, str]]:
    """Job 10 stands behind job 9."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", str(path))]
