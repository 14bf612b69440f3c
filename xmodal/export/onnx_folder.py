"""A trained model as ONNX: both towers, the encoders that are networks, and how inputs are made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from xmodal.encoders.portable import Portable, PortableEncoder
from xmodal.encoders.protocol import Encoder
from xmodal.errors import FeatureError, XmodalError
from xmodal.export.destination import run_of, write_config
from xmodal.export.exportable import exportable
from xmodal.export.graph import Axes, write_graph
from xmodal.export.parity import TOLERANCE, encoder_deviation, tower_deviation
from xmodal.export.samples import encoded_batches, example_items, random_batches
from xmodal.models.dual_encoder import DualEncoder
from xmodal.models.query_encoders import Modality
from xmodal.models.tower import Tower

KIND = "onnx"
SIDES: tuple[Modality, ...] = ("image", "text")


def write_onnx(model: DualEncoder, source: Path, folder: Path, tell: Callable[[str], None]) -> None:
    """Write a model into an empty folder, each file compared with torch, and a ``config.json`` that describes them.

    Args:
        model: of a checkpoint, with its encoders.
        source: the checkpoint.
        tell: is given a line about each part.

    Raises:
        ConfigError: a tower has steps that ONNX can't say.
        DataError: a file deviates from torch by more than the tolerance.
    """
    parts: dict[str, Any] = {}
    for side in SIDES:
        parts[f"{side}_tower"] = _write_tower(model, side, folder)
        tell(_line(f"{side}_tower", parts[f"{side}_tower"]))
    for side in SIDES:
        parts[f"{side}_encoder"] = _write_encoder(model, side, folder)
        tell(_line(f"{side}_encoder", parts[f"{side}_encoder"]))
    described = {
        "checkpoint": source.name,
        "run": run_of(source),
        "embedding_dim": parts["image_tower"]["outputs"]["embeddings"][1],
        "similarity": model.similarity,
        "tolerance": TOLERANCE,
        "largest_deviation": max(part.get("deviation", 0.0) for part in parts.values()),
    }
    write_config(folder, KIND, described | parts)


def _write_tower(model: DualEncoder, side: Modality, folder: Path) -> dict[str, Any]:
    tower: Tower = getattr(model, f"{side}_tower")
    batches = random_batches(tower) if tower.tail is None else encoded_batches(_encoder(model, side))
    axes: dict[str, Axes] = {"features": ("batch", "length", batches[0][0].shape[2]), "mask": ("batch", "length")}
    file = folder / f"{side}_tower.onnx"
    opset = write_graph(exportable(tower), batches[0], axes, ["embeddings"], file)
    found, deviation = tower_deviation(file, tower, batches)
    return {
        "file": file.name,
        "opset": opset,
        "inputs": axes,
        "outputs": {"embeddings": ["batch", found]},
        "unit_length": tower.normalize,
        "deviation": deviation,
    }


def _write_encoder(model: DualEncoder, side: Modality, folder: Path) -> dict[str, Any]:
    """What was written of an encoder; where it is not to be had, or is no network, why not."""
    file = folder / f"{side}_encoder.onnx"
    try:
        encoder = _encoder(model, side)
        portable = _portable(encoder)
        inputs = portable.tensors([encoder.preprocess(item) for item in example_items(encoder)])
        opset = write_graph(portable.network.eval(), inputs, portable.axes, ["sets", "sets_mask"], file)
    except XmodalError as error:
        return {"left_out": str(error)}
    for name, content in portable.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return {
        "file": file.name,
        "opset": opset,
        "inputs": portable.axes,
        "outputs": {"sets": f"the features of {side}_tower", "sets_mask": f"the mask of {side}_tower"},
        "preprocessing": portable.preprocessing,
        "deviation": encoder_deviation(file, encoder, portable),
    }


def _encoder(model: DualEncoder, side: Modality) -> Encoder:
    assert model.encoders is not None
    return model.encoders.encoder(side)


def _portable(encoder: Encoder) -> PortableEncoder:
    if isinstance(encoder, Portable):
        return encoder.portable()
    raise FeatureError(f"{type(encoder).__name__} has no method `portable`, which would give it as a network.")


def _line(part: str, found: dict[str, Any]) -> str:
    if "left_out" in found:
        return f"{part}: left out. {found['left_out']}"
    return f"{found['file']}: equal to torch in onnxruntime, to {found['deviation']:.1e}"
