"""What a search looks through, read from the settings and lists of a command line."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from xmodal.errors import ConfigError

_DIGITS = 8
_UNNAMED = ("resume=", "paths.", "logger", "name=", "tags=")  # settings that a study is not called after


def space_of(lines: Sequence[str], config_loader: ConfigLoader) -> tuple[dict[str, BaseDistribution], tuple[str, ...]]:
    """The distribution of each key that has several values, and the settings that all jobs have; later ones count.

    Raises:
        ConfigError: there is nothing to look for.
    """
    parsed = OverridesParser.create(config_loader=config_loader).parse_overrides(list(lines))
    latest = {override.get_key_element(): override for override in parsed}
    space = {key: _distribution(override) for key, override in latest.items() if override.is_sweep_override()}
    fixed = [f"{key}={o.get_value_element_as_str()}" for key, o in latest.items() if not o.is_sweep_override()]
    if not space:
        example = "loss.margin=0.1,0.2 'optimizer.lr=tag(log,interval(1e-4,1e-2))'"
        raise ConfigError([f"hydra/sweeper=optuna: there is nothing to look for. Type lists or bounds: {example}."])
    return space, tuple(fixed)


def _distribution(override: Override) -> BaseDistribution:
    """Bounds and ranges of whole numbers keep their order; of anything else Optuna chooses one."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        is_log = "log" in value.tags
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log=is_log)
        assert value.start is not None
        assert value.end is not None
        return FloatDistribution(value.start, value.end, log=is_log)
    if isinstance(value, RangeSweep) and not value.shuffle and all(type(end) is int for end in _ends(value)):
        numbers = range(*_ends(value))
        return IntDistribution(numbers[0], numbers[-1], step=numbers.step)
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _ends(value: RangeSweep) -> tuple[Any, Any, Any]:
    return value.start, value.stop, value.step


def name_of(metric: str, space: Mapping[str, BaseDistribution], fixed: Sequence[str]) -> str:
    """The same for the same search, however its settings are ordered and wherever its runs are kept."""
    counting = sorted(line for line in fixed if not line.startswith(_UNNAMED))
    text = "\n".join([metric, *counting, *(f"{key}: {space[key]}" for key in sorted(space))])
    return f"{metric.replace('/', '_')}-{hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]}"
