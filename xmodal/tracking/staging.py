"""Where W&B puts files of tables and artifacts until they are uploaded."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_VARIABLE = "WANDB_DATA_DIR"


@contextmanager
def staged_with_run(run: Any) -> Iterator[None]:
    """Within, files that go with an offline run are kept in its own folder, so that it is complete.

    W&B would keep them below the home folder, where the next clean-up takes what has not been synced yet. Where the
    variable WANDB_DATA_DIR names a place, that is the place.
    """
    if not run.offline or _VARIABLE in os.environ:
        yield
        return
    os.environ[_VARIABLE] = str(Path(run.dir).parent)
    try:
        yield
    finally:
        del os.environ[_VARIABLE]
