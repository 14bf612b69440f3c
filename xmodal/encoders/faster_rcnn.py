"""Faster R-CNN: one photo → a set of region vectors."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.detection import (
    FasterRCNN,
    FasterRCNN_ResNet50_FPN_V2_Weights,
    FasterRCNN_ResNet50_FPN_Weights,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
)

from xmodal.encoders.faster_rcnn_tail import BoxHeadTail, DetectorTail, box_layers, pooled_regions
from xmodal.encoders.portable import PortableEncoder
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
from xmodal.errors import ConfigError, FeatureError
from xmodal.types import FeatureSet

log = logging.getLogger(__name__)

_PUBLISHED: dict[int, WeightsEnum] = {
    1: FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
    2: FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
}
_CLASS_SCORES = "roi_heads.box_predictor.cls_score.weight"  # (classes, 1024)
_COCO_CLASSES = 91
_PUBLISHED_SIZE = 800  # pixels of the shorter side
_RANDOM_SIZE = 224
_REGION = 256 * 7 * 7  # values of a region of the feature maps
_ORIENTATION = 0x0112  # EXIF: 5 to 8 mean that width and height change places
_KEY = "image_encoder"


class FasterRCNNEncoder:
    """Region vectors of torchvision's Faster R-CNN with ResNet-50-FPN (Ren et al., 2015; Lin et al., 2017).

    The boxes with the R highest scores after non-maximum suppression are pooled once more (RoIAlign) at their
    final position, and the box head turns each into a vector, in the way of bottom-up attention (Anderson et al.,
    2018): D = 1024. A photo with fewer detections has fewer vectors; one without any has the vector of the whole
    image. Photos of different size are never padded to each other, so a photo's vectors don't depend on its batch.

    Args:
        version: 1 (``fasterrcnn_resnet50_fpn``) or 2 (``fasterrcnn_resnet50_fpn_v2``).
        weights: ``pretrained`` (COCO), the path of a torchvision state_dict, or None: random weights.
        seed: of random weights.
        num_regions: R, most vectors per photo.
        score_threshold: a detection scores more than this (0–1).
        nms_threshold: of two boxes of a class that overlap more than this (IoU), the lower-scored goes.
        box_geometry: append (x1, y1, x2, y2, area) as fractions of the photo's width, height and area: D = 1029.
        min_size: the shorter side is scaled to this many pixels; None: 800, which the published weights were trained
            at, and 224 with random weights, which know no scale …
        max_size: … unless the longer one would exceed this.
        trainable_layers: N fully connected layers of the box head, counted from the end, that are trained: 1 is fc7, 2
            is fc6 too (version 2 has but one). The set is what the first of them takes, for every region that the
            frozen detector found: 1024 wide before fc7, else 12544, the region's 256·7·7 values; five numbers of
            ``box_geometry`` pass by. ``all`` trains backbone and box head from the pixels: photos are squashed to a
            square of min_size pixels, so that batches have one shape, and the frozen rest of the detector chooses boxes
            on the maps of the backbone as it is by then; batch norms keep their statistics.
        batch_size: photos per forward pass.

    Raises:
        ConfigError: a parameter is out of range.
    """

    modality: ClassVar[Literal["image", "text"]] = "image"

    def __init__(
        self,
        version: int = 1,
        weights: str | None = None,
        seed: int = 0,
        num_regions: int = 36,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        box_geometry: bool = False,
        min_size: int | None = None,
        max_size: int = 1333,
        trainable_layers: TrainableLayers = 0,
        batch_size: int = 4,
    ) -> None:
        min_size = min_size if min_size is not None else _RANDOM_SIZE if weights is None else _PUBLISHED_SIZE
        faults = _range_faults(version, num_regions, score_threshold, nms_threshold, min_size, max_size, batch_size)
        faults += range_faults(trainable_layers, 2 if version == 1 else 1, _KEY)
        if faults:
            raise ConfigError(faults)
        self.version = version
        self.weights = weights
        self.seed = seed
        self.num_regions = num_regions
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.box_geometry = box_geometry
        self.min_size = min_size
        self.max_size = max_size
        self.trainable_layers = trainable_layers
        self.batch_size = batch_size
        self.preprocess: Callable[[Image.Image], Tensor] = (
            partial(_squashed, size=min_size) if trainable_layers == "all" else _as_tensor
        )
        self._prepared: FasterRCNN | None = None

    @property
    def feature_dim(self) -> int:
        if self.trainable_layers == "all":
            return 3 * self.min_size**2
        at_region = self.trainable_layers != 0 and (self.version, self.trainable_layers) != (1, 1)
        return (_REGION if at_region else 1024) + 5 * self.box_geometry

    @property
    def network(self) -> FasterRCNN:
        """The detector; known after ``prepare`` or ``restore``."""
        if self._prepared is None:
            raise RuntimeError("FasterRCNNEncoder has no weights yet: call prepare() or restore() first")
        return self._prepared

    def check(self) -> list[str]:
        return absent(self.weights, _KEY)

    def published(self) -> Published | None:
        return of_torch(_PUBLISHED[self.version].url) if self.weights == PRETRAINED else None

    def prepare(self, captions: Sequence[str], cache_dir: Path) -> None:
        """Load the weights; captions and cache are not needed."""
        if self._prepared is None:
            self._prepared = self._build(resolve(self.weights, _PUBLISHED[self.version], _KEY))

    def fingerprint(self) -> dict[str, Any]:
        used = {
            "encoder": "FasterRCNNEncoder",
            "version": self.version,
            "num_regions": self.num_regions,
            "score_threshold": self.score_threshold,
            "nms_threshold": self.nms_threshold,
            "box_geometry": self.box_geometry,
            "min_size": self.min_size,
            "max_size": self.max_size,
            "batch_norm_eps": _batch_norm_eps(self.network),
            "weights": digest(self.network.state_dict()),
        }
        return marked(used, self.trainable_layers)

    def sizes(self, items: Sequence[Any]) -> list[int]:
        """One number for each pair of width and height, from the files' headers alone."""
        return [0] * len(items) if self.trainable_layers == "all" else [_size(item) for item in items]

    def most_vectors(self, items: Sequence[Any]) -> int:
        return len(items) * (1 if self.trainable_layers == "all" else self.num_regions)

    @torch.inference_mode()
    def encode(self, batch: list[Tensor]) -> list[FeatureSet]:
        if self.trainable_layers == "all":
            return [photo.float().cpu().reshape(1, -1) for photo in batch]
        rows_of_size: dict[tuple[int, ...], list[int]] = {}
        for row, photo in enumerate(batch):
            rows_of_size.setdefault(tuple(photo.shape), []).append(row)
        sets: dict[int, Tensor] = {}
        for rows in rows_of_size.values():
            sets.update(zip(rows, self._encode_same_size([batch[row] for row in rows]), strict=True))
        return [sets[row] for row in range(len(batch))]

    def portable(self) -> PortableEncoder:
        raise FeatureError(
            "Faster R-CNN scales each photo by its own size and goes on with as many boxes as it finds, steps that "
            "torch.export can't follow."
        )

    def to(self, device: torch.device | str) -> None:
        self.network.to(device)

    def tail(self) -> nn.Module:
        """The last layers of the box head, or the whole detector, with weights of their own."""
        if self.trainable_layers == "all":
            return DetectorTail(trainable(self.network), self.min_size, self.box_geometry)
        layers = trainable(box_layers(self.network, self.trainable_layers)[1])
        return BoxHeadTail(layers, 1024 + 5 * self.box_geometry, passed_by=5 * self.box_geometry)

    def state(self) -> dict[str, Any]:
        state = frozen_state(self.network, embed=is_path(self.weights))
        return {**state, "batch_norm_eps": _batch_norm_eps(self.network)}

    def restore(self, state: dict[str, Any]) -> None:
        weights = state["weights"] if "weights" in state else resolve(self.weights, _PUBLISHED[self.version], _KEY)
        network = self._build(weights)
        if "batch_norm_eps" in state:
            _set_batch_norm_eps(network, state["batch_norm_eps"])
        check_probe(network, state, "Faster R-CNN")
        self._prepared = network

    def _encode_same_size(self, photos: list[Tensor]) -> list[Tensor]:
        network = self.network
        device = next(network.parameters()).device
        images, _ = network.transform([photo.to(device) for photo in photos])
        regions = pooled_regions(network, images, network.backbone(images.tensors))
        frozen, _ = box_layers(network, 0 if self.trainable_layers == "all" else self.trainable_layers)
        vectors = frozen(regions.values).float()
        if self.box_geometry:
            vectors = torch.cat([vectors, regions.geometry], dim=1)
        return list(vectors.cpu().split(regions.counts))

    def _build(self, weights: StateDict | None) -> FasterRCNN:
        model = {1: fasterrcnn_resnet50_fpn, 2: fasterrcnn_resnet50_fpn_v2}[self.version]
        with seeded(self.seed):
            network = model(
                weights=None,
                weights_backbone=None,
                num_classes=len(weights[_CLASS_SCORES]) if weights and _CLASS_SCORES in weights else _COCO_CLASSES,
                box_score_thresh=self.score_threshold,
                box_nms_thresh=self.nms_threshold,
                box_detections_per_img=self.num_regions,
                min_size=self.min_size,
                max_size=self.max_size,
            )
        if weights is None:
            log.info(f"Faster R-CNN uses random weights (seed {self.seed}), because {_KEY}.weights=null.")
        else:
            load_strictly(network, weights, f"{_KEY}.weights={self.weights}")
            if self.version == 1 and not any(name.endswith("num_batches_tracked") for name in weights):
                _set_batch_norm_eps(network, 0.0)  # a file with frozen batch norms: torchvision runs its own so
        freeze(network)
        return network


