"""The runs as a pandas table, for analyses of one's own."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xmodal.errors import ConfigError
from xmodal.reporting.runs import Run
from xmodal.reporting.swept import setting, swept_keys

if TYPE_CHECKING:
    from pandas import DataFrame


def frame_of(runs: Sequence[Run]) -> "DataFrame":
    """A row per run, finished or not, under its name.

    Columns: ``status``, ``data``, ``split`` (which evaluation is reported), ``seed``, the settings in which the runs
    differ under their dotted keys (missing where a run has no such setting), and all figures under the names of
    ``metrics.json`` (``test/i2t_R1``, in percent).

    Raises:
        ConfigError: pandas is not installed.
    """
    try:
        from pandas import DataFrame
    except ImportError as error:
        raise ConfigError(["frame_of needs pandas: pip install -c constraints.txt -e '.[notebooks]'."]) from error
    keys = swept_keys([run for run in runs if run.config])
    rows = [_row(run, keys) for run in runs]
    columns = list(dict.fromkeys(["status", "data", "split", "seed", *keys, *(name for row in rows for name in row)]))
    return DataFrame(rows, index=[run.name for run in runs], columns=columns).rename_axis("run")


def _row(run: Run, keys: Sequence[str]) -> dict[str, Any]:
    settings = {key: setting(run, key) for key in keys if key in run.config}
    return {
        "status": run.status,
        "data": run.data_name,
        "split": run.split,
        "seed": run.seed,
        **settings,
        **run.metrics,
    }
