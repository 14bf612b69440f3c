"""`xmodal index`: embeddings of a run's data, or of photos and sentences of one's own, ready to be searched."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xmodal.commands.options import unknown
from xmodal.config import evaluation
from xmodal.errors import ConfigError

_INDEXES = Path("outputs") / "indexes"


def add(commands: Any) -> None:
    command = commands.add_parser(
        "index",
        help="build an index of a trained run, to be searched",
        description="Embed a split of a run's data set, or photos and sentences of your own, and keep them as an index "
        "for xmodal search and xmodal demo. For example: xmodal index outputs/runs/flickr8k/RUN --split all",
    )
    command.add_argument(
        "place", type=Path, metavar="RUN", help="a run folder, or a checkpoint (.ckpt); with --add, --remove: an index"
    )
    command.add_argument(
        "overrides",
        nargs="*",
        help="which index: index=flat, hnsw or ivf_pq, and settings of it (index.ef_search=64); settings that differ "
        "from the run's, such as data.root=…",
    )
    command.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="default: outputs/indexes/<run>-<what is in it>; with the checkpoint's name between where that is named",
    )
    command.add_argument("--overwrite", action="store_true", help="replace the index that is there, as a whole")
    _add_items(command)
    _add_how(command)
    command.set_defaults(
        run=run,
        parser=command,
        interrupted="An index that was there is as it was; features are kept for the next time.",
    )


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    """Build an index, or change one."""
    words = [*parsed.overrides, *rest]
    overrides = [word for word in words if not _is_of_index(word)]
    if faults := [*_faults(parsed, overrides), *_unknown(parsed, words)]:
        raise ConfigError(faults)
    from xmodal.search.choice import Asked
    from xmodal.search.request import Request, change_index, new_index

    request = Request(
        asked=Asked.parse([word for word in words if _is_of_index(word)]),
        overrides=overrides,
        split=parsed.split,
        images=parsed.images,
        captions=parsed.captions,
        on_error=parsed.on_error,
        bank_size=parsed.query_bank,
        inverse_temperature=parsed.inverse_temperature,
        includes_model=parsed.include_model,
        memory_gb=parsed.memory_gb,
        device=parsed.device,
        checkpoint=parsed.checkpoint,
        overwrites=parsed.overwrite,
    )
    if parsed.add or parsed.remove is not None:
        change_index(parsed.place, request, parsed.remove)
    else:
        new_index(parsed.place, parsed.output or _default_output(parsed), request)
    return 0


def _add_items(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("what is in it").add_argument
    add("--split", metavar="NAME", help="train, val, test or all (default: test where there is one)")
    add("--images", type=Path, metavar="FOLDER", help="photos of your own, in folders within it too")
    add("--captions", type=Path, metavar="FILE", help="sentences of your own, one in each line")
    add("--on-error", choices=("error", "skip"), default="error", help="of photos of your own that can't be decoded")
    add("--add", action="store_true", help="put --images and --captions into the index that stands in RUN's place")
    add("--checkpoint", type=Path, metavar="RUN", help="with --add: the model, where it is not where it was")
    add(
        "--remove",
        nargs="*",
        action="extend",
        metavar="ID",
        help="take these items out of the index that stands in RUN's place; one that begins with -: --remove=-1.jpg",
    )


def _add_how(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("how it is built").add_argument
    add("--memory-gb", type=float, metavar="GB", help="most memory for each index (default: half of the machine's)")
    add(
        "--query-bank",
        type=int,
        default=0,
        metavar="N",
        help="keep N training captions and N training images, to correct for hubs (default: none)",
    )
    add("--inverse-temperature", type=float, metavar="BETA", help="of that correction (default: 20, for cosines)")
    add(
        "--include-model", action="store_true", help="copy the checkpoint into the index, which can then be moved alone"
    )
    add("--device", choices=evaluation.DEVICES, default="auto", help="(default: auto, the GPU where there is one)")


def _is_of_index(word: str) -> bool:
    return word.startswith(("index=", "index."))


def _unknown(parsed: argparse.Namespace, words: Sequence[str]) -> list[str]:
    """Faults for words that begin with - and are no options; after --remove they may be ids."""
    flags = [word for word in words if word.startswith("-")]
    if parsed.remove is None:
        return unknown(flags, parsed.parser)
    faults = [
        f"{fault} If it is an id: --remove={word}"
        for word in flags
        if word != "--"
        for fault in unknown([word], parsed.parser)
    ]
    if not parsed.remove and not faults:
        return ["--remove needs the ids of items: --remove ID ID; one that begins with -: --remove=-1.jpg"]
    return faults


def _faults(parsed: argparse.Namespace, overrides: Sequence[str]) -> list[str]:
    own = parsed.images is not None or parsed.captions is not None
    faults = []
    if parsed.split is not None and own:
        faults.append("--split takes items of the run's data set, --images and --captions your own: choose one.")
    if parsed.split not in (None, *evaluation.ROLES, "all"):
        faults.append(f"--split must be one of train, val, test, all; found {parsed.split}.")
    if parsed.add and parsed.remove is not None:
        faults.append("--add and --remove are two commands: give one after the other.")
    if parsed.add and not own:
        faults.append("--add needs something to add: --images FOLDER, --captions FILE.")
    faults += _of_no_use(parsed, overrides)
    if parsed.query_bank < 0:
        faults.append(f"--query-bank must be 0 or a number of queries, found {parsed.query_bank}.")
    if parsed.memory_gb is not None and not 0 < parsed.memory_gb < math.inf:
        faults.append(f"--memory-gb must be a number above 0, found {parsed.memory_gb}.")
    if "=" in str(parsed.place) and not parsed.place.exists():
        faults.append(f"{parsed.place}: the run comes first, then settings: xmodal index RUN {parsed.place}")
    return faults


def _of_no_use(parsed: argparse.Namespace, overrides: Sequence[str]) -> list[str]:
    """Faults for options that a change of an index has no place for, or a new one."""
    if not parsed.add and parsed.remove is None:
        return ["--checkpoint goes with --add; a new index is of RUN."] if parsed.checkpoint is not None else []
    faults = [] if parsed.output is None else ["--output: an index is changed where it is."]
    of_new = {"--query-bank": parsed.query_bank, "--include-model": parsed.include_model}
    of_new |= {"--overwrite": parsed.overwrite}
    of_new |= {"--inverse-temperature": parsed.inverse_temperature, "--memory-gb": parsed.memory_gb}
    faults += [f"{flag} is of a new index; this one keeps what it has." for flag, value in of_new.items() if value]
    if parsed.remove is not None:
        others = {"--images": parsed.images, "--captions": parsed.captions, "--split": parsed.split}
        others |= {"--checkpoint": parsed.checkpoint}
        faults += [f"{flag} has no meaning with --remove." for flag, value in others.items() if value is not None]
        faults += [f"{word} has no meaning with --remove." for word in overrides if not word.startswith("-")]
    return faults


def _default_output(parsed: argparse.Namespace) -> Path:
    """Called after the run, the checkpoint where one is named, and what is in it."""
    place = parsed.place.resolve()
    names = [place.stem if place.suffix == ".ckpt" else place.name]
    if place.suffix == ".ckpt" and place.parent.name == "checkpoints":
        names.insert(0, place.parent.parent.name)
    own = [path.resolve().stem for path in (parsed.images, parsed.captions) if path is not None]
    return _INDEXES / "-".join([*names, *(own or [parsed.split or "split"])])
