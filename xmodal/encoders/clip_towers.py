"""The two towers of a CLIP or SigLIP model of Hugging Face, each with what prepares its inputs."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    SiglipTextModel,
    SiglipVisionModel,
)

from xmodal.encoders.hub import (
    architecture,
    by_name,
    from_folder,
    missing_folder,
    sha256,
    tokenizer_settings,
    unpacked,
)
from xmodal.encoders.weights import PRETRAINED, StateDict, digest, freeze, load_strictly, seeded
from xmodal.errors import WeightsError

Side = Literal["image", "text"]

_PROCESSORS: dict[Side, Any] = {"image": AutoImageProcessor, "text": AutoTokenizer}
_TOWERS: dict[tuple[str, Side], Any] = {
    ("clip", "image"): CLIPVisionModelWithProjection,
    ("clip", "text"): CLIPTextModelWithProjection,
    ("siglip", "image"): SiglipVisionModel,
    ("siglip", "text"): SiglipTextModel,
}


@dataclass(frozen=True)
class ClipTower:
    """One side: the frozen network, and its image processor or tokenizer."""

    side: Side
    network: Any
    processor: Any

    @property
    def family(self) -> str:
        """``clip`` or ``siglip``."""
        return str(self.network.config.model_type).partition("_")[0]

    @property
    def width(self) -> int:
        """Of the embeddings."""
        config = self.network.config
        names = ("projection_dim",) if self.family == "clip" else ("projection_size", "hidden_size")
        return next(value for name in names if (value := getattr(config, name, None)) is not None)

    def identity(self) -> dict[str, str]:
        """Digests of architecture, preparation of the inputs, and weights."""
        inputs = self.processor.to_json_string() if self.side == "image" else tokenizer_settings(self.processor)
        return {
            "config": sha256(architecture(self.network.config)),
            "inputs": sha256(inputs),
            "weights": digest(self.network.state_dict()),
        }


def embed(network: Any, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B F"]:
    """The projected embeddings: what `CLIPModel.get_image_features` or `get_text_features` gives."""
    found = network(**inputs)
    names = ("image_embeds", "text_embeds", "pooler_output")
    embeddings: Tensor = next(value for name in names if (value := getattr(found, name, None)) is not None)
    return embeddings


def absent_tower(weights: str | None, key: str) -> list[str]:
    """A sentence where ``weights`` is the path of a folder that is not there."""
    return missing_folder(weights, key, "a folder of a CLIP or SigLIP model (save_pretrained)")


def load_tower(weights: str, model: str, side: Side, key: str) -> tuple[ClipTower, bool]:
    """The tower that ``weights`` stands for (a folder, a name, or ``pretrained``: that of ``model``).

    Returns:
        It, and whether it is of a folder.

    Raises:
        WeightsError: it can't be had, or is of another kind of model.
    """
    for fault in absent_tower(weights, key):
        raise WeightsError(fault)

    def load(source: str, is_local: bool) -> ClipTower:
        return _load(source, is_local, side, key)

    folder = Path(weights).expanduser()
    if folder.is_dir():
        return from_folder(folder, key, load), True
    return by_name(model if weights == PRETRAINED else weights, key, load), False


def tower_from_files(files: Mapping[str, Tensor], weights: StateDict, side: Side) -> ClipTower:
    """The tower of which the files were kept (`hub.files_of`), with these weights."""
    with unpacked(files) as folder:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        processor = _PROCESSORS[side].from_pretrained(folder, local_files_only=True)
    family = str(config.model_type).partition("_")[0]
    with seeded(0):
        network = _TOWERS[family, side](config)
    load_strictly(network, weights, f"The checkpoint's {side} encoder")
    return ClipTower(side, freeze(network.float()), processor)


def _load(source: str, is_local: bool, side: Side, key: str) -> ClipTower:
    config = AutoConfig.from_pretrained(source, local_files_only=is_local, trust_remote_code=False)
    part = _part(config, source, side, key)
    processor = _PROCESSORS[side].from_pretrained(source, local_files_only=is_local, trust_remote_code=False)
    with _quiet():
        network, report = _TOWERS[config.model_type, side].from_pretrained(
            source, config=part, local_files_only=is_local, output_loading_info=True
        )
    if absent := sorted(report["missing_keys"]):
        raise WeightsError(f"{key}.weights: {source} lacks {len(absent)} tensors of its {side} tower: {absent[0]}, …")
    return ClipTower(side, freeze(network.float()), processor)


def _part(config: Any, source: str, side: Side, key: str) -> Any:
    """The configuration of one tower."""
    if (config.model_type, side) not in _TOWERS:
        raise WeightsError(
            f"{key}.weights: {source} is a {config.model_type} model; expected CLIP or SigLIP (of SigLIP 2, those for "
            "one size of photo, which are not called naflex)."
        )
    part = config.vision_config if side == "image" else config.text_config
    if config.model_type == "clip":
        part.projection_dim = config.projection_dim  # a tower's own copy of it may be wrong
    return part


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, nothing is said about the tensors of the other tower, which are not wanted."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
