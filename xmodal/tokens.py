"""The one word tokenisation of xmodal, the same for training captions and for queries."""

import re

PATTERN = r"[^\W_]+"
_WORD = re.compile(PATTERN)


def tokenize(text: str) -> list[str]:
    """Lower-cased runs of letters and digits (Karpathy's convention): ``"A dog's!"`` → ``["a", "dog", "s"]``."""
    return _WORD.findall(text.lower())
