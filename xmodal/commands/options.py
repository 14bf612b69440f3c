"""Words on the command line that a command does not know, and options that several share."""

import argparse
import math
from collections.abc import Sequence

from xmodal.config.suggestions import did_you_mean


def unknown(words: Sequence[str], command: argparse.ArgumentParser) -> list[str]:
    """A fault for each word that the command knows nothing of."""
    known = [flag for action in command._actions for flag in action.option_strings]
    return [f"{word}: `{command.prog}` has no such option.{did_you_mean(word, known)}" for word in words]


def memory_faults(memory_gb: float | None) -> list[str]:
    """Why ``--memory-gb`` is no amount of memory."""
    if memory_gb is None or 0 < memory_gb < math.inf:
        return []
    return [f"--memory-gb must be a number above 0, found {memory_gb}."]
