"""Whether W&B can be reached without asking anybody: whether a key is configured."""

import netrc
import os
from urllib.parse import urlparse

_SERVER = "https://api.wandb.ai"


def has_key() -> bool:
    """Whether ``wandb login`` or WANDB_API_KEY has configured a key for the server in use."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host()) is not None
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return False


def host() -> str:
    """Name of the server in use, which WANDB_BASE_URL may choose."""
    return urlparse(os.environ.get("WANDB_BASE_URL", _SERVER)).hostname or ""
