"""A trained model as tensors in safetensors and plain JSON, and the way back."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from xmodal.errors import DataError
from xmodal.export.destination import CONFIG, FORMAT, read_config, run_of, write_config
from xmodal.models import checkpoint
from xmodal.models.dual_encoder import CHECKPOINT_KEY, DualEncoder

KIND = "safetensors"
_FILE = "model.safetensors"
_TENSOR = "$tensor"  # stands in the JSON where a tensor stood, with its name


def write_safetensors(content: dict[str, Any], source: Path, folder: Path) -> None:
    """Write what a checkpoint holds of a model into an empty folder; optimizer and progress of training stay behind.

    Args:
        content: what `xmodal.models.checkpoint.read` gives.
        source: the checkpoint that it was read from.
    """
    tensors: dict[str, Tensor] = {}
    told = content[CHECKPOINT_KEY]
    described = {
        "run": run_of(source),
        "trained_with": told["version"],
        "config": told["config"],
        "fingerprints": told["fingerprints"],
        "states": _without_tensors(told["states"], "encoders", tensors),
    }
    _without_tensors(content["state_dict"], "model", tensors)
    # tensors that share memory, as tied weights do, are refused
    save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, folder / _FILE)
    write_config(folder, KIND, described)
    (folder / _FILE).chmod((folder / CONFIG).stat().st_mode)  # the library lets no one else read it


def load(folder: str | Path, map_location: str | torch.device = "cpu") -> DualEncoder:
    """The model of an exported folder, as `xmodal.models.checkpoint.load` gives it from the checkpoint.

    Raises:
        DataError: no such folder, a damaged one, or one of another kind.
        WeightsError: an encoder with trainable layers is not to be had, or not the one that was trained.
    """
    return checkpoint.model_of(_content(Path(folder)), map_location)


def _content(folder: Path) -> dict[str, Any]:
    """What a checkpoint would hold."""
    described = read_config(folder)
    if described is None or described.get("kind") != KIND:
        raise DataError(
            f"{folder} is no model that `xmodal export RUN --safetensors {folder}` wrote: it has no {CONFIG} of one."
        )
    if described["format"] != FORMAT:
        raise DataError(f"{folder / CONFIG} is of format {described['format']}, expected {FORMAT}.")
    try:
        tensors = load_file(folder / _FILE)
        told = {
            "version": described["trained_with"],
            "config": described["config"],
            "fingerprints": described["fingerprints"],
            "states": _with_tensors(described["states"], tensors),
        }
    except (OSError, SafetensorError, KeyError) as error:
        raise DataError(f"{folder / _FILE} is absent, damaged, or not of the {CONFIG} beside it ({error}).") from error
    prefix = "model."
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {CHECKPOINT_KEY: told, "state_dict": state}


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The same containers with names in place of tensors, which are put into ``tensors``."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, dict):
        return {key: _without_tensors(item, f"{name}.{key}", tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_tensors(item, f"{name}.{place}", tensors) for place, item in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Inverse of `_without_tensors`."""
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    return [_with_tensors(item, tensors) for item in value] if isinstance(value, list) else value
