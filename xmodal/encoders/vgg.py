"""VGG: one photo → a set of one vector, the activations of its second fully connected layer; or what leads to it."""

import logging
from collections.abc import Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn
from torchvision.models import VGG, VGG16_Weights, VGG19_Weights, WeightsEnum, vgg16, vgg19

from xmodal.encoders.portable import PhotoSets, PortableEncoder, pixels_alone
from xmodal.encoders.protocol import TrainableLayers
from xmodal.encoders.published import Published, of_torch
from xmodal.encoders.trainable import marked, range_faults, trainable
from xmodal.encoders.weights import (
    PRETRAINED,
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
_PIXELS = (3, 224, 224)
_KEY = "image_encoder"


class VGGEncoder:
    """fc7 after ReLU of torchvision's VGG (Simonyan & Zisserman, 2015): D = 4096, a set of one.

    Args:
        depth: 16 or 19 layers with weights.
        weights: ``pretrained`` (ImageNet), the path of a torchvision state_dict, or None: random weights.
        seed: of random weights.
        trainable_layers: N layers with weights, counted from the end, that are trained: 1 is fc7, 2 is fc6 too, 3 the
            last convolution too, and so on to the second convolution; ``all`` trains everything. The set is what the
            first of them takes: one vector of 4096 (N = 1) or 25088 (N = 2), the H·W vectors of a map with C channels,
            width C (N ≥ 3), one vector of all pixel values (``all``).
        batch_size: photos per forward pass.

    Raises:
        ConfigError: a parameter is out of range.
    """

    modality: ClassVar[Literal["image", "text"]] = "image"

    def __init__(
        self,
        depth: int = 16,
        weights: str | None = None,
        seed: int = 0,
        trainable_layers: TrainableLayers = 0,
        batch_size: int = 32,
    ) -> None:
        if depth not in _PUBLISHED:
            raise ConfigError(f"{_KEY}.depth must be one of {list(_PUBLISHED)}, found {depth}.")
        faults = range_faults(trainable_layers, depth - 2, _KEY)  # without fc8 there are depth - 1 layers
        if batch_size < 1:
            faults.append(f"{_KEY}.batch_size must be positive, found {batch_size}.")
        if faults:
            raise ConfigError(faults)
        self.depth = depth
        self.trainable_layers = trainable_layers
        self.weights = weights
        self.seed = seed
        self.batch_size = batch_size
        self._prepared: VGG | None = None

    @property
    def feature_dim(self) -> int:
        return prod(_PIXELS) if self.trainable_layers == "all" else self._shape_at_cut[0]

    @property
    def network(self) -> VGG:
        """The network up to fc7; known after ``prepare`` or ``restore``."""
        if self._prepared is None:
            raise RuntimeError("VGGEncoder has no weights yet: call prepare() or restore() first")
        return self._prepared

    def check(self) -> list[str]:
        return absent(self.weights, _KEY)

    def published(self) -> Published | None:
        return of_torch(_PUBLISHED[self.depth].url) if self.weights == PRETRAINED else None

    def prepare(self, captions: Sequence[str], cache_dir: Path) -> None:
        """Load the weights; captions and cache are not needed."""
        if self._prepared is None:
            self._prepared = self._build(resolve(self.weights, _PUBLISHED[self.depth], _KEY))

    def fingerprint(self) -> dict[str, Any]:
        used = {"encoder": "VGGEncoder", "depth": self.depth, "weights": digest(self.network.state_dict())}
        return marked(used, self.trainable_layers)

    @staticmethod
    def preprocess(item: Image.Image) -> Float[Tensor, "3 224 224"]:
        """Shorter side to 256, centre crop of 224, ImageNet mean and deviation, as published."""
        return _PUBLISHED[16].transforms()(item)

    def collate(self, batch: list[Tensor]) -> Float[Tensor, "B 3 224 224"]:
        """The photos in one array, in the memory format that convolutions like best."""
        return torch.stack(batch).contiguous(memory_format=torch.channels_last)

    def most_vectors(self, items: Sequence[Any]) -> int:
        return len(items) * (1 if self.trainable_layers == "all" else prod(self._shape_at_cut[1:]))

    @torch.inference_mode()
    def encode(self, batch: list[Tensor] | Tensor) -> list[FeatureSet]:
        photos = batch if isinstance(batch, Tensor) else self.collate(batch)
        if self.trainable_layers == "all":
            return list(photos.float().cpu().flatten(1).unsqueeze(1))
        device = next(self.network.parameters()).device
        layers = _layers(self.network)[: self._cut()]
        return list(_sets(layers, photos.to(device, memory_format=torch.channels_last)).float().cpu())

    def tail(self) -> "VGGTail":
        """The layers from the cut to fc7 after ReLU, with weights of their own."""
        return VGGTail(trainable(_layers(self.network)[self._cut() :]), self._shape_at_cut)

    def portable(self) -> PortableEncoder:
        layers = _layers(self.network)[: self._cut()]
        chosen = _PUBLISHED[16].transforms()
        preprocessing = {
            "resize_shorter_side": chosen.resize_size[0],
            "interpolation": chosen.interpolation.value,
            "antialias": chosen.antialias,
            "center_crop": chosen.crop_size[0],
            "divide_by": 255,
            "mean": chosen.mean,
            "std": chosen.std,
        }
        return PortableEncoder(
            pixels_alone() if self.trainable_layers == "all" else PhotoSets(layers, _sets),
            {"pixels": ("batch", *_PIXELS)},
            lambda batch: (torch.stack(batch),),
            preprocessing,
        )

    def to(self, device: torch.device | str) -> None:
        self.network.to(device)

    def state(self) -> dict[str, Any]:
        return frozen_state(self.network, embed=is_path(self.weights))

    def restore(self, state: dict[str, Any]) -> None:
        weights = state["weights"] if "weights" in state else resolve(self.weights, _PUBLISHED[self.depth], _KEY)
        network = self._build(weights)
        check_probe(network, state, f"VGG-{self.depth}")
        self._prepared = network

    def _cut(self) -> int:
        """Number of modules that stay frozen."""
        return _cut(_layers(self.network), self.trainable_layers)

    @cached_property
    def _shape_at_cut(self) -> tuple[int, ...]:
        """(D,) or (C, H, W) of one photo at the cut; told by the layers' kinds alone, so known before ``prepare``."""
        with torch.device("meta"):
            layers = _layers({16: vgg16, 19: vgg19}[self.depth](weights=None, init_weights=False))
            return tuple(layers[: _cut(layers, self.trainable_layers)](torch.empty(1, *_PIXELS)).shape[1:])

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


class VGGTail(nn.Module):
    """The last layers of VGG: sets at the cut → fc7 after ReLU, a set of one.

    Args:
        layers: the modules behind the cut.
        shape: of what the first of them takes, for one photo: (D,) or (C, H, W).
    """

    def __init__(self, layers: nn.Sequential, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = layers
        self.shape = shape
        self.output_dim = 4096

    def forward(
        self, x: Float[Tensor, "B L C"], mask: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B 1 D"], Bool[Tensor, "B 1"]]:
        """Every set is whole (L vectors of one photo), or empty: a row that the mask leaves out."""
        photos = x.transpose(1, 2).reshape(x.shape[0], *self.shape)
        return self.layers(photos).unsqueeze(1), mask.any(dim=1, keepdim=True)


def _layers(network: VGG) -> nn.Sequential:
    """The network to fc7 after ReLU as one chain of modules, which it shares."""
    return nn.Sequential(*network.features, network.avgpool, nn.Flatten(), *network.classifier[:_FC7_AFTER_RELU])


def _sets(layers: nn.Module, photos: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B n C"]:
    """What layers make of photos: one vector each, or those of a map."""
    found: Tensor = layers(photos)
    return found.flatten(2).transpose(1, 2) if found.ndim == 4 else found.unsqueeze(1)


def _cut(layers: nn.Sequential, trainable_layers: TrainableLayers) -> int:
    """Number of modules before the N-th last with weights; drop-out before that one belongs behind the cut."""
    if trainable_layers == "all":
        return 0
    with_weights = [place for place, layer in enumerate(layers) if isinstance(layer, nn.Conv2d | nn.Linear)]
    cut = len(layers) if trainable_layers == 0 else with_weights[-trainable_layers]
    return cut - 1 if trainable_layers and isinstance(layers[cut - 1], nn.Dropout) else cut
