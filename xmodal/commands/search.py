"""`xmodal search`: photos for sentences and captions for photos, out of a saved index."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xmodal.commands.options import memory_faults, unknown
from xmodal.commands.output import as_json_text, print_text
from xmodal.config import evaluation
from xmodal.errors import ConfigError, DataError

STDIN = "-"


def add(commands: Any) -> None:
    command = commands.add_parser(
        "search",
        help="search an index by sentences and photos",
        description="Find photos for sentences, and captions for photos. For example: xmodal search "
        "outputs/indexes/INDEX 'a dog catching a frisbee' -k 5",
    )
    command.add_argument("index", type=Path, metavar="INDEX", help="a folder that xmodal index made")
    command.add_argument("texts", nargs="*", metavar="SENTENCE", help="one or more, each in quotes")
    command.add_argument(
        "--image", type=Path, action="append", default=[], metavar="FILE", help="a photo; may be repeated"
    )
    command.add_argument(
        "--queries", metavar="FILE", help="sentences, one in each line, from a file, or from standard input (-)"
    )
    command.add_argument("-k", type=int, default=10, metavar="K", help="how many to find (default: 10)")
    command.add_argument(
        "--target", choices=("images", "captions"), help="what to find (default: the other side of each query)"
    )
    command.add_argument("--split", metavar="NAME", help="search the items of this split of the index alone")
    command.add_argument(
        "--no-correction",
        action="store_true",
        help="leave out the correction for hubs, where the index holds a query bank",
    )
    command.add_argument(
        "--json", nargs="?", const=STDIN, metavar="FILE", help="write JSON, to standard output without FILE"
    )
    command.add_argument("--checkpoint", type=Path, metavar="RUN", help="the model, where it is not where it was")
    command.add_argument("--root", type=Path, metavar="DIR", help="the folder of the photos, where it has moved")
    command.add_argument(
        "--memory-gb", type=float, metavar="GB", help="a larger index is read from disk as it is searched"
    )
    command.add_argument("--device", choices=evaluation.DEVICES, default="auto", help="(default: auto)")
    command.set_defaults(run=run, parser=command, interrupted="Nothing was written.")


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    """Search once for all queries; JSON alone goes to standard output where it is asked for."""
    sentences = [*parsed.texts, *(word for word in rest if not word.startswith("-"))]  # those behind options
    flags = [word for word in rest if word.startswith("-")]
    if faults := [*unknown(flags, parsed.parser), *_faults(parsed, sentences)]:
        raise ConfigError(faults)
    texts = [*sentences, *_lines(parsed.queries)]
    if not texts and not parsed.image:
        raise ConfigError(
            "Say what to search for: a sentence in quotes, --image FILE, or --queries FILE."
            + (f" ({parsed.json!r} is the file of --json: put sentences before it.)" if parsed.json else "")
        )
    from xmodal.experiment.evaluation import chosen_device
    from xmodal.search.engine import SearchEngine
    from xmodal.search.results import Asking, answers, as_json, as_tables

    chosen_device(parsed.device)
    engine = SearchEngine.open(
        parsed.index, checkpoint=parsed.checkpoint, root=parsed.root, device=parsed.device, memory_gb=parsed.memory_gb
    )
    asking = Asking(parsed.k, parsed.target, parsed.split, False if parsed.no_correction else None)
    found = answers(engine, texts, parsed.image, asking)
    if parsed.json is None:
        print_text(as_tables(found))
    elif parsed.json == STDIN:
        print_text(as_json_text(as_json(engine, found), sys.stdout.encoding or "utf-8"))
    else:
        _write(Path(parsed.json), as_json_text(as_json(engine, found)))
    return 0


def _faults(parsed: argparse.Namespace, sentences: Sequence[str]) -> list[str]:
    faults = []
    if parsed.k < 1:
        faults.append(f"-k must be at least 1, found {parsed.k}.")
    faults += memory_faults(parsed.memory_gb)
    faults += [f"There is no photo {image}." for image in parsed.image if not image.is_file()]
    faults += [f"Sentence {n} is empty." for n, text in enumerate(sentences, 1) if not text.strip()]
    faults += [
        f"Sentence {n} is not in UTF-8: {text!r}. Type it in UTF-8, or convert it: iconv -t UTF-8"
        for n, text in enumerate(sentences, 1)
        if not _is_unicode(text)
    ]
    if parsed.json not in (None, STDIN) and not Path(parsed.json).absolute().parent.is_dir():
        faults.append(f"--json {parsed.json}: there is no folder {Path(parsed.json).absolute().parent}.")
    if parsed.json not in (None, STDIN) and Path(parsed.json).is_dir():
        faults.append(f"--json {parsed.json} is a folder; name a file.")
    return faults


def _is_unicode(text: str) -> bool:
    """Python keeps bytes of an argument that are no UTF-8 as halves of letters, which nothing can read."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _lines(queries: str | None) -> list[str]:
    if queries is None:
        return []
    try:
        content = _from_stdin() if queries == STDIN else Path(queries).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"--queries {queries} can't be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"--queries {queries} is not in UTF-8 ({error}).") from error
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"--queries {queries}: expected a sentence in each line, found none.")
    return lines


def _from_stdin() -> str:
    """Strictly UTF-8, whatever the locale says; a program that calls this may have put another stream in its place."""
    stream = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read() if stream is None else stream.read().decode("utf-8-sig")


def _write(path: Path, content: str) -> None:
    from xmodal.atomic import complete_file

    try:
        with complete_file(path) as partial:
            partial.write_text(content, encoding="utf-8")
    except OSError as error:
        raise DataError(f"--json {path} can't be written ({error.strerror}).") from error
