"""The one word tokenisation of xmodal, the same for training captions and for queries."""

import re

_WORD = re.compile(r"[^\W_]+")


def tokenize(text: str) -> list[str]:
    """Lower-cased runs of letters and digits: ``"A dog's ball!"`` → ``["a", "dog", "s", "ball"]`` (Karpathy's convention)."""
    return _WORD.findall(text.lower())
