"""Photo files through xmodal's extraction, beside the bare forward pass of the same network over the same batches."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from alternation import alternate, gpu_memory, seconds
from parts.forwards import recorded, replay
from parts.inputs import Inputs, into_new_store, prepared
from torch import nn

from xmodal.encoders.faster_rcnn import FasterRCNNEncoder
from xmodal.encoders.protocol import Encoder
from xmodal.encoders.vgg import VGGEncoder


def vgg(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """VGG-16 up to fc7."""
    encoder = VGGEncoder()
    inputs = Inputs.read(options, folder)
    prepared(encoder, [], options, folder)
    return measure("vgg", encoder, encoder.network.features[0], inputs.photos, options, folder)


def faster_rcnn(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """torchvision's whole detector, which does not pool its final boxes once more as the encoder does."""
    encoder = FasterRCNNEncoder(min_size=options.min_size)
    inputs = Inputs.read(options, folder)
    prepared(encoder, [], options, folder)
    return measure("frcnn", encoder, encoder.network.transform, inputs.photos, options, folder)


def measure(
    name: str, encoder: Encoder, entrance: nn.Module, photos: list[Path], options: argparse.Namespace, folder: Path
) -> Iterator[str]:
    """Both ways; ``entrance`` is the part of the network that is given what the network is given."""
    network = encoder.network
    with recorded(entrance) as passes:  # this also warms up: kernels are chosen, memory grows
        into_new_store(encoder, photos, options, folder)

    def ours() -> float:
        return len(photos) / seconds(lambda: into_new_store(encoder, photos, options, folder), options.device)

    def bare() -> float:
        return len(photos) / seconds(lambda: replay(network, passes), options.device)

    yield alternate(ours, bare, options.repeats).line(f"{name}, {len(photos)} photos", "images/s")
    yield from gpu_memory(lambda: into_new_store(encoder, photos, options, folder), options.device)
