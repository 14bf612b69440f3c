"""A checkpoint is the whole model: parameters, statistics, configuration and what its encoders need."""

import pickle
from pathlib import Path
from typing import Any

import torch

from xmodal.errors import DataError
from xmodal.models.build import build_model
from xmodal.models.dual_encoder import CHECKPOINT_KEY, DualEncoder
from xmodal.models.query_encoders import QueryEncoders


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
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(f"{path} can't be read as a checkpoint ({type(error).__name__}: {error}).") from error
    if not isinstance(content, dict) or CHECKPOINT_KEY not in content:
        raise DataError(f"{path} was not written by xmodal: it has no '{CHECKPOINT_KEY}' entry.")
    return content


def load(path: str | Path, map_location: str | torch.device = "cpu") -> DualEncoder:
    """The trained model of a checkpoint, in evaluation mode, ready for `encode_images` and `encode_texts`.

    Raises:
        DataError: see `read`.
    """
    content = read(path, map_location)
    encoders = QueryEncoders.from_checkpoint(content[CHECKPOINT_KEY])
    model = build_model(encoders.config)
    model.load_state_dict(content["state_dict"])
    model.encoders = encoders
    return model.to(map_location).eval()
