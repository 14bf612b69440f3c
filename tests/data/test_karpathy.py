"""Karpathy's JSON, clean, dirty and broken, and the real files."""

import gzip
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from xmodal.data.items import Items
from xmodal.data.karpathy import KarpathyData
from xmodal.errors import ConfigError, DataError


def entry(filename: str, *texts: str, split: str = "train", **more: Any) -> dict[str, Any]:
    sentences = [{"raw": text, "tokens": text.lower().split()} for text in texts]
    return {"filename": filename, "split": split, "sentences": sentences, **more}


def write(folder: Path, entries: list[Any], file: str = "dataset.json") -> Path:
    text = json.dumps({"dataset": "x", "images": entries})
    path = folder / file
    path.write_bytes(gzip.compress(text.encode()) if file.endswith(".gz") else text.encode())
    return folder


def load(folder: Path, entries: list[Any], **options: Any) -> Items:
    return KarpathyData("x", write(folder, entries), **options).load()


@pytest.mark.parametrize("file", ["dataset.json", "dataset.json.gz"])
def test_ids_splits_and_ragged_captions(tmp_path: Path, file: str) -> None:
    entries = [
        entry(f"{n}.jpg", *[f"caption {k} of {n}" for k in range(n)], split=("train", "val")[n % 2])
        for n in range(1, 8)
    ]
    items = KarpathyData("x", write(tmp_path, entries, file)).load()
    assert [image.image_id for image in items.images] == list(range(7))
    assert [image.split for image in items.images] == ["val", "train", "val", "train", "val", "train", "val"]
    expected = [(n - 1, f"caption {k} of {n}") for n in range(1, 8) for k in range(n)]
    assert [(caption.image, caption.text) for caption in items.captions] == expected
    assert [caption.caption_id for caption in items.captions] == list(range(28))


def test_given_ids_are_kept(tmp_path: Path) -> None:
    first = entry("a.jpg", "a dog", imgid=7)
    first["sentences"][0]["sentid"] = "s-3"
    items = load(tmp_path, [first, entry("b.jpg", "a cat", imgid="nine")])
    assert [image.image_id for image in items.images] == [7, "nine"]
    assert [caption.caption_id for caption in items.captions] == ["s-3", 1]


