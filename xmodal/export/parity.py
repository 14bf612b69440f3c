"""An exported file against torch: run in onnxruntime, and compared number by number."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from xmodal.encoders.portable import PortableEncoder
from xmodal.encoders.protocol import Encoder
from xmodal.errors import DataError
from xmodal.export.samples import Sets, example_items, padded

TOLERANCE = 1e-4


@torch.no_grad()
def tower_deviation(file: Path, tower: nn.Module, batches: Sequence[Sets]) -> tuple[int, float]:
    """Width of the embeddings, and how far those of the file are from those of a tower in evaluation mode.

    Raises:
        DataError: it is above the tolerance.
    """
    session = _session(file)
    found = [_run(session, batch)[0] for batch in batches]
    expected = [tower(*batch) for batch in batches]
    worst = max(_deviation(*pair) for pair in zip(expected, found, strict=True))
    return expected[0].shape[1], _within(file, worst)


def encoder_deviation(file: Path, encoder: Encoder, portable: PortableEncoder) -> float:
    """Of the sets in the file from those that an encoder makes of photos or captions, together and one by one.

    Raises:
        DataError: it is above the tolerance, or other vectors exist.
    """
    session, items = _session(file), example_items(encoder)
    worst = 0.0
    for chosen in [items, *([item] for item in items)]:
        batch = [encoder.preprocess(item) for item in chosen]
        expected, kept = padded(encoder.encode(batch))
        found, exists = _run(session, portable.tensors(batch))
        if not np.array_equal(exists, kept.numpy()):
            raise DataError(f"{file.name} gives sets of other lengths than the encoder it was made of.")
        worst = max(worst, _deviation(expected[kept], found[exists]))
    return _within(file, worst)


def _session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, inputs: Sequence[Tensor]) -> list[np.ndarray]:
    names = [given.name for given in session.get_inputs()]
    arrays = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
    return [np.asarray(array) for array in arrays]


def _deviation(expected: Tensor, found: np.ndarray) -> float:
    """Largest difference; of numbers beyond 1, in parts of the largest. Without a limit where one is no number."""
    wanted = expected.double().numpy()
    if wanted.size == 0:
        return 0.0
    apart = float(np.abs(wanted - found).max()) / max(1.0, float(np.abs(wanted).max()))
    return apart if np.isfinite(apart) else float("inf")


def _within(file: Path, deviation: float) -> float:
    if deviation > TOLERANCE:
        raise DataError(
            f"{file.name} gives other numbers in onnxruntime than torch: they differ by up to {deviation:.1e}, and "
            f"{TOLERANCE:.0e} is allowed. Nothing was written. The model itself, exact: --safetensors DIR"
        )
    return deviation
