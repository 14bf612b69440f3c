"""Two runs that want the same file: the first makes it, the second waits and says so."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


@contextmanager
def only_one(path: Path, doing: str = "extracting") -> Iterator[None]:
    """Hold the right to write ``path``; the operating system takes it back from a process that dies.

    Args:
        doing: what the other process does with it, in the words for one that has to wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("Another process is %s %s; waiting for it.", doing, path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """Hold the right to write ``path`` (True), or learn at once that another process does (False)."""
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether another process holds the right to write ``path`` now."""
    if not Path(f"{path}.lock").exists():
        return False
    try:
        with if_free(path) as free:
            return not free
    except OSError:  # a folder that can only be read: whoever writes there can't be seen
        return False
