"""`xmodal export`: a trained model in formats that other programs read."""

import argparse
import importlib.util
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from xmodal.commands.options import unknown
from xmodal.errors import ConfigError
from xmodal.export.destination import complete_export, destination_faults, losses, run_of

_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


def add(commands: Any) -> None:
    command = commands.add_parser(
        "export",
        help="a trained model as ONNX or safetensors",
        description="Write a trained model as ONNX (towers, and encoders that are networks), compared with torch in "
        "onnxruntime, as safetensors for sharing, or both.",
    )
    command.add_argument("place", type=Path, metavar="RUN", help="a run folder, or a checkpoint (.ckpt)")
    command.add_argument("--onnx", type=Path, metavar="DIR", help="folder for ONNX files and how to feed them")
    command.add_argument(
        "--safetensors", type=Path, metavar="DIR", help="folder for all parameters and the configuration"
    )
    command.add_argument(
        "--overwrite", action="store_true", help="also replace an export of another run, or of the other kind"
    )
    command.set_defaults(run=run, parser=command, interrupted="Nothing was written; an earlier export stays.")


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    """Export a checkpoint into the folders that were named: all of them, or none."""
    if faults := [*unknown(rest, parsed.parser), *_faults(parsed.onnx, parsed.safetensors)]:
        raise ConfigError(faults)
    from xmodal.experiment.opened_run import checkpoint_of
    from xmodal.export.safetensors import write_safetensors
    from xmodal.models import checkpoint

    file = checkpoint_of(parsed.place)
    if not parsed.overwrite and (faults := _losses(parsed.onnx, parsed.safetensors, run_of(file))):
        raise ConfigError(faults)
    content = checkpoint.read(file)
    with ExitStack() as folders:
        if parsed.safetensors is not None:
            write_safetensors(content, file, folders.enter_context(complete_export(parsed.safetensors)))
        if parsed.onnx is not None:
            from xmodal.export.onnx_folder import write_onnx

            model = checkpoint.model_of(content)
            write_onnx(model, file, folders.enter_context(complete_export(parsed.onnx)), print)
    for folder in (parsed.onnx, parsed.safetensors):
        if folder is not None:
            print(f"Export: {folder}")
    return 0


def _faults(onnx: Path | None, safetensors: Path | None) -> list[str]:
    given = {flag: folder for flag, folder in (("--onnx", onnx), ("--safetensors", safetensors)) if folder is not None}
    if not given:
        return ["Say what to write, and where: --onnx DIR, --safetensors DIR, or both."]
    faults = [fault for flag, folder in given.items() for fault in destination_faults(flag, folder)]
    places = [folder.resolve() for folder in given.values()]
    if len(places) > 1 and (places[0].is_relative_to(places[1]) or places[1].is_relative_to(places[0])):
        faults.append(f"--onnx {onnx} and --safetensors {safetensors} need a folder each, neither inside the other.")
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if onnx is not None and missing:
        faults.append(
            f"--onnx needs {' and '.join(missing)}, not installed here: pip install -c constraints.txt -e '.[export]'"
        )
    return faults


def _losses(onnx: Path | None, safetensors: Path | None, run: str) -> list[str]:
    given = (("onnx", onnx), ("safetensors", safetensors))
    return [fault for kind, folder in given if folder is not None for fault in losses(f"--{kind}", folder, kind, run)]
