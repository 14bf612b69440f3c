"""The lists of the Wikipedia benchmark."""

from pathlib import Path

import pytest

from xmodal.data.wikipedia import WikipediaData
from xmodal.errors import ConfigError, DataError


def write(folder: Path, train: list[str], test: list[str]) -> Path:
    (folder / "categories.list").write_text("art\nbiology\nmusic\n")
    (folder / "trainset_txt_img_cat.list").write_text("\n".join(train) + "\n")
    (folder / "testset_txt_img_cat.list").write_text("\n".join(test) + "\n")
    return folder


def rows(prefix: str, count: int) -> list[str]:
    return [f"{prefix}t{n}\t{prefix}i{n}\t{n % 3 + 1}" for n in range(count)]


def test_pairs_labels_and_splits(tmp_path: Path) -> None:
    items = WikipediaData("w", write(tmp_path, rows("a", 25), rows("b", 4))).load()
    assert [image.image_id for image in items.images] == [f"ai{n}" for n in range(25)] + [f"bi{n}" for n in range(4)]
    assert [caption.caption_id for caption in items.captions] == [f"at{n}" for n in range(25)] + [
        f"bt{n}" for n in range(4)
    ]
    assert items.caption_images.tolist() == list(range(29))
    assert [image.label for image in items.images[:4]] == ["art", "biology", "music", "art"]
    assert items.image_rows("val").tolist() == [9, 19]
    assert items.image_rows("test").tolist() == [25, 26, 27, 28]
    assert len(items.image_rows("train")) == 23
    assert not items.has_photos
    assert not items.has_texts


def test_no_val_split_by_option(tmp_path: Path) -> None:
    items = WikipediaData("w", write(tmp_path, rows("a", 25), rows("b", 4)), val_every=0).load()
    assert not items.has_split("val")


def test_bad_rows_are_all_named(tmp_path: Path) -> None:
    train = [*rows("a", 2), "only two\tcells", "t\ti\t4", "t\ti\tart", "other\tai1\t1"]
    with pytest.raises(DataError) as caught:
        WikipediaData("w", write(tmp_path, train, ["at0\tnew\t1"])).load()
    message = str(caught.value)
    assert "category 1 … 3" in message
    assert "3 found: trainset_txt_img_cat.list row 3" in message
    assert "Image ids used more than once: 1 found: ai1" in message
    assert "Text ids used more than once: 1 found: at0" in message


def test_absent_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "categories.list").write_text("art\n")
    source = WikipediaData("w", tmp_path)
    assert "trainset_txt_img_cat.list, testset_txt_img_cat.list" in source.missing()[0]
    with pytest.raises(DataError, match=r"data\.root="):
        source.load()


@pytest.mark.parametrize("value", [1, -2])
def test_val_every_has_a_range(value: int) -> None:
    with pytest.raises(ConfigError, match=f"found {value}"):
        WikipediaData("w", "anywhere", val_every=value)


def test_real_wikipedia(real_data: Path) -> None:
    folder = real_data / "wikipedia"
    if not folder.is_dir():
        pytest.skip("no wikipedia/ beside flickr8k/")
    items = WikipediaData("wikipedia", folder).load()
    assert len(items.images) == len(items.captions) == 2173 + 693
    assert [len(items.image_rows(role)) for role in ("train", "val", "test")] == [2173 - 217, 217, 693]
    assert len({image.label for image in items.images}) == 10
    assert items.images[0].image_id == "ceb47321a83dd824cec2d5d3f2034765"
    assert items.images[0].label == "media"
