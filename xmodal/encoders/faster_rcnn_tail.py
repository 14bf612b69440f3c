"""The parts of Faster R-CNN that can be trained: the end of the box head, or backbone and box head."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList

from xmodal.encoders.trainable import make_buffers


class Regions(NamedTuple):
    """What the boxes of some photos cover, end to end."""

    values: Float[Tensor, "n 256 7 7"]
    geometry: Float[Tensor, "n 5"]  # (x1, y1, x2, y2, area) as fractions of the photo
    counts: list[int]  # boxes of each photo, at least one


class BoxHeadTail(nn.Module):
    """Region vectors at the cut → those that the box head makes of them.

    Args:
        layers: the modules behind the cut.
        output_dim: width of a region's vector in the end, with the columns that pass by.
        passed_by: last columns that no layer sees: the geometry of the boxes.
    """

    def __init__(self, layers: nn.Sequential, output_dim: int, passed_by: int = 0) -> None:
        super().__init__()
        self.layers = layers
        self.output_dim = output_dim
        self.passed_by = passed_by

    def forward(
        self, x: Float[Tensor, "B L C"], mask: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B L D"], Bool[Tensor, "B L"]]:
        regions = x[mask]  # no work for padding
        seen = regions.shape[1] - self.passed_by
        vectors = self.layers(regions[:, :seen])
        return _padded(torch.cat([vectors, regions[:, seen:].to(vectors.dtype)], dim=1), mask), mask


class DetectorTail(nn.Module):
    """The whole detector on square photos of values in [0, 1]: one vector of 3·S·S values each → regions.

    Backbone and box head learn from the vectors of the boxes. The boxes themselves are chosen without gradient by the
    rest of the detector, whose weights are buffers here, on the maps of the backbone as it is. It always runs in
    evaluation mode: detection by torchvision's rules, batch norms with the statistics they came with.
    """

    def __init__(self, network: FasterRCNN, size: int, box_geometry: bool) -> None:
        super().__init__()
        for fixed in (network.rpn, network.roi_heads.box_predictor):
            make_buffers(fixed, fixed.parameters())
        self.network = network.eval()
        self.size = size
        self.box_geometry = box_geometry
        self.output_dim = 1024 + 5 * box_geometry

    def train(self, mode: bool = True) -> "DetectorTail":
        super().train(mode)
        self.network.eval()
        return self

    def forward(
        self, x: Float[Tensor, "B 1 C"], mask: Bool[Tensor, "B 1"]
    ) -> tuple[Float[Tensor, "B L D"], Bool[Tensor, "B L"]]:
        photos = x.reshape(-1, 3, self.size, self.size)
        images, _ = self.network.transform(list(photos))
        regions = pooled_regions(self.network, images, self.network.backbone(images.tensors))
        vectors = self.network.roi_heads.box_head(regions.values)
        if self.box_geometry:
            vectors = torch.cat([vectors, regions.geometry.to(vectors.dtype)], dim=1)
        counts = torch.tensor(regions.counts, device=x.device)
        kept = torch.arange(max(regions.counts), device=x.device) < counts[:, None]
        return _padded(vectors, kept), kept & mask


def box_layers(network: FasterRCNN, trainable_layers: int) -> tuple[nn.Sequential, nn.Sequential]:
    """The box head, whose modules both parts share, cut before its last ``trainable_layers`` fully connected layers."""
    head = network.roi_heads.box_head
    if isinstance(head, TwoMLPHead):
        layers = nn.Sequential(nn.Flatten(), head.fc6, nn.ReLU(), head.fc7, nn.ReLU())
    else:
        layers = nn.Sequential(*head)
    places = [place for place, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
    cut = places[-trainable_layers] if trainable_layers else len(layers)
    return layers[:cut], layers[cut:]


def pooled_regions(network: FasterRCNN, images: ImageList, maps: dict[str, Tensor]) -> Regions:
    """RoIAlign of the maps at the boxes found, at their final position; gradients reach the maps, not the boxes."""
    boxes = _boxes(network, images, {name: found.detach() for name, found in maps.items()})
    values = network.roi_heads.box_roi_pool(maps, boxes, images.image_sizes)
    shapes = [_geometry(found, size) for found, size in zip(boxes, images.image_sizes, strict=True)]
    return Regions(values, torch.cat(shapes), [len(found) for found in boxes])


@torch.no_grad()
def _boxes(network: FasterRCNN, images: ImageList, maps: dict[str, Tensor]) -> list[Float[Tensor, "n 4"]]:
    """In pixels of the scaled photos, where the feature maps lie; ordered by score."""
    proposals, _ = network.rpn(images, maps)
    detections, _ = network.roi_heads(maps, proposals, images.image_sizes)
    return [
        found["boxes"] if len(found["boxes"]) else _whole_image(size, found["boxes"])
        for found, size in zip(detections, images.image_sizes, strict=True)
    ]


def _whole_image(size: tuple[int, int], like: Tensor) -> Float[Tensor, "1 4"]:
    height, width = size
    return like.new_tensor([[0.0, 0.0, width, height]])


def _geometry(boxes: Float[Tensor, "n 4"], size: tuple[int, int]) -> Float[Tensor, "n 5"]:
    """(x1, y1, x2, y2, area), each as a fraction of the photo of that size."""
    height, width = size
    corners = boxes / boxes.new_tensor([width, height, width, height])
    area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    return torch.cat([corners, area[:, None]], dim=1)


def _padded(vectors: Float[Tensor, "n D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
    """The vectors at the places that the mask keeps, zeros elsewhere."""
    places = vectors.new_zeros(*mask.shape, vectors.shape[1])
    places[mask] = vectors
    return places
