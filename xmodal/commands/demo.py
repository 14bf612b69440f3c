"""`xmodal demo`: a web page to search an index with."""

import argparse
import importlib.util
import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from xmodal.commands.options import memory_faults, unknown
from xmodal.config import evaluation
from xmodal.errors import ConfigError

_MOST_PORT = 65535


def add(commands: Any) -> None:
    command = commands.add_parser(
        "demo",
        help="search an index in a web page",
        description="Serve a page in which an index is searched with sentences and photos; two indexes side by side.",
    )
    command.add_argument("index", nargs="+", type=Path, metavar="INDEX", help="one or two folders from `xmodal index`")
    command.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where to listen; 0.0.0.0 lets other machines in (default: 127.0.0.1, this machine alone)",
    )
    command.add_argument("--port", type=int, default=7860, metavar="N", help="0: any free one (default: 7860)")
    command.add_argument("--checkpoint", type=Path, metavar="FILE", help="of the model, where it was moved (one INDEX)")
    command.add_argument("--root", type=Path, metavar="DIR", help="of the photos, where they were moved (one INDEX)")
    command.add_argument("--device", choices=evaluation.DEVICES, default="auto", help="(default: auto)")
    command.add_argument(
        "--memory-gb", type=float, metavar="GB", help="that an index may take; a larger one stays on disk"
    )
    command.set_defaults(run=run, parser=command, interrupted="The page is closed.")


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    """Open the indexes and serve the page until Ctrl-C."""
    if faults := [*unknown(rest, parsed.parser), *_faults(parsed)]:
        raise ConfigError(faults)
    from xmodal.demo.server import bound  # without gradio there is no such module
    from xmodal.experiment.evaluation import chosen_device

    chosen_device(parsed.device)
    with bound(parsed.host, parsed.port) as opened:  # a port that is taken is told of before models load
        _serve(parsed, opened)
    return 0


def _serve(parsed: argparse.Namespace, opened: Any) -> None:
    from xmodal.demo.collection import side_by_side
    from xmodal.demo.server import application, folder_of_uploads, server
    from xmodal.search.engine import SearchEngine

    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    settings = {"checkpoint": parsed.checkpoint, "root": parsed.root}
    engines = [
        SearchEngine.open(folder, device=parsed.device, memory_gb=parsed.memory_gb, **settings)
        for folder in parsed.index
    ]
    collections = side_by_side(engines)
    for collection in collections:
        collection.warm_up()
    with _ended_by_sigterm(), folder_of_uploads() as folder:
        app = application(collections, folder)
        server(app).run(sockets=[opened])


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends the program as an exception does, so that what was sent is removed."""

    def leave(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    earlier = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _faults(parsed: argparse.Namespace) -> list[str]:
    faults = []
    if importlib.util.find_spec("gradio") is None:
        faults.append("The library gradio is not installed: pip install 'xmodal[demo]'")
    if len(parsed.index) > 2:
        faults.append(f"One index, or two side by side: found {len(parsed.index)}.")
    if len(parsed.index) > 1 and (parsed.checkpoint or parsed.root):
        faults.append(
            "--checkpoint and --root are of one index: give one INDEX, or build the two where their files are."
        )
    if not 0 <= parsed.port <= _MOST_PORT:
        faults.append(f"--port must be between 0 and {_MOST_PORT}, found {parsed.port}.")
    return faults + memory_faults(parsed.memory_gb)
