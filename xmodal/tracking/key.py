"""Whether W&B can be reached without asking anybody: whether a key is configured, and what follows for a run."""

import netrc
import os
from pathlib import Path
from urllib.parse import urlparse

_SERVER = "https://api.wandb.ai"
_MODES = ("online", "offline", "disabled")


def has_key() -> bool:
    """Whether ``wandb login`` or WANDB_API_KEY has configured a key for the server in use."""
    return place_of_key() is not None


def place_of_key() -> str | None:
    """``WANDB_API_KEY``, or the file that holds the key for the server in use; None where there is none."""
    if os.environ.get("WANDB_API_KEY"):
        return "WANDB_API_KEY"
    try:
        found = netrc.netrc(os.environ.get("NETRC")).authenticators(host())
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return None
    return None if found is None else str(file_of_keys())


def fault_of_file() -> str | None:
    """Why the file that may hold a key can't be read; None where it can, or is not there."""
    try:
        netrc.netrc(os.environ.get("NETRC"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError) as error:
        return str(error)
    return None


def file_of_keys() -> Path:
    """Where ``wandb login`` keeps keys, unless NETRC names another file."""
    return Path(os.environ.get("NETRC") or "~/.netrc").expanduser()


def host() -> str:
    """Name of the server in use, which WANDB_BASE_URL may choose."""
    return urlparse(os.environ.get("WANDB_BASE_URL", _SERVER)).hostname or ""


def chosen_mode(mode: str) -> str:
    """What ``logger.mode`` means here: ``auto`` is what WANDB_MODE says, else online where there is a key."""
    if mode != "auto":
        return mode
    if (said := os.environ.get("WANDB_MODE")) in _MODES:
        return str(said)
    return "online" if has_key() else "offline"
