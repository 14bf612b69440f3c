"""The `xmodal` command: a sub-command for each thing that is done around `train.py`."""

import argparse
import logging
import sys
from collections.abc import Sequence

from xmodal import __version__
from xmodal.commands import (
    compare,
    dashboard,
    demo,
    doctor,
    evaluate,
    export,
    extract,
    features,
    index,
    report,
    search,
)
from xmodal.config import command_line
from xmodal.errors import ConfigError, XmodalError

USAGE_FAULT = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit code (2: a fault the user can put right, 130: Ctrl-C)."""
    parsed, rest = _parser().parse_known_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("gensim", "faiss", "fontTools"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return parsed.run(parsed, rest)
    except ConfigError as error:
        print(command_line.report(error.faults), file=sys.stderr)
        return USAGE_FAULT
    except XmodalError as error:
        print(error, file=sys.stderr)
        return USAGE_FAULT
    except KeyboardInterrupt:
        print(f"Interrupted. {parsed.interrupted}", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xmodal", description="Tools around train.py.")
    parser.add_argument("--version", action="version", version=f"xmodal {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (extract, features, evaluate, compare, report, dashboard, index, search, demo, doctor, export):
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
