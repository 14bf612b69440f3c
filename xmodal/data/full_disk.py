"""What is said where the disk of a folder is full."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xmodal.errors import XmodalError


@contextmanager
def told_where_full(folder: Path, key: str) -> Iterator[None]:
    """Writing below ``folder``, which the setting ``key`` names; raises XmodalError where its disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise XmodalError(
            f"No space left for {folder} ({error.strerror}). Make room there, or choose another disk: {key}=/path."
        ) from error
