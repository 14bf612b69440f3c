"""Files that are seen complete or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """A place to write to, which takes the name ``path`` when the block ends well, and is removed when it does not.

    What was at ``path`` before stays until then. Raises OSError as any writing does.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
