"""A configuration as columns of a table of runs."""

from collections.abc import Mapping
from typing import Any


def flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested configuration as dotted names: ``{"loss": {"margin": 0.2}}`` → ``{"loss.margin": 0.2}``."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flat_config(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
