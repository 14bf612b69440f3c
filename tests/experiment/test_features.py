"""Roles of splits, and features in the order of the items."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from xmodal.data.items import Caption, ImageItem, Items
from xmodal.errors import ConfigError, DataError, WeightsError
from xmodal.experiment.features import features_of, load_dataset
from xmodal.experiment.parts import build_parts
from xmodal.experiment.run import build_datamodule


def dataset(workshop, *overrides):
    cfg = workshop.compose("features", *overrides)
    return load_dataset(cfg, build_parts(cfg))


def test_hold_out_moves_the_last_training_images_to_test(workshop):
    whole = dataset(workshop).used
    held = dataset(workshop, "data.splits.test=[absent]", "data.holdout=5").used
    assert held.image_rows("train").tolist() == whole.image_rows("train")[:-5].tolist()
    assert held.image_rows("test").tolist() == whole.image_rows("train")[-5:].tolist()
    assert held.image_rows("val").tolist() == whole.image_rows("val").tolist()
    assert len(held.caption_rows("test")) == 25


def test_hold_out_beside_a_test_split_is_an_error(workshop):
    with pytest.raises(ConfigError, match=r"data\.holdout=5 makes a test split.*already has one of 14 images"):
        dataset(workshop, "data.holdout=5")


def test_limit_keeps_the_first_images_of_each_split(workshop):
    found = dataset(workshop, "data.limit=3")
    assert [len(found.used.image_rows(role)) for role in ("train", "val", "test")] == [3, 3, 3]
    assert len(found.full.images) == 66


def test_split_without_captions_is_an_error(workshop):
    class Source:
        def load(self) -> Items:
            images = tuple(ImageItem(i, split) for i, split in enumerate(("train", "val", "test")))
            return Items("bare", images, (Caption(0, 0, "a dog"), Caption(1, 1, "a cat")))

    cfg = workshop.compose("features")
    parts = build_parts(cfg)
    bare = replace(parts, source=Source())
    with pytest.raises(DataError, match=r"images of bare for test have no captions.*data\.splits\.test="):
        load_dataset(cfg, bare)


def test_relevance_by_class_needs_labels_before_anything_is_encoded(workshop):
    with pytest.raises(DataError, match=r"66 of the 66 images of scenes have none.*data\.relevance=instance"):
        dataset(workshop, "data.relevance=class")


def test_relevance_and_labels_reach_the_loaders(workshop):
    cfg = workshop.compose("features", "data.relevance=class", "data.limit=5")
    parts = build_parts(cfg)
    scenes = parts.source.load()

    class Labelled:
        def load(self) -> Items:
            return replace(scenes, images=tuple(replace(im, label=i % 2) for i, im in enumerate(scenes.images)))

    labelled = replace(parts, source=Labelled())
    found = build_datamodule(cfg, labelled, load_dataset(cfg, labelled))
    assert found.relevance == "class"
    assert found.labels.tolist() == [image.label for image in found.items.images]
    assert len(found.labels) == 15
    cfg = workshop.compose("features", "data.limit=5")
    assert build_datamodule(cfg, parts, load_dataset(cfg, parts)).labels is None


def test_text_features_of_a_limited_run_come_from_its_own_training_captions(workshop, caplog):
    caplog.set_level("INFO")
    cfg = workshop.compose("features", "data.limit=3", "features.store=false")
    parts = build_parts(cfg)
    found = load_dataset(cfg, parts)
    features = features_of(cfg, parts, found, ["text"])["text"]
    assert len(features) == len(found.used.captions) == 45
    name = f"text features of {cfg.data.name}"
    assert f"Encoding {name} into memory, storing nothing: 45 captions" in caplog.text
    assert f"{name}: 45 of 45," in caplog.text
    encoder = parts.text_encoder
    for row in (0, 17, 44):
        (expected,) = encoder.encode([encoder.preprocess(found.used.captions[row].text)])
        np.testing.assert_allclose(features[row], expected.numpy())


def test_stored_text_features_are_those_in_memory(workshop):
    rows = {}
    for store in ("true", "false"):
        cfg = workshop.compose("features", f"features.store={store}", "features.dtype=float32")
        parts = build_parts(cfg)
        rows[store] = features_of(cfg, parts, load_dataset(cfg, parts), ["text"])["text"]
    np.testing.assert_array_equal(rows["true"].vectors(), rows["false"].vectors())
    np.testing.assert_array_equal(rows["true"].offsets, rows["false"].offsets)


def test_weights_of_both_encoders_are_looked_at_before_either_encodes(workshop, tmp_path):
    torch.save({"not": torch.zeros(1)}, tmp_path / "other.pth")
    weights = f"image_encoder.weights={tmp_path / 'other.pth'}"
    cfg = workshop.compose("features", "image_encoder=vgg", weights, f"paths.features_dir={tmp_path / 'features'}")
    parts = build_parts(cfg)
    with pytest.raises(WeightsError, match=r"other\.pth"):
        features_of(cfg, parts, load_dataset(cfg, parts), ["text", "image"])
    assert not list(tmp_path.rglob("*.h5*"))
