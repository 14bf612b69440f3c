"""`xmodal features`: what the folder of features holds; whether it is sound; removing some of it."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xmodal.commands.options import unknown
from xmodal.config.command_line import check_command_line, compose
from xmodal.errors import ConfigError

_WRONG = 1  # exit code: something is damaged, or was not removed
_STATES = ("damaged", "unfinished", "all")
_FOLDERS = ("paths.features_dir=", "paths.output_dir=")


def add(commands: Any) -> None:
    group = commands.add_parser("features", help="list, verify or remove stored features")
    actions = group.add_subparsers(required=True, metavar="ACTION")
    _add_list(actions)
    _add_verify(actions)
    _add_remove(actions)


def list_features(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    """A table of all files, and what they take together."""
    names, root = _words(parsed.overrides, rest, parsed)
    if names:
        raise ConfigError([f"{name}: `xmodal features list` takes no names; it lists everything." for name in names])
    from xmodal.commands.feature_files import print_table

    print_table(root)
    return 0


def verify(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    """Read every byte of the files named (or of all); exit code 1 with a list where anything is wrong."""
    names, root = _words(parsed.names, rest, parsed)
    from xmodal.commands.feature_files import verify_all

    return 0 if verify_all(root, names) else _WRONG


def remove(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    """Remove files after asking; exit code 1 where one is being written, or the answer was no."""
    names, root = _words(parsed.names, rest, parsed)
    if faults := _ways_faults(parsed, names):
        raise ConfigError(faults)
    from xmodal.commands.feature_files import chosen, remove_all

    states = {flag for flag in _STATES if getattr(parsed, flag)}
    return 0 if remove_all(root, chosen(root, names, states), is_agreed=parsed.yes) else _WRONG


def _add_list(actions: Any) -> None:
    command = actions.add_parser("list", help="a table of all stored features")
    command.add_argument("overrides", nargs="*", help="paths.features_dir=… or paths.output_dir=…")
    _finish(command, list_features)


def _add_verify(actions: Any) -> None:
    command = actions.add_parser("verify", help="read every byte: checksums, shapes, ids, finite values")
    command.add_argument("names", nargs="*", metavar="NAME", help="a key, a file name or a path (default: all)")
    _finish(command, verify)


def _add_remove(actions: Any) -> None:
    command = actions.add_parser("remove", help="remove stored features, their chunks and locks")
    command.add_argument("names", nargs="*", metavar="NAME", help="a key, a file name or a path")
    command.add_argument(
        "--damaged", action="store_true", help="complete files that `verify` finds damaged (reads them all)"
    )
    command.add_argument("--unfinished", action="store_true", help="what was begun and never came to its end")
    command.add_argument("--all", action="store_true", help="everything")
    command.add_argument("--yes", action="store_true", help="don't ask")
    _finish(command, remove)


def _finish(command: argparse.ArgumentParser, run: Any) -> None:
    command.add_argument("--features-dir", type=Path, metavar="DIR", help="the same as paths.features_dir=DIR")
    command.set_defaults(run=run, parser=command, interrupted="What was removed or printed so far stays so.")


def _words(words: Sequence[str], rest: Sequence[str], parsed: argparse.Namespace) -> tuple[list[str], Path]:
    """Names of files, and the folder of features that a run with these settings would use.

    argparse leaves words in ``rest`` that stand behind a flag.
    """
    flags = [word for word in rest if word.startswith("-")]
    given = [*words, *(word for word in rest if word not in flags)]
    overrides = [word for word in given if word.startswith("paths.")]
    strange = [word for word in overrides if not word.startswith(_FOLDERS)]
    faults = unknown(flags, parsed.parser)
    faults += [
        f"{word}: where features are is said by {' or '.join(f'{key}…' for key in _FOLDERS)}" for word in strange
    ]
    if overrides and parsed.features_dir is not None:
        faults.append(f"--features-dir {parsed.features_dir} and {overrides[0]} both name the folder: leave one out.")
    if faults:
        raise ConfigError(faults)
    return [word for word in given if word not in overrides], _folder(parsed.features_dir, overrides)


def _folder(typed: Path | None, overrides: Sequence[str]) -> Path:
    if typed is not None:
        return typed.expanduser().absolute()
    check_command_line(overrides)
    return Path(compose(overrides).paths.features_dir)


def _ways_faults(parsed: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """One way of saying what is to go: by name, or by state, or everything."""
    states = [flag for flag in _STATES if getattr(parsed, flag)]
    if not names and not states:
        return ["Say what to remove: NAME (a key, file name or path), --damaged, --unfinished or --all."]
    if (names and states) or ("all" in states and len(states) > 1):
        given = " ".join([*names, *(f"--{flag}" for flag in states)])
        return [f"{given}: name files, or say --damaged, --unfinished or both, or --all."]
    return []