def _range_faults(
    version: int, num_regions: int, score: float, nms: float, min_size: int, max_size: int, batch_size: int
) -> list[str]:
    faults = []
    if version not in _PUBLISHED:
        faults.append(f"{_KEY}.version must be one of {list(_PUBLISHED)}, found {version}.")
    if not 0 <= score <= 1:
        faults.append(f"{_KEY}.score_threshold must lie in [0, 1], found {score}.")
    if not 0 < nms <= 1:
        faults.append(f"{_KEY}.nms_threshold must lie in (0, 1], found {nms}.")
    if not 32 <= min_size <= max_size:
        faults.append(f"{_KEY}: 32 ≤ min_size ≤ max_size is needed, found min_size {min_size}, max_size {max_size}.")
    for name, value in {"num_regions": num_regions, "batch_size": batch_size}.items():
        if value < 1:
            faults.append(f"{_KEY}.{name} must be positive, found {value}.")
    return faults


def _as_tensor(item: Image.Image) -> Float[Tensor, "3 H W"]:
    """Values in [0, 1]; the network itself scales and normalises."""
    return _PUBLISHED[1].transforms()(item)


def _squashed(item: Image.Image, size: int) -> Float[Tensor, "3 S S"]:
    """Values in [0, 1] of the photo as a square."""
    return _as_tensor(item.resize((size, size), Image.Resampling.BILINEAR))


def _size(item: Any) -> int:
    """A number that only photos of this width and height have; 0 where the header can't be read, as decoding will tell.

    Pixels are counted as they lie after the rotation that EXIF asks for.
    """
    if isinstance(item, Image.Image):
        return _number(item)
    try:
        with Image.open(item) as image:
            return _number(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 0


def _number(image: Image.Image) -> int:
    lies = image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
    width, height = reversed(image.size) if lies else image.size
    return (width << 32) + height


def _batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def _batch_norm_eps(network: nn.Module) -> float:
    return _batch_norms(network)[0].eps


def _set_batch_norm_eps(network: nn.Module, eps: float) -> None:
    for norm in _batch_norms(network):
        norm.eps = eps
