"""How many pairs are trained on per second, without the time that validation takes."""

import time
from collections.abc import Callable


class Pace:
    """A clock of one epoch at a time: ``begin``, ``count`` after each batch, ``go_on`` after whatever does not count.

    Args:
        clock: seconds, from anywhere.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.begin()

    def begin(self) -> None:
        """A new epoch."""
        self._pairs, self._seconds = 0, 0.0
        self.go_on()

    def go_on(self) -> None:
        """What went by since the last batch was no training."""
        self._mark = self._clock()

    def count(self, pairs: int) -> None:
        """A batch has been trained on; loading it counts."""
        self._pairs += pairs
        now = self._clock()
        self._seconds, self._mark = self._seconds + now - self._mark, now

    @property
    def pairs_per_second(self) -> float | None:
        """Of the epoch so far; None before its first batch."""
        return self._pairs / self._seconds if self._pairs and self._seconds > 0 else None
