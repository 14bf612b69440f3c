"""A multirun as a whole: a job that fails takes no other with it, and is listed at the end."""

import json
import logging
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from xmodal.atomic import complete_file
from xmodal.config.identity import PROVENANCE
from xmodal.experiment.earlier_runs import EARLIER_RUN
from xmodal.experiment.sweep_outcome import described, outcomes

log = logging.getLogger(__name__)

INTERRUPTED = 130  # what a shell reports for a command ended by Ctrl-C
_LONGEST_ERROR = 500  # characters
_TAKEN = (
    "{folder} holds the jobs of another sweep ({words}), which these would overwrite. Leave hydra.sweep.dir out, or "
    "name an empty folder; resume=true finds finished runs in any folder below paths.output_dir."
)


class SweepBeginning(Callback):
    """Learns from Hydra where the sweep of this process keeps its jobs; ``folder`` is None where there is no sweep."""

    folder: ClassVar[Path | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir).resolve()
        if other := _words_of_other_jobs(folder, config.hydra.overrides.task):
            print(_TAKEN.format(folder=folder, words=shlex.join(other)), file=sys.stderr)
            sys.exit(2)
        SweepBeginning.folder = folder


def _words_of_other_jobs(folder: Path, words: Sequence[str]) -> list[str]:
    """The settings of the sweep that this folder holds, where they are not these: its jobs have these jobs' numbers."""
    try:
        kept = OmegaConf.load(folder / "multirun.yaml").hydra.overrides.task
    except (OSError, YAMLError, AttributeError, OmegaConfBaseException):
        return []  # no sweep, or one that was cut off before its first job
    earlier, now = ([word for word in found if not word.startswith("resume=")] for found in (kept, words))
    return earlier if sorted(earlier) != sorted(now) and outcomes(folder) else []


@contextmanager
def whole_sweep(words: Sequence[str]) -> Iterator[None]:
    """Around everything that a command line starts: at the end of a sweep, the jobs that did not finish are listed, or,
    where there are none, the command for a report is told.

    Leaves with exit code 1 where a job failed, and 130 after Ctrl-C, saying how to go on. A single run passes through.

    Args:
        words: the command line without the program's name, as the user typed it.
    """
    code: Any = 0
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as ending:
        if SweepBeginning.folder is None or not outcomes(SweepBeginning.folder):
            raise
        code = INTERRUPTED if isinstance(ending, KeyboardInterrupt) else ending.code
    if SweepBeginning.folder is not None:
        _close(SweepBeginning.folder, words, code)


def _close(folder: Path, words: Sequence[str], code: Any) -> None:
    jobs = outcomes(folder)
    has_lost = any(job.status != "finished" for job in jobs)
    if not has_lost and not code:
        if jobs:  # none: of a search that had made all its trials before
            print(f"{len(jobs)} of {len(jobs)} jobs finished. Their tables and figures:\n  {_report_of(folder)}")
        return
    reason = ["The sweep was interrupted."] if code == INTERRUPTED else ["The sweep ended early."] if code else []
    lost = [described(jobs, folder, words)] if has_lost else []
    kept = [word for word in words if not word.startswith("resume=")]
    again = shlex.join(["python", "train.py", *kept, "resume=true"])
    advice = "This runs what is missing, and goes on where a job stopped:"
    finished = [job for job in jobs if job.status == "finished"]
    report = ["Tables and figures of those that finished:", f"  {_report_of(folder)}"] if finished else []
    print("\n".join([*reason, *lost, *report, advice, f"  {again}"]), file=sys.stderr)
    sys.exit(code or 1)


def _report_of(folder: Path) -> str:
    place = os.path.relpath(folder)
    return shlex.join(["xmodal", "report", str(folder) if place.startswith("..") else place])


def job_of_sweep(run: Callable[[DictConfig], float | None], cfg: DictConfig) -> float | None:
    """``run(cfg)``; where it fails within a multirun, that is written down and the sweep goes on: NaN is returned.

    Ctrl-C ends the sweep, and so does a job of several processes that fails, with which Lightning ends the program.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    if _is_first_process():
        (folder / EARLIER_RUN).unlink(missing_ok=True)
    try:
        return run(cfg)
    except (Exception, SystemExit) as error:
        if HydraConfig.get().mode != RunMode.MULTIRUN or "LOCAL_RANK" in os.environ or _is_interruption(error):
            raise
        if isinstance(error, Exception):
            log.exception("The job failed with an error of the program.")
        _note_failure(folder, error)
        log.error("This job failed, and the sweep goes on.")
        return math.nan


def _is_interruption(error: BaseException) -> bool:
    return isinstance(error, SystemExit) and error.code == INTERRUPTED


def _is_first_process() -> bool:
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def _note_failure(folder: Path, error: BaseException) -> None:
    """Where the run itself has not said how it ended, say it in its provenance."""
    path = folder / PROVENANCE
    stated = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"format": 1}
    if stated.get("status", "running") != "running":
        return
    reason = error.__context__ if isinstance(error, SystemExit) and error.__context__ else error
    said = " ".join(f"{type(reason).__name__}: {reason}".split())[:_LONGEST_ERROR]
    text = json.dumps(stated | {"status": "failed", "error": said}, indent=2) + "\n"
    try:
        with complete_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as fault:  # a full disk: the next job may find room
        log.error("%s can't be written (%s). The job failed with: %s", path, fault, said)
