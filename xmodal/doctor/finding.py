"""One line of what was found, and the looks that make such lines; a look that breaks off makes one too."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any, Literal

Mark = Literal["ok", "optional", "warning", "missing", "fault"]
FAILING: tuple[Mark, ...] = ("missing", "fault")
_LONGEST = 300  # characters of somebody else's message


@dataclass(frozen=True)
class Finding:
    """What was found of one thing.

    Args:
        what: the thing.
        mark: ``ok``; ``optional``: not there, and not needed; ``warning``: may do harm; ``missing``: needed and not
            there; ``fault``: there, and of no use as it is.
        found: what was found, in a few words.
        advice: what to type or do next.
        values: the same in numbers, for programs.
    """

    what: str
    mark: Mark
    found: str
    advice: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_failing(self) -> bool:
        """Whether something needed is not as it has to be."""
        return self.mark in FAILING


@dataclass(frozen=True)
class Look:
    """One look at one thing.

    Args:
        section: under which its lines stand.
        what: the thing, where the look itself fails.
        find: gives the lines; whatever it imports, it imports itself.
    """

    section: str
    what: str
    find: Callable[[], Iterable[Finding]]

    def findings(self) -> list[Finding]:
        """The lines; an error that nobody expected is the last of them."""
        found: list[Finding] = []
        try:
            for finding in self.find():  # one by one: those before the error stay
                found.append(finding)  # noqa: PERF402
        except Exception as error:
            found.append(Finding(self.what, "fault", reason(error), _after(error)))
        return found


def reason(error: BaseException) -> str:
    """Kind and message of an error on one line, shortened."""
    return shortened(f"{type(error).__name__}: {error}" if str(error).strip() else type(error).__name__)


def shortened(message: str) -> str:
    """A message on one line."""
    return shorten(message, _LONGEST, placeholder=" …")


def _after(error: Exception) -> str:
    if isinstance(error, ImportError | OSError):
        return "put that right (a package may have to be installed anew), then: xmodal doctor"
    return "if other lines don't explain it, please report it, with what `xmodal doctor --json` prints"
