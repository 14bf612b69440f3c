"""Tables of one's own in every form, with every fault."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from xmodal.data.items import Items
from xmodal.data.table import TableData
from xmodal.errors import ConfigError, DataError


def load(path: Path, text: str, **options: Any) -> Items:
    path.write_text(text, encoding="utf-8")
    return TableData("t", file=str(path), **options).load()


CSV = """image,caption,split,label
a.jpg,"a dog, running",train,animal
b.jpg,a car,val,
a.jpg,A  brown dog,train,animal
"""


def test_csv(tmp_path: Path) -> None:
    items = load(tmp_path / "t.csv", CSV)
    assert [(i.image_id, i.split, i.path, i.label) for i in items.images] == [
        ("a.jpg", "train", tmp_path / "a.jpg", "animal"),
        ("b.jpg", "val", tmp_path / "b.jpg", None),
    ]
    assert [(c.caption_id, c.image, c.text) for c in items.captions] == [
        (0, 0, "a dog, running"),
        (1, 1, "a car"),
        (2, 0, "A brown dog"),
    ]


def test_tsv_and_jsonl_say_the_same(tmp_path: Path) -> None:
    rows = [
        {"image": "a.jpg", "caption": "a dog, running", "split": "train", "label": "animal"},
        {"image": "b.jpg", "caption": "a car", "split": "val", "label": None},
        {"image": "a.jpg", "caption": "A  brown dog", "split": "train", "label": "animal"},
    ]
    tsv = ["\t".join(rows[0]), *("\t".join(value or "" for value in row.values()) for row in rows)]
    expected = load(tmp_path / "t.csv", CSV)
    assert load(tmp_path / "t.tsv", "\n".join(tsv)) == expected
    assert load(tmp_path / "t.jsonl", "\n\n".join(json.dumps(row) for row in rows)) == expected


def test_byte_order_mark_capitals_and_windows_line_ends(tmp_path: Path) -> None:
    items = load(tmp_path / "t.csv", "\ufeff Image ,CAPTION\r\na.jpg,Größe\r\n")
    assert items.captions[0].text == "Größe"


def test_photos_lie_below_root_or_are_absolute(tmp_path: Path) -> None:
    text = f"image,caption\na.jpg,a dog\n{tmp_path}/else/b.jpg,a cat\n"
    items = load(tmp_path / "t.csv", text, root=tmp_path / "photos")
    assert [image.path for image in items.images] == [tmp_path / "photos" / "a.jpg", tmp_path / "else" / "b.jpg"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "own.csv").write_text("image,caption\nx.jpg,a dog\n")
    below = TableData("t", root=tmp_path / "photos", file="own.csv").load()
    assert below.images[0].path == tmp_path / "photos" / "x.jpg"


def test_without_splits_the_name_decides(tmp_path: Path) -> None:
    names = [f"{n}.jpg" for n in range(600)]
    text = "image,caption\n" + "".join(f"{name},a dog\n" for name in names)
    items = load(tmp_path / "t.csv", text, val_fraction=0.2, test_fraction=0.1)
    for image in items.images:
        share = int(hashlib.sha256(str(image.image_id).encode()).hexdigest(), 16) / 2**256
        assert image.split == ("test" if share < 0.1 else "val" if share < 0.3 else "train")
    counts = [len(items.image_rows(role)) for role in ("train", "val", "test")]
    assert counts == pytest.approx([420, 120, 60], abs=35)
    fewer = load(tmp_path / "t.csv", "image,caption\n599.jpg,a dog\n7.jpg,a cat\n", val_fraction=0.2, test_fraction=0.1)
    splits = {image.image_id: image.split for image in items.images}
    assert all(splits[image.image_id] == image.split for image in fewer.images)


def test_all_faults_come_at_once_with_their_rows(tmp_path: Path) -> None:
    text = (
        "image,caption,split,label\n"
        "a.jpg,a dog,train,x\n"
        "a.jpg,a dog,val,y\n"
        ",a dog,train,x\n"
        "b.jpg, ... ,train,x\n"
        "c.jpg,a dog,,x\n"
        "d.jpg,a dog, running,train,x\n"
        "e.jpg\n"
    )
    with pytest.raises(DataError) as caught:
        load(tmp_path / "t.csv", text)
    message = str(caught.value)
    for part in (
        "Images in two splits: 1 found: a.jpg in rows 2 and 3 (train, val)",
        "Images with two labels: 1 found: a.jpg in rows 2 and 3 (x, y)",
        "Rows without an image: 1 found: row 4",
        "not a single word (data.on_empty_caption=drop leaves them out): 2 found: row 5, row 8",
        "empty split (leave the column out to have images split by name): 1 found: row 6",
        "more cells than there are columns (a comma without quotes?): 1 found: row 7",
    ):
        assert part in message


def test_rows_without_words_can_be_dropped(tmp_path: Path) -> None:
    items = load(tmp_path / "t.csv", "image,caption\na.jpg,...\nb.jpg,a dog\n", on_empty_caption="drop")
    assert [image.image_id for image in items.images] == ["b.jpg"]
    assert items.captions[0].image == 0


@pytest.mark.parametrize(
    ("file", "text", "match"),
    [
        ("t.csv", "path,caption\na,b\n", "lacks the column image; found: path, caption"),
        ("t.csv", "image;caption\na;b\n", "lacks the columns image, caption; found: image;caption"),
        ("t.csv", "", "found: nothing"),
        ("t.csv", "image,caption\n", "no captions"),
        ("t.jsonl", '{"file": "a", "text": "b"}', "lacks the columns image, caption; found: file, text"),
        ("t.jsonl", '{"image": "a", "caption": "b"}\nnonsense\n[1]\n', "no JSON object: 2 found: row 2, row 3"),
        ("t.jsonl", '{"image": "a", "caption": "b", "label": 1.5}', r"Labels .*1.5 in row 1"),
        ("t.jsonl", '{"image": 3, "caption": "b"}', "Rows without an image: 1 found: row 1"),
        ("t.jsonl", '{"image": "a", "caption": "b", "split": "train"}\n{"image": "b", "caption": "c"}', "empty split"),
    ],
)
def test_tables_of_another_form(tmp_path: Path, file: str, text: str, match: str) -> None:
    with pytest.raises(DataError, match=match):
        load(tmp_path / file, text)


def test_whole_numbers_are_labels(tmp_path: Path) -> None:
    items = load(tmp_path / "t.jsonl", '{"image": "a", "caption": "b", "label": 3}')
    assert items.images[0].label == 3


def test_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("image,caption\na.jpg,Größe\n".encode("latin-1"))
    with pytest.raises(DataError, match="not in UTF-8"):
        TableData("t", file=str(tmp_path / "t.csv")).load()


def test_missing_says_what_to_type(tmp_path: Path) -> None:
    assert "set data.file=" in TableData("t").missing()[0]
    assert "nor below" in TableData("t", root=tmp_path, file="gone.csv").missing()[0]
    (tmp_path / "t.xlsx").write_bytes(b"")
    assert ".csv, .tsv" in TableData("t", file=str(tmp_path / "t.xlsx")).missing()[0]
    with pytest.raises(DataError, match=r"set data\.file="):
        TableData("t").load()


@pytest.mark.parametrize(
    ("options", "faults"),
    [
        ({"val_fraction": -0.1, "test_fraction": 1.0, "on_empty_caption": "skip"}, 3),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, 1),
    ],
)
def test_ranges(options: dict[str, Any], faults: int) -> None:
    with pytest.raises(ConfigError) as caught:
        TableData("t", **options)
    assert len(caught.value.faults) == faults
