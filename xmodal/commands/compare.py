"""`xmodal compare`: a test whether two runs differ."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xmodal.commands.options import unknown
from xmodal.config import evaluation
from xmodal.errors import ConfigError


def add(commands: Any) -> None:
    command = commands.add_parser(
        "compare",
        help="test whether two runs differ",
        description="Test whether two runs differ on the same queries. Both must have been evaluated.",
    )
    command.add_argument(
        "first", type=Path, metavar="RUN_A", help="a run folder, its best.ckpt, or an evaluation_*.npz"
    )
    command.add_argument("second", type=Path, metavar="RUN_B", help="the same of the other one")
    command.add_argument(
        "--split", metavar="NAME", help="of folders: such as val, or test_folds5 (default: test, or the only one)"
    )
    command.add_argument("--resamples", type=int, default=10_000, metavar="N", help="of the images (default: 10000)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of the resamples (default: 0)")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the differences")
    command.set_defaults(run=run, parser=command, interrupted="Nothing was written.")


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    """A paired test between the queries of two evaluations."""
    if faults := [*unknown(rest, parsed.parser), *_comparison_faults(parsed)]:
        raise ConfigError(faults)
    from xmodal.experiment import comparison

    found = comparison.compare(parsed.first, parsed.second, parsed.split, parsed.resamples, parsed.seed)
    comparison.print_comparison(found)
    if parsed.json is not None:
        comparison.write_comparison(parsed.json, found)
    return 0


def _comparison_faults(parsed: argparse.Namespace) -> list[str]:
    least = {"--resamples": (parsed.resamples, evaluation.FEWEST_RESAMPLES), "--seed": (parsed.seed, 0)}
    faults = [f"{flag} must be at least {low}, found {value}." for flag, (value, low) in least.items() if value < low]
    taken = {file: what for run in (parsed.first, parsed.second) for file, what in evaluation.files_of_run(run).items()}
    taken |= {file: "an evaluation" for run in (parsed.first, parsed.second) for file in run.glob("evaluation_*.npz")}
    return faults + evaluation.unwritable({"--json": parsed.json}, taken)
