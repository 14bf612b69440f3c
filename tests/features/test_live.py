"""Photos decoded on demand: the pixels an encoder would see, augmented in training alone."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from xmodal.errors import ConfigError, DataError, FeatureError
from xmodal.features.live import Augmentation, LiveImages
from xmodal.types import FeatureSource

SIDE = 6


def as_tensor(photo: Image.Image) -> torch.Tensor:
    small = photo.resize((SIDE, SIDE))
    return torch.from_numpy(np.asarray(small, dtype=np.float32)).permute(2, 0, 1) / 255


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{i}.png" for i in range(4)]
    for i, file in enumerate(files):
        Image.fromarray(rng.integers(0, 255, (20 + i, 31, 3), dtype=np.uint8)).save(file)
    return files


def live(paths: list[Path], augment: Augmentation | None = None) -> LiveImages:
    return LiveImages(paths, as_tensor, 3 * SIDE * SIDE, augment)


def test_a_photo_is_one_vector_of_all_its_pixels(paths: list[Path]) -> None:
    source = live(paths)
    assert isinstance(source, FeatureSource)
    assert (len(source), source.feature_dim, source.lengths.tolist()) == (4, 108, [1, 1, 1, 1])
    found = source.select(np.array([2, 0, 2]))
    assert found.offsets.tolist() == [0, 1, 2, 3]
    for place, row in enumerate((2, 0, 2)):
        expected = as_tensor(Image.open(paths[row]).convert("RGB"))
        np.testing.assert_array_equal(found[place], expected.flatten().numpy()[None])


def test_only_training_photos_are_augmented(paths: list[Path]) -> None:
    source, rows = live(paths, Augmentation(min_scale=0.5)), np.array([1, 1, 1])
    still = source.select(rows).values
    assert (still == still[0]).all()
    torch.manual_seed(0)
    moving = source.for_training().select(rows).values
    assert not np.allclose(moving[0], moving[1])
    assert not np.allclose(moving[1], moving[2])
    torch.manual_seed(0)
    np.testing.assert_array_equal(source.for_training().select(rows).values, moving)
    assert (source.select(rows).values == still).all()


def test_augmentation_cuts_out_at_least_the_least_share_and_keeps_the_shape_in_bounds() -> None:
    torch.manual_seed(0)
    photo = Image.new("RGB", (90, 60))
    sizes = [Augmentation(min_scale=0.3, flip=0.0)(photo).size for _ in range(200)]
    shares = [width * height / (90 * 60) for width, height in sizes]
    assert 0.27 < min(shares) < 0.4  # sizes are rounded to pixels
    assert 0.9 < max(shares) <= 1
    assert all(1.05 < width / height < 2.1 for width, height in sizes)  # of 1.5, times 3/4 … 4/3


def test_a_flip_is_the_mirror_image_as_often_as_said() -> None:
    torch.manual_seed(0)
    photo = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    mirrored = np.asarray(photo)[:, ::-1]
    found = [np.asarray(Augmentation(min_scale=1.0, flip=0.25)(photo)) for _ in range(400)]
    share = sum(np.array_equal(picture, mirrored) for picture in found) / 400
    assert 0.17 < share < 0.33
    assert all(np.array_equal(p, mirrored) or np.array_equal(p, np.asarray(photo)) for p in found)


def test_workers_take_it_along_and_draw_differently(paths: list[Path]) -> None:
    source = pickle.loads(pickle.dumps(live(paths, Augmentation(min_scale=0.3)))).for_training()

    def epoch() -> torch.Tensor:
        torch.manual_seed(3)
        chunks = [np.array([0]), np.array([0])]
        loader = DataLoader(chunks, 1, num_workers=2, collate_fn=lambda rows: source.select(rows[0]).values)
        return torch.cat([torch.from_numpy(values) for values in loader])

    first = epoch()
    assert not torch.equal(first[0], first[1])
    torch.testing.assert_close(epoch(), first, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_scale": 0.0}, r"augmentation\.min_scale must lie in \(0, 1\], found 0\.0"),
        ({"min_scale": 1.5}, r"augmentation\.min_scale .* found 1\.5"),
        ({"flip": -0.5}, r"augmentation\.flip must lie in \[0, 1\], found -0\.5"),
        ({"flip": float("nan")}, r"augmentation\.flip must lie in \[0, 1\], found nan"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Augmentation(**settings)


def test_photos_of_another_size_than_expected_are_an_error(paths: list[Path]) -> None:
    source = LiveImages(paths, as_tensor, 300)
    with pytest.raises(FeatureError, match=r"0\.png became \(3, 6, 6\), 108 values, where 300 were expected"):
        source.select(np.array([0]))


def test_a_photo_that_is_gone_by_now_is_named(paths: list[Path]) -> None:
    paths[3].unlink()
    with pytest.raises(DataError, match=r"3\.png doesn't exist"):
        live(paths).select(np.array([3]))
