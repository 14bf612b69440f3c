"""Standard output that somebody reads the beginning of, or that is full, or that is not in Unicode."""

import json
import os
import sys
from typing import Any

from xmodal.errors import DataError

_BROKEN_PIPE = 141  # as a shell says that SIGPIPE ended a program


def print_text(text: str) -> None:
    """Write to standard output, all of it; what its encoding lacks stands there as ``\\u…``.

    Raises:
        DataError: it can't be written to; a reader who has left (``| head``) ends the program without a word.
    """
    encoding = sys.stdout.encoding or "utf-8"
    try:
        for line in text.encode(encoding, "backslashreplace").decode(encoding).splitlines(keepends=True):
            sys.stdout.write(line)  # PYTHONUNBUFFERED forgets the rest of a large text that a pipe took a part of
        sys.stdout.flush()
    except BrokenPipeError as error:
        _leave_the_rest()
        raise SystemExit(_BROKEN_PIPE) from error
    except OSError as error:
        _leave_the_rest()
        raise DataError(f"Standard output can't be written to ({error.strerror}).") from error


def as_json_text(content: Any, encoding: str = "utf-8") -> str:
    """JSON to be read by people; in ASCII where the encoding, or Unicode (names of files), lacks a letter of it."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(content, indent=2) + "\n"
    return text


def _leave_the_rest() -> None:
    """Python would try to write what is left at its end, and tell of it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
