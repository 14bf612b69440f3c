"""Photos that are decoded whenever they are needed: what a network that is trained from pixels learns from."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from xmodal.data.images import read_image
from xmodal.errors import ConfigError, FeatureError
from xmodal.types import RaggedFeatures

_ASPECTS = (3 / 4, 4 / 3)  # width by height of a cut-out, as multiples of the photo's own


@dataclass(frozen=True)
class Augmentation:
    """A random cut-out of the photo, mirrored or not, drawn anew each time (Szegedy et al., 2015, section 6).

    Draws come from torch's generator: in a loader's worker from that worker's own, which torch seeds from the run's.
    So a run of one seed and one ``data.num_workers`` sees the same pictures whenever it is repeated; one that is
    resumed sees others than it would have seen uninterrupted.

    Args:
        min_scale: least area of the cut-out as a share of the photo's, in (0, 1]; 1 cuts nothing off.
        flip: probability of a mirror image, in [0, 1].

    Raises:
        ConfigError: a value out of range.
    """

    min_scale: float = 0.6
    flip: float = 0.5

    def __post_init__(self) -> None:
        faults = []
        if not 0 < self.min_scale <= 1:
            faults.append(f"augmentation.min_scale must lie in (0, 1], found {self.min_scale}.")
        if not 0 <= self.flip <= 1:
            faults.append(f"augmentation.flip must lie in [0, 1], found {self.flip}.")
        if faults:
            raise ConfigError(faults)

    def __call__(self, photo: Image) -> Image:
        if self.min_scale < 1:
            photo = F.crop(photo, *self._box(photo))
        return F.horizontal_flip(photo) if torch.rand(()) < self.flip else photo

    def _box(self, photo: Image) -> list[int]:
        """Top, left, height and width of the cut-out."""
        ratios = [aspect * photo.width / photo.height for aspect in _ASPECTS]
        draw = RandomResizedCrop(1, scale=(self.min_scale, 1.0), ratio=ratios).make_params([photo])
        return [draw[name] for name in ("top", "left", "height", "width")]


@dataclass(frozen=True)
class LiveImages:
    """N photos as sets of one vector, all their pixel values, made in ``select``: a `FeatureSource` without memory.

    Args:
        paths: the photo files, known to be readable.
        preprocess: an encoder's: PIL image → (3, H, W), the same H and W for all.
        width: 3·H·W.
        augment: applied to photos before ``preprocess``, in training alone.
        is_training: whether it is applied; `for_training` sets it.
    """

    paths: Sequence[Path]
    preprocess: Callable[[Image], Tensor]
    width: int
    augment: Augmentation | None = None
    is_training: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def feature_dim(self) -> int:
        return self.width

    @property
    def lengths(self) -> np.ndarray:
        return np.ones(len(self.paths), dtype=np.int64)

    def for_training(self) -> "LiveImages":
        """The same photos, augmented."""
        return replace(self, is_training=True)

    def select(self, rows: np.ndarray) -> RaggedFeatures:
        """The photos of ``rows``, decoded now; a row that occurs twice is augmented twice.

        Raises:
            DataError: a photo that was readable before is not any more.
            FeatureError: ``preprocess`` gives another number of values than ``width``.
        """
        values = np.empty((len(rows), self.width), dtype=np.float32)
        for place, row in enumerate(rows):
            values[place] = self._pixels(self.paths[int(row)])
        return RaggedFeatures(values, np.arange(len(rows) + 1, dtype=np.int64))

    def _pixels(self, path: Path) -> np.ndarray:
        photo = read_image(path)
        if self.is_training and self.augment is not None:
            photo = self.augment(photo)
        made = self.preprocess(photo)
        if math.prod(made.shape) != self.width:
            raise FeatureError(
                f"{path} became {tuple(made.shape)}, {math.prod(made.shape)} values, where {self.width} were expected: "
                "an encoder that is trained from pixels has to bring all photos to one size."
            )
        return made.flatten().numpy()
