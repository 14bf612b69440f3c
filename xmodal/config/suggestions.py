"""What was probably meant by a word that does not exist."""

import difflib
from collections.abc import Iterable

_MOST = 3
_AS_CLOSE = 0.1  # a candidate this much less like the word than the best one is left out


def close(word: str, candidates: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Up to three candidates that are like ``word``, the likest first: difflib's ratio of at least ``cutoff``."""
    found = difflib.get_close_matches(word, list(dict.fromkeys(candidates)), n=_MOST, cutoff=cutoff)
    ratios = [difflib.SequenceMatcher(None, candidate, word).ratio() for candidate in found]
    return [candidate for candidate, ratio in zip(found, ratios, strict=True) if ratio >= ratios[0] - _AS_CLOSE]


def did_you_mean(word: str, candidates: Iterable[str], cutoff: float = 0.6) -> str:
    """`` Did you mean 'x'?`` (with its leading space) for the candidates close to ``word``, or the empty string."""
    return phrase(close(word, candidates, cutoff))


def phrase(words: Iterable[str]) -> str:
    """`` Did you mean 'a' or 'b'?`` for up to three words, or the empty string for none."""
    quoted = [f"'{word}'" for word in list(words)[:_MOST]]
    return f" Did you mean {' or '.join(quoted)}?" if quoted else ""


def likely_keys(key: str, keys: Iterable[str]) -> list[str]:
    """Dotted keys that ``key`` may stand for, the likeliest first.

    A slip in the last word among its siblings (``loss.margn``), then the right word without its folder (``lr``), then
    anything close.
    """
    known = list(dict.fromkeys(keys))
    parent, _, leaf = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
    found = [siblings[name] for name in close(leaf, siblings)]
    if not found:
        found = sorted((k for k in known if k.rpartition(".")[2] == leaf), key=lambda k: k.count("."))
    return (found or close(key, known, cutoff=0.75))[:_MOST]
