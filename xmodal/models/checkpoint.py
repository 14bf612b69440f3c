"""A checkpoint is the whole model: parameters, statistics, configuration and what its encoders need."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch

from xmodal.errors import DataError
from xmodal.models.build import build_model
from xmodal.models.dual_encoder import CHECKPOINT_KEY, DualEncoder
from xmodal.models.query_encoders import QueryEncoders
from xmodal.models.tails import attach, tails_of


def read(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """The content of a checkpoint file, read without running any code in it (``weights_only=True``).

    Raises:
        DataError: no such file, a damaged file, or one that xmodal did not write.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no checkpoint {path}. A run keeps its own under <run folder>/checkpoints/best.ckpt.")
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}).") from error
    except (MemoryError, torch.OutOfMemoryError):
        raise  # says nothing of the file
    except Exception as error:  # what bytes that are no checkpoint lead to has no bounds: KeyError, ValueError, …
        raise DataError(f"{path} can't be read as a checkpoint: {_reason(path)}") from error
    if not isinstance(content, dict) or CHECKPOINT_KEY not in content:
        raise DataError(f"{path} was not written by xmodal: it has no '{CHECKPOINT_KEY}' entry.")
    return content


def _reason(path: Path) -> str:
    """Why loading may have failed; torch's own words advise loading that runs the code in a file."""
    if is_zipfile(path):
        return "it is damaged, or holds Python objects, which xmodal's have none of and which could run code."
    return "it is damaged, or was never one. A run keeps its own under <run folder>/checkpoints/best.ckpt."


def model_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over what decides where an item lies in the space: every parameter and statistic by its name, type
    and shape, and the fingerprints of both encoders. Optimizer, epoch and paths do not count.

    Args:
        content: of a checkpoint, see `read`.
    """
    digest = hashlib.sha256(json.dumps(sorted(content[CHECKPOINT_KEY]["fingerprints"].items())).encode())
    for name, tensor in sorted(content["state_dict"].items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def embedding_dim(content: Mapping[str, Any]) -> int:
    """Width E of the space that the model of a checkpoint embeds in."""
    return int(content[CHECKPOINT_KEY]["config"]["embedding_dim"])


def load(path: str | Path, map_location: str | torch.device = "cpu") -> DualEncoder:
    """The trained model of a checkpoint, in evaluation mode, ready for `encode_images` and `encode_texts`.

    Encoders with trainable layers are restored at once, for the model's tails are made from them; others when they are
    first used.

    Raises:
        DataError: see `read`.
        WeightsError: an encoder with trainable layers is not to be had, or not the one that was trained.
    """
    return model_of(read(path, map_location), map_location)


def model_of(content: Mapping[str, Any], map_location: str | torch.device = "cpu") -> DualEncoder:
    """The trained model that the content of a checkpoint describes; see `load`.

    Raises:
        WeightsError: see `load`.
    """
    encoders = QueryEncoders.from_checkpoint(content[CHECKPOINT_KEY])
    model = build_model(encoders.config)
    attach(model, tails_of({side: encoders.encoder(side) for side in encoders.fine_tuned}))
    model.load_state_dict(content["state_dict"])
    model.encoders = encoders
    return model.to(map_location).eval()
