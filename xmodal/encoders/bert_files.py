"""Text encoders of Hugging Face from a folder, the Hub or a checkpoint, and what identifies them."""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer

from xmodal.encoders.hub import architecture, by_name, from_folder, sha256, tokenizer_settings, unpacked
from xmodal.encoders.weights import StateDict, digest, freeze, load_strictly, seeded
from xmodal.errors import WeightsError

_KEY = "text_encoder"


def load_folder(folder: Path, seed: int) -> tuple[Any, Any]:
    """Network and tokenizer from what ``save_pretrained`` wrote.

    Raises:
        WeightsError: unreadable, or not a text encoder's.
    """
    return from_folder(folder, _KEY, lambda source, is_local: _load(source, seed, is_local))


def load_by_name(name: str, seed: int) -> tuple[Any, Any]:
    """Network and tokenizer from the Hub's cache where it is complete, else from the Hub.

    Raises:
        WeightsError: they can't be had, or are not a text encoder's.
    """
    return by_name(name, _KEY, lambda source, is_local: _load(source, seed, is_local))


def from_files(files: dict[str, Tensor], weights: StateDict) -> tuple[Any, Any]:
    """Network and tokenizer from what ``files_of`` gave, with these weights."""
    with unpacked(files) as folder:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    with seeded(0):
        network = _frozen(AutoModel.from_config(config))
    load_strictly(network, weights, "The checkpoint's text encoder")
    return network, tokenizer


def identity(network: Any, tokenizer: Any) -> dict[str, str]:
    """Digests of architecture, tokenizer and weights."""
    return {
        "config": sha256(architecture(network.config)),
        "tokenizer": sha256(tokenizer_settings(tokenizer)),
        "weights": digest(network.state_dict()),
    }


def _load(source: str, seed: int, local: bool) -> tuple[Any, Any]:
    """Network and tokenizer of a folder, or of a name in the Hub's cache, or (not ``local``) in the Hub.

    Raises:
        OSError, ValueError, ImportError: absent or unreadable.
        WeightsError: not a text encoder.
    """
    config = AutoConfig.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    if hasattr(config, "text_config"):
        raise WeightsError(
            f"{_KEY}.weights: {source} is a {config.model_type} model of several parts; expected a text encoder."
        )
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    if tokenizer.pad_token is None:
        raise WeightsError(f"{_KEY}.weights: the tokenizer of {source} has no padding token; expected a text encoder.")
    with seeded(seed):  # a part that the file lacks (often the pooler) is random
        network = AutoModel.from_pretrained(source, config=config, local_files_only=local, trust_remote_code=False)
    return _frozen(network), tokenizer


def _frozen(network: Any) -> Any:
    encoder = network.get_encoder() if network.config.is_encoder_decoder else network
    return freeze(encoder.float())