def test_coco_folders_and_restval(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    entries = [
        entry("a.jpg", "a dog", filepath="train2014"),
        entry("b.jpg", "a cat", filepath="val2014", split="restval"),
        entry("c.jpg", "a cow", split="val"),
    ]
    items = load(tmp_path, entries).with_splits({"train": ["train", "restval"], "val": ["val"], "test": ["test"]})
    folder = tmp_path / "images"
    paths = [image.path for image in items.images]
    assert paths == [folder / "train2014" / "a.jpg", folder / "val2014" / "b.jpg", folder / "c.jpg"]
    assert items.image_rows("train").tolist() == [0, 1]
    assert items.has_photos


def test_without_a_folder_of_photos_the_captions_stand_alone(tmp_path: Path) -> None:
    items = load(tmp_path, [entry("a.jpg", "a dog")])
    assert not items.has_photos
    assert items.images[0].path is None


@pytest.mark.parametrize(
    ("sentence", "text"),
    [
        ({"raw": "  A Dog \n runs . ", "tokens": []}, "A Dog runs ."),
        ({"raw": "A DOG", "tokens": ["", "a", "", "dog"]}, "A DOG"),
        ({"raw": "", "tokens": ["a", "", "dog"]}, "a dog"),
        ({"raw": None, "tokens": ["a", None, "dog", 3]}, "a dog 3"),
        ({"raw": " . ", "tokens": ["dog"]}, "dog"),
        ({"tokens": ["dog"]}, "dog"),
        ({"raw": "un chien à l’eau"}, "un chien à l’eau"),
    ],
)
def test_dirty_captions_pass(tmp_path: Path, sentence: dict[str, Any], text: str) -> None:
    repeated = [sentence, dict(sentence)]
    items = load(tmp_path, [{"filename": "a.jpg", "split": "train", "sentences": repeated}])
    assert [caption.text for caption in items.captions] == [text, text]


def test_captions_without_a_word_are_named_or_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entries = [entry("a.jpg", "a dog", " .,! "), entry("b.jpg", "", "a cat")]
    with pytest.raises(
        DataError, match=r"without a single word .*on_empty_caption=drop.*: 2 found: a.jpg \(sentid 1\), b"
    ):
        load(tmp_path, entries)
    with caplog.at_level(logging.WARNING):
        items = load(tmp_path, entries, on_empty_caption="drop")
    assert [(caption.image, caption.text, caption.caption_id) for caption in items.captions] == [
        (0, "a dog", 0),
        (1, "a cat", 3),
    ]
    assert "dropped 2 captions" in caplog.text


def test_images_without_captions_are_named_or_kept(tmp_path: Path) -> None:
    entries = [entry("a.jpg", "a dog"), entry("b.jpg"), entry("c.jpg", "...")]
    with pytest.raises(DataError, match=r"Images without a caption .*: 2 found: b.jpg, c.jpg"):
        load(tmp_path, entries, on_empty_caption="drop")
    kept = load(tmp_path, entries, on_empty_caption="drop", on_captionless="keep")
    assert (len(kept.images), len(kept.captions)) == (3, 1)


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    twice = entry("d.jpg", "a", "b")
    for sentence in twice["sentences"]:
        sentence["sentid"] = 50
    no_split = entry("e.jpg", "x")
    del no_split["split"]
    no_name = entry("", "x")
    entries = [
        entry("a.jpg", "a dog", imgid=1),
        entry("b.jpg", "a cat", imgid=1),
        entry("c.jpg", "a cow", imgid=2.5),
        {**entry("g.jpg"), "sentences": "a dog"},
        {**entry("h.jpg"), "sentences": ["a dog"]},
        *(twice, no_split, no_name, "nonsense"),
    ]
    with pytest.raises(DataError) as caught:
        load(tmp_path, entries)
    message = str(caught.value)
    for part in (
        "'imgid' used more than once: 1 found: 1 (b.jpg)",
        "'sentid' used more than once: 1 found: 50 (d.jpg)",
        "2.5 (c.jpg)",
        "'sentences' is no list: 1 found: g.jpg",
        "a caption that is no object: 1 found: h.jpg",
        "without a 'split'",
        "e.jpg",
        "without a 'filename'",
        "no objects: 1 found: position 8",
    ):
        assert part in message
    assert str(tmp_path / "dataset.json") in message


def test_long_lists_of_faults_are_cut_with_a_count(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"30 found: 0.jpg, .*4.jpg, … \(25 more\)"):
        load(tmp_path, [entry(f"{n}.jpg") for n in range(30)])


def test_missing_says_what_to_type(tmp_path: Path) -> None:
    absent = KarpathyData("x", tmp_path / "nowhere")
    assert len(absent.missing()) == 1
    assert "data.root=" in absent.missing()[0]
    with pytest.raises(DataError, match=r"nowhere"):
        absent.load()
    (tmp_path / "captions.json").write_text("{}")
    found = KarpathyData("x", tmp_path).missing()
    assert "dataset.json or dataset.json.gz" in found[0]
    assert "captions.json" in found[0]
    named = KarpathyData("x", tmp_path, file="captions.json")
    assert named.missing() == []
    with pytest.raises(DataError, match=r"not in Karpathy's form"):
        named.load()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b'{"images": [', "no readable JSON"),
        (b"\xff\xfe\x00", "no readable JSON"),
        (b"[1, 2]", "found a list"),
        (b'{"annotations": []}', r"found keys \['annotations'\]"),
        (b'{"images": []}', "no images"),
    ],
)
def test_files_of_another_form(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(DataError, match=match):
        KarpathyData("x", tmp_path).load()


def test_a_truncated_gz_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, [entry("a.jpg", f"caption {n}") for n in range(200)], "dataset.json.gz")
    packed = (tmp_path / "dataset.json.gz").read_bytes()
    (tmp_path / "dataset.json.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="no readable JSON"):
        KarpathyData("x", tmp_path).load()


def test_wrong_options_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        KarpathyData("x", "anywhere", on_empty_caption="skip", on_captionless="drop")
    assert len(caught.value.faults) == 2
    assert "error, drop, found 'skip'" in caught.value.faults[0]


LOAD = """
import json, sys
from xmodal.data.karpathy import KarpathyData
from xmodal.tokens import tokenize
items = KarpathyData("real", sys.argv[1]).load()
held = items if items.has_split("test") else items.with_holdout(1000)
print(json.dumps({
    "images": len(items.images),
    "captions": len(items.captions),
    "splits": [len(items.image_rows(role)) for role in ("train", "val", "test")],
    "held out": [len(held.image_rows(role)) for role in ("train", "val", "test")],
    "photos": items.has_photos,
    "texts": items.has_texts,
    "in order": all(c.caption_id == row and c.image == row // 5 for row, c in enumerate(items.captions)),
    "empty": sum(not tokenize(caption.text) for caption in items.captions),
}))
"""


def loaded(folder: Path) -> dict[str, Any]:
    """What loading finds, in a process of its own: checking the type of every call would take minutes here."""
    if not folder.is_dir():
        pytest.skip(f"XMODAL_DATA has no {folder.name}/")
    command = [sys.executable, "-c", LOAD, str(folder)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_real_flickr8k(real_data: Path) -> None:
    assert loaded(real_data / "flickr8k") == {
        "images": 7000,
        "captions": 35000,
        "splits": [6000, 1000, 0],
        "held out": [5000, 1000, 1000],
        "photos": True,
        "texts": True,
        "in order": True,
        "empty": 0,
    }


@pytest.mark.slow
def test_real_flickr30k_captions_without_photos(real_data: Path) -> None:
    assert loaded(real_data / "flickr30k_captions") == {
        "images": 30085,
        "captions": 150425,
        "splits": [28129, 986, 970],
        "held out": [28129, 986, 970],
        "photos": False,
        "texts": True,
        "in order": True,
        "empty": 0,
    }
