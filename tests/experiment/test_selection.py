"""Damaged photos: all named at once, or left out of the run and of every later figure of it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from xmodal.config.command_line import compose
from xmodal.config.evaluation import EvaluationOptions
from xmodal.data.items import Caption, ImageItem, Items
from xmodal.errors import ConfigError, DataError
from xmodal.experiment.embedded_run import embed_run
from xmodal.experiment.evaluation import evaluate
from xmodal.experiment.features import load_dataset
from xmodal.experiment.parts import build_parts
from xmodal.experiment.run import Experiment
from xmodal.experiment.selection import select_items, with_exclusions, write_excluded
from xmodal.features.precomputed import PrecomputedFeatures

SIZES = {"train": 8, "val": 4, "test": 5}


def config(folder: Path, *overrides: str):
    """Scenes and a small Faster R-CNN, everything below ``folder``."""
    fixed = [f"data.{split}_size={size}" for split, size in SIZES.items()]
    fixed += ["data.image_size=32", "image_encoder=frcnn", "image_encoder.min_size=32", "image_encoder.max_size=32"]
    fixed += ["text_encoder.vector_size=8", "text_encoder.epochs=1", "text_encoder.bucket=100", "embedding_dim=8"]
    fixed += ["trainer=cpu", "trainer.max_epochs=1", "trainer.enable_progress_bar=false", "logger=none", "bootstrap=0"]
    return compose([*fixed, f"paths.output_dir={folder}", *overrides])


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rendered")
    cfg = config(folder)
    build_parts(cfg).source.load()
    return folder / "scenes"


@pytest.fixture
def folder(rendered: Path, tmp_path: Path) -> Path:
    """An output folder with the scenes in it, free to be damaged."""
    shutil.copytree(rendered, tmp_path / "scenes")
    return tmp_path


def items_of(folder: Path) -> Items:
    return build_parts(config(folder)).source.load()


def photo(items: Items, split: str, number: int = 0) -> tuple[int | str, Path]:
    image = [image for image in items.images if image.split == split][number]
    assert image.path is not None
    return image.image_id, image.path


@pytest.mark.slow
def test_a_run_without_damaged_photos_and_every_later_figure_of_it(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = items_of(folder)
    (cut_id, cut), (lost_id, lost) = photo(items, "train", 3), photo(items, "test", 1)
    whole = {path: path.read_bytes() for path in (cut, lost)}
    cut.write_bytes(whole[cut][:-300])
    lost.unlink()

    with pytest.raises(DataError, match="2 of 17 images can't be used") as caught:
        Experiment.build(config(folder))
    assert all(name in str(caught.value) for name in (cut.name, lost.name, "data.on_error=skip"))

    experiment = Experiment.build(config(folder, "data.on_error=skip"))
    assert "Left out of scenes (17 images, 85 captions): 2 images, 10 captions." in caplog.text
    kept = [image.image_id for image in items.images if image.image_id not in (cut_id, lost_id)]
    assert [image.image_id for image in experiment.datamodule.items.images] == kept
    assert len(experiment.datamodule.text_features) == 5 * len(kept)
    excluded = json.loads((experiment.folder / "excluded.json").read_text())
    assert [(one["id"], one["path"]) for one in excluded] == [(cut_id, str(cut)), (lost_id, str(lost))]
    assert "truncated" in excluded[0]["reason"]
    assert excluded[1]["reason"] == "doesn't exist"
    saved = OmegaConf.load(experiment.folder / "config.yaml").data
    assert list(saved.exclude) == [cut_id, lost_id]
    assert saved.on_error == "error"
    experiment.fit()
    experiment.test()
    metrics = {name: value for name, value in experiment.metrics.items() if name.startswith("test/")}

    def later() -> tuple[dict[str, float], str]:
        options = EvaluationOptions(bootstrap=0)
        embedded = embed_run(experiment.folder, options, [], torch.device("cpu"))
        return evaluate(embedded, options).figures, embedded.description

    lost_now = later()
    for path, content in whole.items():
        path.write_bytes(content)
    assert later() == lost_now, "repaired photos don't come back into the figures"
    last = f"ckpt_path={experiment.folder / 'checkpoints' / 'last.ckpt'}"
    with caplog.at_level("INFO"):
        resumed = Experiment.build(config(folder, "data.on_error=skip", last))
    assert resumed.datamodule.items == experiment.datamodule.items, "nor into a run that goes on"
    assert "data.exclude has the 2 images that its run left out, and data.on_error=skip leaves out no" in caplog.text
    figures, description = lost_now
    assert figures == {name: metrics[name] for name in figures}
    assert "4 images, 20 captions, 2 images of the data set left out" in description

    (_, other) = photo(items, "val")
    other.write_bytes(b"")
    with pytest.raises(DataError, match=rf"1 of 15 images.*\n.*is empty: 1 found: {other}"):
        later()


def test_captions_of_damaged_photos_go_where_only_text_is_encoded(folder: Path) -> None:
    _, path = photo(items_of(folder), "train")
    path.write_bytes(b"")
    cfg = config(folder, "data.on_error=skip")
    both = load_dataset(cfg, build_parts(cfg))
    text = load_dataset(cfg, build_parts(cfg, ["text"]), ["text"])
    assert text.used == both.used
    assert len(text.used.images) == 16
    strict = config(folder)
    assert len(load_dataset(strict, build_parts(strict, ["text"]), ["text"]).used.images) == 17


def test_given_features_keep_their_rows_and_need_no_photo(folder: Path) -> None:
    items = items_of(folder)
    gone, path = photo(items, "train", 2)
    path.unlink()
    np.save(folder / "given.npy", np.arange(len(items.images), dtype=np.float32)[:, None].repeat(3, axis=1))
    given = PrecomputedFeatures(folder / "given.npy", "image")
    cfg = config(folder, "data.on_error=skip", f"data.exclude=[{photo(items, 'val')[0]}]")
    found = load_dataset(cfg, replace(build_parts(cfg), image_encoder=given))
    rows = [row for row, image in enumerate(items.images) if image.image_id != photo(items, "val")[0]]
    assert given.load(found.used, found.full).values[:, 0].tolist() == rows
    assert gone in [image.image_id for image in found.used.images]
    assert found.digests == {}
    assert [one.reason for one in found.excluded] == ["named in data.exclude"]


def toy(train: int = 4, val: int = 2) -> Items:
    images = tuple(ImageItem(row, "train" if row < train else "val") for row in range(train + val))
    return Items("toy", images, tuple(Caption(row, row, "a dog") for row in range(train + val)))


def selected(items: Items, tmp_path: Path, **data: object):
    cfg = OmegaConf.create({"data": data, "paths": {"cache_dir": str(tmp_path)}})
    return select_items(cfg, items, items, reads_photos=False)


@pytest.mark.parametrize("typed", [[1, 4], ["1", "4"], [4, 1, 1]])
def test_ids_are_left_out_however_they_are_typed(tmp_path: Path, typed: list[object]) -> None:
    found = selected(toy(), tmp_path, exclude=typed)
    assert [image.image_id for image in found.items.images] == [0, 2, 3, 5]
    assert [one.image_id for one in found.excluded] == [1, 4]


def test_an_id_that_no_image_has_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"names 1 of 2 images that toy does not have: 1 found: 17\..*like 0, 1, 2"):
        selected(toy(), tmp_path, exclude=[3, 17])


def test_half_of_a_split_must_stay(tmp_path: Path) -> None:
    assert len(selected(toy(), tmp_path, exclude=[0, 1, 4]).items.images) == 3
    with pytest.raises(DataError, match=r"3 of 4 of train, 2 of 2 of val\. At least half.*\n.*named in data.exclude"):
        selected(toy(), tmp_path, exclude=[0, 1, 2, 4, 5])


def test_a_folder_with_few_of_the_photos_is_no_data_set(tmp_path: Path) -> None:
    items = toy(train=5)
    images = tuple(replace(image, path=tmp_path / f"{image.image_id}.jpg") for image in items.images)
    cfg = OmegaConf.create({"data": {"on_error": "skip"}, "paths": {"cache_dir": str(tmp_path)}})
    everything = replace(items, images=images)
    with pytest.raises(DataError, match=r"5 of 5 of train, 2 of 2 of val.*\n  - doesn't exist: 7 found"):
        select_items(cfg, everything, everything, reads_photos=True)


def test_what_a_run_remembers(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"data": {"on_error": "skip", "exclude": [9]}})
    assert with_exclusions(cfg, ()).data == {"on_error": "error", "exclude": [9]}
    assert with_exclusions(OmegaConf.create({"data": {}}), ()).data == {"on_error": "error", "exclude": []}
    assert cfg.data.on_error == "skip"
    write_excluded(tmp_path, ())
    assert list(tmp_path.iterdir()) == []
