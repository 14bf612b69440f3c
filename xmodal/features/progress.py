"""How far an extraction is, how fast it goes and how long it will take."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

Advance = Callable[[int], None]
_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def showing(description: str, total: int, done: int, bar: bool = True) -> Iterator[Advance]:
    """A function to call with the number of items just done: a bar on a terminal, else a log line every ten seconds."""
    if bar and sys.stderr.isatty():
        with _bar(description, total, done) as advance:
            yield advance
    else:
        yield _LoggedProgress(description, total, done)


@contextmanager
def _bar(description: str, total: int, done: int) -> Iterator[Advance]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task: TaskID = progress.add_task(description, total=total, completed=done, rate="")
        start, encoded = time.monotonic(), 0

        def advance(count: int) -> None:
            nonlocal encoded
            encoded += count
            rate = encoded / max(1e-6, time.monotonic() - start)
            progress.update(task, advance=count, rate=f"{rate:.1f}/s")

        yield advance


class _LoggedProgress:
    """Called with the number of items that were just encoded; logs rate and remaining time now and then."""

    def __init__(self, description: str, total: int, done: int) -> None:
        self.description = description
        self.total = total
        self.done = done
        self.before = done
        self.start = self.last = time.monotonic()

    def __call__(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last < _SECONDS_BETWEEN_LINES and self.done < self.total:
            return
        self.last = now
        rate = max(1e-6, (self.done - self.before) / max(1e-6, now - self.start))
        left = (self.total - self.done) / rate
        log.info("%s: %d of %d, %.1f/s, %.0f s left", self.description, self.done, self.total, rate, left)
