"""`xmodal doctor`: what of an installation, its data and its disks is in order, and what to type where it is not."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xmodal.atomic import complete_file
from xmodal.commands.options import unknown
from xmodal.config.evaluation import unwritable
from xmodal.errors import ConfigError

_WRONG = 1  # exit code: something needed is missing or at fault
_STDOUT = Path("-")


def add(commands: Any) -> None:
    command = commands.add_parser(
        "doctor",
        help="versions, devices, FAISS, W&B, weights, data sets, free disk: each ok, missing, or what to do",
        description="Look at everything that a run may need, without any network, and say what to type where "
        "something is not as it has to be. For example: xmodal doctor data=flickr8k --thorough",
    )
    command.add_argument(
        "overrides",
        nargs="*",
        help="overrides as for train.py: paths.data_dir=…; a data set that is chosen (data=…) has to be there",
    )
    command.add_argument("--data-dir", type=Path, metavar="DIR", help="the same as paths.data_dir=DIR")
    command.add_argument(
        "--thorough", action="store_true", help="decode every photo, rather than a few of each data set"
    )
    command.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=_STDOUT,
        metavar="FILE",
        help="write what was found as JSON; without FILE, JSON alone is printed",
    )
    command.set_defaults(run=run, parser=command, interrupted="Photos that --thorough found good are remembered.")


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    """Look, and print what was found; exit code 1 where something needed is missing or at fault."""
    overrides = _overrides(parsed, rest)
    from xmodal.doctor.examination import examine
    from xmodal.doctor.report import as_json, is_sound, print_table

    examined = examine(overrides, parsed.thorough)
    if parsed.json == _STDOUT:
        print(as_json(examined), end="")
    else:
        print_table(examined)
    if parsed.json not in (None, _STDOUT):
        with complete_file(parsed.json) as partial:
            partial.write_text(as_json(examined), encoding="utf-8")
    return 0 if is_sound(examined) else _WRONG


def _overrides(parsed: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    """The overrides, wherever they stand; raises ConfigError for words that are none, and for an impossible FILE."""
    flags = [word for word in rest if word.startswith("-")]
    overrides = [*parsed.overrides, *(word for word in rest if word not in flags)]
    typed = [word for word in overrides if word.startswith("paths.data_dir=")]
    faults = unknown(flags, parsed.parser)
    if parsed.data_dir is not None and typed:
        faults.append(f"--data-dir {parsed.data_dir} and {typed[0]} both name the folder: leave one out.")
    if parsed.json is not None and "=" in str(parsed.json):
        faults.append(
            f"--json {parsed.json}: a FILE is expected. Settings stand first: xmodal doctor {parsed.json} --json"
        )
    elif parsed.json not in (None, _STDOUT):
        faults += unwritable({"--json": parsed.json}) or _read_only(parsed.json)
    if faults:
        raise ConfigError(faults)
    return overrides if parsed.data_dir is None else [*overrides, _quoted("paths.data_dir", parsed.data_dir)]


def _read_only(file: Path) -> list[str]:
    from xmodal.doctor import disk

    folder = file.absolute().parent
    fault = disk.unwritable(folder)
    return [f"--json {file}: {folder} can't be written ({fault}). Name another place."] if fault else []


def _quoted(key: str, folder: Path) -> str:
    """An override whose value may hold any character."""
    value = str(folder.expanduser().absolute()).replace("'", "\\'")
    return f"{key}='{value}'"
