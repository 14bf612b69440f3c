"""Words on the command line that a command does not know."""

import argparse
from collections.abc import Sequence

from xmodal.config.suggestions import did_you_mean


def unknown(words: Sequence[str], command: argparse.ArgumentParser) -> list[str]:
    """A fault for each word that the command knows nothing of."""
    known = [flag for action in command._actions for flag in action.option_strings]
    return [f"{word}: `{command.prog}` has no such option.{did_you_mean(word, known)}" for word in words]
