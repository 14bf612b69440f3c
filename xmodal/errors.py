"""The few exception types a user can meet; each message says what, where, what was expected and what to do next."""

from collections.abc import Sequence


class XmodalError(Exception):
    """Anything that the user can put right; shown without a traceback."""


class ConfigError(XmodalError):
    """Faults of the configuration, all of them at once.

    Args:
        faults: one complete sentence (or short paragraph) per fault.
    """

    def __init__(self, faults: Sequence[str] | str) -> None:
        self.faults = (faults,) if isinstance(faults, str) else tuple(faults)
        super().__init__("\n".join(self.faults))


class DataError(XmodalError):
    """A data set that is missing, damaged or contradicts itself."""


class FeatureError(XmodalError):
    """A feature file of the wrong form, width or count, or with values that are not numbers."""


class WeightsError(XmodalError):
    """Pretrained weights or vectors that can't be had."""
