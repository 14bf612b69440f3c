"""What a multirun goes through beside the lists that are typed, and whether its sweeper and launcher are there."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from xmodal.config.sources import ConfigSource
from xmodal.config.values import value_of

_GRID = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
_NEEDED = {  # by the package of what was chosen: what has to be installed
    "hydra_plugins.hydra_joblib_launcher": "hydra_plugins.hydra_joblib_launcher",
    "hydra_plugins.hydra_submitit_launcher": "hydra_plugins.hydra_submitit_launcher",
    "hydra_plugins.xmodal_sweeps": "optuna",
}


@dataclass(frozen=True)
class Sweeping:
    """Of a multirun: ``key=a,b`` for each list of values that a file states and nobody typed, and what is wrong."""

    lines: tuple[str, ...]
    faults: tuple[str, ...]


def sweeping(lines: Sequence[str], source: ConfigSource) -> Sweeping:
    """What ``hydra.sweeper`` and ``hydra.launcher`` of this command line say; nothing where it can't be composed."""
    typed = _parsed(lines)
    if several := [o for o in typed if o.key_or_group == "sweep" and o.is_sweep_override()]:
        line = several[0].input_line
        return Sweeping((), (f"{line}: one sweep at a time. Lists can be typed beside it: loss.margin=0.1,0.2.",))
    try:
        hydra = source.load_hydra([str(o.input_line) for o in typed if not o.is_sweep_override()])
    except (HydraException, OmegaConfBaseException, ValueError):
        return Sweeping((), ())
    stated = value_of(hydra, "sweeper.params") or {}
    keys = {override.get_key_element() for override in typed}
    faults = [*_not_installed(hydra), *_intervals(typed, hydra)]
    return Sweeping(tuple(f"{key}={values}" for key, values in stated.items() if key not in keys), tuple(faults))


def _parsed(lines: Sequence[str]) -> list[Override]:
    """Those that can be read; the others are faults that are said elsewhere."""
    parser, found = OverridesParser.create(), []
    for line in lines:
        try:
            found.append(parser.parse_override(line))
        except HydraException:
            continue
    return found


def _not_installed(hydra: DictConfig) -> list[str]:
    chosen = {part: str(value_of(hydra, f"{part}._target_")) for part in ("launcher", "sweeper")}
    return [
        f"hydra/{part}: {target.rpartition('.')[2]} needs a package that is not installed. First run: "
        "pip install 'xmodal[sweeps]', in a checkout pip install -e '.[sweeps]'."
        for part, target in chosen.items()
        for package, needed in _NEEDED.items()
        if target.startswith(f"{package}.") and not _is_installed(needed)
    ]


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False


def _intervals(typed: Sequence[Override], hydra: DictConfig) -> list[str]:
    if value_of(hydra, "sweeper._target_") != _GRID:
        return []
    return [
        f"{override.input_line}: a grid takes single values. Type a list, a,b,c, or let values be looked for between "
        "these bounds: hydra/sweeper=optuna."
        for override in typed
        if override.value_type == ValueType.INTERVAL_SWEEP
    ]
