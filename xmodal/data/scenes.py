"""The built-in data set: rendered scenes with true captions, made once from a seed and read like any other data set."""

import hashlib
import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

from rich.console import Console
from rich.progress import track

from xmodal.data.items import Items
from xmodal.data.karpathy import KarpathyData
from xmodal.data.scene_captions import captions
from xmodal.data.scene_drawing import draw_scene
from xmodal.data.scene_model import GENERATOR_VERSION, sample_scene
from xmodal.errors import ConfigError, DataError

log = logging.getLogger(__name__)
MAX_THINGS = 4
JPEG_QUALITY = 90


class SceneData:
    """Scenes of 1 … ``max_objects`` objects in front of varied backdrops, ``captions_per_image`` captions each.

    A scene depends on the seed, its split and its number alone, so that a larger data set begins with the smaller one.
    Pictures (JPEG) and ``dataset.json`` (Karpathy's form, plus each scene's geometry) are kept under ``root``.

    Args:
        name: what reports and feature files call the data set.
        root: folder of the cached data sets, one folder below it for each set of parameters.
        train_size: number of training images; ``val_size`` and ``test_size`` alike (0: no such split).
        captions_per_image: number of captions of each image; the first five are worded in five ways.
        max_objects: most objects of a scene, 1 … 4.
        image_size: side of the square pictures in pixels.
        seed: another seed gives other scenes.
    """

    def __init__(
        self,
        name: str,
        root: str | Path,
        train_size: int = 320,
        val_size: int = 50,
        test_size: int = 200,
        captions_per_image: int = 5,
        max_objects: int = MAX_THINGS,
        image_size: int = 224,
        seed: int = 0,
    ) -> None:
        self.name = name
        self.root = Path(root)
        self.sizes = {"train": train_size, "val": val_size, "test": test_size}
        self.captions_per_image = captions_per_image
        self.max_objects = max_objects
        self.image_size = image_size
        self.seed = seed
        if faults := self._range_faults():
            raise ConfigError(faults)

    def _range_faults(self) -> list[str]:
        bounds = {
            "train_size": (self.sizes["train"], 1, 1_000_000),
            "val_size": (self.sizes["val"], 0, 1_000_000),
            "test_size": (self.sizes["test"], 0, 1_000_000),
            "captions_per_image": (self.captions_per_image, 1, 100),
            "max_objects": (self.max_objects, 1, MAX_THINGS),
            "image_size": (self.image_size, 32, 2048),
        }
        return [
            f"data.{key} must lie between {low} and {high}, found {value}."
            for key, (value, low, high) in bounds.items()
            if not low <= value <= high
        ]

    @property
    def folder(self) -> Path:
        """Where the pictures and captions of these parameters are kept."""
        drawn = [GENERATOR_VERSION, self.sizes, self.captions_per_image, self.max_objects, self.image_size, self.seed]
        key = hashlib.sha256(json.dumps(drawn).encode()).hexdigest()[:10]
        return self.root / f"{sum(self.sizes.values())}-images-seed-{self.seed}-{key}"

    def missing(self) -> list[str]:
        """Nothing: what isn't there is made."""
        return []

    def load(self) -> Items:
        """Render what isn't cached yet, then read it; raises DataError where the cached files were damaged."""
        if not self.folder.is_dir():
            self._make()
        return KarpathyData(self.name, self.folder).load()

    def _make(self) -> None:
        """Fill a folder of another name and rename it at the end: half a data set never looks like a whole one."""
        making = self.root / f".making-{uuid4().hex}"
        try:
            self._write(making)
            making.rename(self.folder)
        except OSError as error:
            if not self.folder.is_dir():  # otherwise another run finished the same scenes first
                raise DataError(
                    f"The scenes can't be written below {self.root} ({error}). Free some space there, or choose "
                    "another folder: data.root=/path/to/scenes."
                ) from error
        finally:
            shutil.rmtree(making, ignore_errors=True)

    def _write(self, folder: Path) -> None:
        (folder / "images").mkdir(parents=True)
        wanted = [(split, number) for split, size in self.sizes.items() for number in range(size)]
        bar = track(wanted, f"Rendering {len(wanted)} scenes", console=Console(stderr=True))
        entries = [self._entry(folder, imgid, split, number) for imgid, (split, number) in enumerate(bar)]
        (folder / "dataset.json").write_text(json.dumps({"dataset": self.name, "images": entries}), encoding="utf-8")
        log.info("Rendered %d scenes into %s.", len(wanted), self.folder)

    def _entry(self, folder: Path, imgid: int, split: str, number: int) -> dict[str, Any]:
        """Draw one scene and describe it in Karpathy's form, with its geometry under ``scene``."""
        random = Random(f"{self.seed}/{split}/{number}")
        scene = sample_scene(random, self.max_objects)
        filename = f"{split}-{number:06d}.jpg"
        picture = draw_scene(scene, self.image_size, random)
        picture.save(folder / "images" / filename, quality=JPEG_QUALITY)
        texts = captions(scene, self.captions_per_image, random)
        sentids = [imgid * self.captions_per_image + position for position in range(len(texts))]
        sentences = [{"raw": text, "imgid": imgid, "sentid": i} for text, i in zip(texts, sentids, strict=True)]
        return {
            "filename": filename,
            "imgid": imgid,
            "split": split,
            "sentids": sentids,
            "sentences": sentences,
            "scene": asdict(scene),
        }
