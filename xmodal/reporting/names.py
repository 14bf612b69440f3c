"""Names of files, made of what is in them."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import replace

from xmodal.reporting.table import Table

_LONGEST = 100


def slug(text: str) -> str:
    """Lower-case ASCII letters, digits, ``-`` and ``_``: ``Text → image, sum`` becomes ``text-image-sum``."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9_]+", "-", plain).strip("-") or "unnamed"


def with_unique_names(tables: Iterable[Table]) -> list[Table]:
    """The same with names of moderate length, each once: a number follows where two would be the same."""
    taken: dict[str, int] = {}
    named = []
    for table in tables:
        name = _shortened(table.name)
        taken[name] = number = taken.get(name, 0) + 1
        named.append(replace(table, name=name if number == 1 else f"{name}-{number}"))
    return named


def _shortened(name: str) -> str:
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
