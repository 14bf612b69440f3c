"""VGG: one photo → a set of one vector, the activations of its second fully connected layer."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.models import VGG, VGG16_Weights, VGG19_Weights, WeightsEnum, vgg16, vgg19

from xmodal.encoders.weights import (
    StateDict,
    absent,
    check_probe,
    digest,
    freeze,
    frozen_state,
    is_path,
    load_strictly,
    resolve,
    seeded,
)
from xmodal.errors import ConfigError
from xmodal.types import FeatureSet

log = logging.getLogger(__name__)

_PUBLISHED: dict[int, WeightsEnum] = {16: VGG16_Weights.IMAGENET1K_V1, 19: VGG19_Weights.IMAGENET1K_V1}
_FC7_AFTER_RELU = 5  # classifier[:5] = fc6, ReLU, dropout, fc7, ReLU
_KEY = "image_encoder"


class VGGEncoder:
    """fc7 after ReLU of torchvision's VGG (Simonyan & Zisserman, 2015): D = 4096, a set of one.

    Args:
        depth: 16 or 19 layers with weights.
        weights: ``pretrained`` (ImageNet), the path of a torchvision state_dict, or None: random weights.
        seed: of random weights.
        batch_size: photos per forward pass.

    Raises:
        ConfigError: a parameter is out of range.
    """

    modality: ClassVar[Literal["image", "text"]] = "image"

    def __init__(self, depth: int = 16, weights: str | None = None, seed: int = 0, batch_size: int = 32) -> None:
        if depth not in _PUBLISHED:
            raise ConfigError(f"{_KEY}.depth must be one of {list(_PUBLISHED)}, found {depth}.")
        if batch_size < 1:
            raise ConfigError(f"{_KEY}.batch_size must be positive, found {batch_size}.")
        self.depth = depth
        self.weights = weights
        self.seed = seed
        self.batch_size = batch_size
        self._prepared: VGG | None = None

    @property
    def feature_dim(self) -> int:
        return 4096

    @property
    def network(self) -> VGG:
        """The network up to fc7; known after ``prepare`` or ``restore``."""
        if self._prepared is None:
            raise RuntimeError("VGGEncoder has no weights yet: call prepare() or restore() first")
        return self._prepared

    def check(self) -> list[str]:
        return absent(self.weights, _KEY)

    def prepare(self, captions: Sequence[str], cache_dir: Path) -> None:
        """Load the weights; captions and cache are not needed."""
        if self._prepared is None:
            self._prepared = self._build(resolve(self.weights, _PUBLISHED[self.depth], _KEY))

    def fingerprint(self) -> dict[str, Any]:
        return {"encoder": "VGGEncoder", "depth": self.depth, "weights": digest(self.network.state_dict())}

    @staticmethod
    def preprocess(item: Image.Image) -> Float[Tensor, "3 224 224"]:
        """Shorter side to 256, centre crop of 224, ImageNet mean and deviation, as published."""
        return _PUBLISHED[16].transforms()(item)

    @torch.inference_mode()
    def encode(self, batch: list[Tensor]) -> list[FeatureSet]:
        device = next(self.network.parameters()).device
        photos = torch.stack(batch).to(device, memory_format=torch.channels_last)
        return list(self.network(photos).float().cpu().unsqueeze(1))

    def to(self, device: torch.device | str) -> None:
        self.network.to(device)

    def state(self) -> dict[str, Any]:
        return frozen_state(self.network, embed=is_path(self.weights))

    def restore(self, state: dict[str, Any]) -> None:
        weights = state["weights"] if "weights" in state else resolve(self.weights, _PUBLISHED[self.depth], _KEY)
        network = self._build(weights)
        check_probe(network, state, f"VGG-{self.depth}")
        self._prepared = network

    def _build(self, weights: StateDict | None) -> VGG:
        with seeded(self.seed):
            network = {16: vgg16, 19: vgg19}[self.depth](weights=None, init_weights=weights is None)
        network.classifier = network.classifier[:_FC7_AFTER_RELU]
        if weights is None:
            log.info(f"VGG-{self.depth} uses random weights (seed {self.seed}), because {_KEY}.weights=null.")
        else:
            used = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier.6.")}
            load_strictly(network, used, f"{_KEY}.weights={self.weights}")
        freeze(network)
        return network.to(memory_format=torch.channels_last)
