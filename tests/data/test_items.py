"""Splits, limits and hold-outs against plain loops over small drawn data sets."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodal.data.items import Caption, ImageItem, Items
from xmodal.errors import ConfigError, DataError


@st.composite
def drawn_items(draw: st.DrawFn, splits: tuple[str, ...] = ("train", "val", "test", "restval", "other")) -> Items:
    names = draw(st.lists(st.sampled_from(splits), min_size=1, max_size=12))
    images = tuple(ImageItem(100 + row, split, label=row % 3) for row, split in enumerate(names))
    owners = draw(st.lists(st.integers(0, len(images) - 1), max_size=30))
    captions = tuple(Caption(f"c{number}", owner, f"text {number}") for number, owner in enumerate(owners))
    return Items("drawn", images, captions, {"train": ("train", "restval"), "val": ("val",), "test": ("test",)})


@given(drawn_items())
def test_rows_of_a_role_are_those_that_a_loop_finds(items: Items) -> None:
    for role, splits in items.splits.items():
        images = [row for row, image in enumerate(items.images) if image.split in splits]
        captions = [row for row, caption in enumerate(items.captions) if items.images[caption.image].split in splits]
        assert items.image_rows(role).tolist() == images
        assert items.caption_rows(role).tolist() == captions
        assert items.has_split(role) == bool(images)
        assert items.image_rows(role).dtype == items.caption_rows(role).dtype == np.int64


@given(drawn_items(), st.integers(1, 5))
def test_limited_keeps_the_first_of_each_split_with_their_captions(items: Items, n: int) -> None:
    limited = items.limited(n)
    kept = []
    for split in {image.split for image in items.images}:
        kept += [image for image in items.images if image.split == split][:n]
    assert set(limited.images) == set(kept)
    assert list(limited.images) == [image for image in items.images if image in kept]
    before = [(c.caption_id, items.images[c.image].image_id) for c in items.captions if items.images[c.image] in kept]
    assert [(c.caption_id, limited.images[c.image].image_id) for c in limited.captions] == before
    assert limited.caption_images.tolist() == [caption.image for caption in limited.captions]
    assert limited.limited(n) == limited


@given(drawn_items(), st.sets(st.integers(98, 112)))
def test_without_leaves_out_images_with_their_captions(items: Items, gone: set[int]) -> None:
    found = items.without(gone)
    kept = [image for image in items.images if image.image_id not in gone]
    assert list(found.images) == kept
    before = [(c.caption_id, items.images[c.image].image_id) for c in items.captions if items.images[c.image] in kept]
    assert [(c.caption_id, found.images[c.image].image_id) for c in found.captions] == before
    assert found.splits == items.splits
    assert items.without(str(image_id) for image_id in gone) == found
    assert found.without(gone) is found


@given(drawn_items(splits=("train", "val")), st.integers(0, 12))
def test_holdout_moves_the_last_training_images(items: Items, n: int) -> None:
    train = items.image_rows("train").tolist()
    if n >= max(1, len(train)):
        with pytest.raises(ConfigError, match=f"data.holdout={n} must leave images .* has {len(train)} training"):
            items.with_holdout(n)
        return
    held = items.with_holdout(n)
    assert held.image_rows("train").tolist() == train[: len(train) - n]
    assert held.image_rows("test").tolist() == train[len(train) - n :]
    assert held.image_rows("val").tolist() == items.image_rows("val").tolist()
    assert held.captions == items.captions


def simple(*splits: str) -> Items:
    images = tuple(ImageItem(row, split) for row, split in enumerate(splits))
    return Items("small", images, tuple(Caption(row, row, "a dog") for row in range(len(splits))))


def test_holdout_is_refused_where_there_is_a_test_split() -> None:
    with pytest.raises(ConfigError, match=r"data.holdout=1 .* small already has one of 2 images"):
        simple("train", "train", "test", "test").with_holdout(1)


@pytest.mark.parametrize("n", [0, -3])
def test_a_limit_below_one_is_refused(n: int) -> None:
    with pytest.raises(ConfigError, match=rf"at least 1 .* found {n}"):
        simple("train").limited(n)


def test_a_negative_holdout_is_refused() -> None:
    with pytest.raises(ConfigError, match="found -1"):
        simple("train", "train").with_holdout(-1)


def test_splits_can_play_other_roles() -> None:
    items = simple("train", "restval", "dev").with_splits({"train": ["train", "restval"], "val": ["dev"], "test": []})
    assert items.image_rows("train").tolist() == [0, 1]
    assert items.image_rows("val").tolist() == [2]
    assert not items.has_split("test")


def test_unknown_roles_are_named() -> None:
    with pytest.raises(ConfigError, match="'tset'"):
        simple("train").with_splits({"tset": ["train"]})
    with pytest.raises(ConfigError, match="'valid'"):
        simple("train").image_rows("valid")


def test_an_absent_split_names_the_splits_found() -> None:
    items = simple("train", "train", "dev")
    items.require("train")
    with pytest.raises(
        DataError, match=r"val \(data.splits.val=\['val'\]\).* 'train' \(2 images\), 'dev' \(1 images\)"
    ):
        items.require("train", "val")


def test_photos_and_texts() -> None:
    items = simple("train", "val")
    assert items.has_texts
    assert not items.has_photos
    with_photo = replace(items.images[0], path=Path("a.jpg"))
    assert not replace(items, images=(with_photo, items.images[1])).has_photos
    assert replace(items, images=(with_photo,) * 2).has_photos
    assert not replace(items, captions=(Caption(0, 0, ""),)).has_texts


def test_content_follows_the_images_and_captions_that_are_named() -> None:
    images = (ImageItem(7, "train", None), ImageItem(8, "test", None))
    items = Items("one", images, (Caption(1, 0, "a dog"), Caption(2, 1, "a cat")))
    both, first = np.array([0, 1]), np.array([0])
    found = items.content(both, both)
    assert found == replace(items, name="two").content(both, both)
    moved = replace(items, images=(images[0], ImageItem(8, "val", None)))
    assert found == moved.content(both, both)
    other = replace(items, captions=(items.captions[0], Caption(2, 1, "a cow")))
    assert found not in {items.content(first, both), items.content(both, first), other.content(both, both)}
    assert items.content(first, first) == other.content(first, first)


def test_caption_fingerprint_follows_ids_texts_and_order_only() -> None:
    items = simple("train", "val")
    first, second = items.captions
    others = [
        (replace(first, text="a cat"), second),
        (replace(first, caption_id="0"), second),
        (replace(first, image=1), second),
        (second, first),
        (first,),
    ]
    prints = [replace(items, captions=captions).caption_fingerprint() for captions in others]
    assert len({items.caption_fingerprint(), *prints}) == len(others) + 1
    moved = tuple(replace(image, split="test") for image in items.images)
    assert replace(items, images=moved).caption_fingerprint() == items.caption_fingerprint()


def test_image_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    def fingerprint(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return Items("one", (ImageItem(0, "train", tmp_path / name),), ()).image_fingerprint()

    assert fingerprint("a", b"same") == fingerprint("b", b"same")
    assert fingerprint("a", b"same") != fingerprint("a", b"else")
    given_digest = Items("one", (ImageItem(0, "train", tmp_path / "a"),), ())
    assert given_digest.image_fingerprint({tmp_path / "a": "0" * 64}) != given_digest.image_fingerprint()
    with pytest.raises(DataError, match=r"gone\.jpg"):
        Items("one", (ImageItem(0, "train", tmp_path / "gone.jpg"),), ()).image_fingerprint()


def test_ids_and_labels_are_whole_numbers_or_else_strings() -> None:
    images = tuple(ImageItem(100 + row, "train", label=row % 3) for row in range(4))
    items = Items("some", images, ())
    assert (items.image_ids.dtype, items.image_ids.tolist()) == (np.int64, [100, 101, 102, 103])
    assert items.labels.tolist() == [0, 1, 2, 0]
    mixed = replace(items, images=(replace(images[0], image_id="x7", label="art"), replace(images[1], image_id=2**70)))
    assert mixed.image_ids.tolist() == ["x7", str(2**70)]
    assert mixed.labels.tolist() == ["art", "1"]


def test_labels_of_images_without_one_are_an_error() -> None:
    bare = Items("some", (ImageItem(7, "train", label="art"), ImageItem(8, "train")), ())
    with pytest.raises(DataError, match=r"1 of the 2 images of some have none, the first of them 8.*column label"):
        bare.labels  # noqa: B018
