"""Models of Hugging Face: where they come from, what a checkpoint keeps of them, and what identifies them."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import constants
from torch import Tensor

from xmodal.encoders.published import Published, of_transformers
from xmodal.encoders.weights import PRETRAINED, UNREADABLE, first_line, frozen_state, three_ways_on, unreachable
from xmodal.errors import WeightsError

Loaded = TypeVar("Loaded")
_UNREADABLE = (*UNREADABLE, ImportError)  # a tokenizer may need a package that is not there


def looks_like_path(name: str) -> bool:
    """A Hugging Face name is ``model`` or ``owner/model``."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def missing_folder(weights: str | None, key: str, folder: str) -> list[str]:
    """A sentence where ``weights`` is the path of a folder that is not there; ``folder`` says what such a folder is."""
    if weights is None or not looks_like_path(weights) or Path(weights).expanduser().is_dir():
        return []
    return [
        f"{key}.weights: no folder {weights}; give {folder}, a Hugging Face name, pretrained, or null (random weights)."
    ]


def published_model(weights: str | None, model: str, modality: str) -> Published | None:
    """The model of the Hub that ``weights`` stands for (``pretrained``: ``model``); None for folders and null."""
    if weights is None or looks_like_path(weights) or Path(weights).is_dir():
        return None
    return of_transformers(model if weights == PRETRAINED else weights, modality)


def from_folder(folder: Path, key: str, load: Callable[[str, bool], Loaded]) -> Loaded:
    """What ``load(source, local_files_only)`` makes of a folder that ``save_pretrained`` wrote.

    Raises:
        WeightsError: unreadable, or whatever ``load`` finds wrong.
    """
    try:
        return load(str(folder), True)
    except _UNREADABLE as error:
        raise WeightsError(
            f"{key}.weights: can't load {folder}: {first_line(error)}; expected a folder that save_pretrained() "
            "wrote, with config.json, model.safetensors and the files of its tokenizer or image processor."
        ) from error


def by_name(name: str, key: str, load: Callable[[str, bool], Loaded]) -> Loaded:
    """What ``load(source, local_files_only)`` makes of a name: of the cache where it is complete, else of the Hub.

    Raises:
        WeightsError: not in the cache, and no network; or whatever ``load`` finds wrong.
    """
    try:
        return load(name, True)
    except _UNREADABLE:
        fault = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(constants.ENDPOINT)
    if fault is None:
        try:
            return load(name, False)
        except _UNREADABLE as error:
            fault = first_line(error)
    network = f"start once with a network; the files stay in {constants.HF_HUB_CACHE} (HF_HOME moves this folder)"
    what = f"The Hugging Face model {name} ({key}.weights)"
    raise three_ways_on(what, f"not in {constants.HF_HUB_CACHE}, and {fault}", network, "/path/to/folder", key)


def kept_state(network: Any, processor: Any, is_of_folder: bool) -> dict[str, Any]:
    """What a checkpoint keeps: of a model of a folder, which may go, all of it; else values to recognise it by."""
    files = {"files": files_of(network, processor)} if is_of_folder else {}
    return frozen_state(network, embed=is_of_folder) | files


def files_of(network: Any, processor: Any) -> dict[str, Tensor]:
    """Configuration and tokenizer (or image processor) as the bytes of the files that ``save_pretrained`` writes."""
    written = saved_files(network.config, processor)
    return {name: torch.frombuffer(bytearray(content), dtype=torch.uint8) for name, content in written.items()}


def saved_files(*parts: Any) -> dict[str, bytes]:
    """The files that ``save_pretrained`` of all these writes, by name."""
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            part.save_pretrained(folder)
        return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir()) if file.is_file()}


@contextmanager
def unpacked(files: Mapping[str, Tensor]) -> Iterator[str]:
    """A folder with what ``files_of`` gave, for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / Path(name).name).write_bytes(content.numpy().tobytes())
        yield folder


def architecture(config: Any) -> str:
    """Settings that shape the network, without those that only tell where it came from."""
    settings = json.loads(config.to_json_string(use_diff=True))
    told = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
    return json.dumps({key: value for key, value in settings.items() if key not in told}, sort_keys=True)


def tokenizer_settings(tokenizer: Any) -> str:
    """What the tokenizer does to a text, apart from truncation and padding, which every call sets anew."""
    if not tokenizer.is_fast:
        return json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()], sort_keys=True)
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({**settings, "truncation": None, "padding": None}, sort_keys=True)


def token_counts(tokenizer: Any, captions: Sequence[str], most: int) -> list[int]:
    """Tokens of each caption, special ones included, what lies beyond ``most`` cut off."""
    limits = {"truncation": True, "max_length": most}
    found = tokenizer(list(captions), return_attention_mask=False, return_token_type_ids=False, **limits)
    return [len(ids) for ids in found["input_ids"]]


def sha256(text: str) -> str:
    """Of the text in UTF-8, hexadecimal."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
