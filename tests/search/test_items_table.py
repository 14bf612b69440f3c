"""The table of items: numbers and rows find one another, whatever is added, removed or moved."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xmodal.errors import DataError
from xmodal.search.items_table import IndexedItems, Item

ITEMS = [
    Item("7", "a/7.jpg", 0, ("A red  circle", "ünï"), (0, 1), "train"),
    Item("8", "a/8.jpg", 1, (), (), "test"),
    Item("caption 2", None, None, ("a Red circle",), (2,), "own"),
    Item("9", "9.jpg", 5, ("", "x", "x"), (9, 4, 5), "test"),
]


@pytest.fixture(params=["in memory", "on disk"])
def items(request: pytest.FixtureRequest, tmp_path: Path) -> IndexedItems:
    made = IndexedItems.of(ITEMS)
    if request.param == "in memory":
        return made
    made.write(tmp_path / "items.parquet")
    return IndexedItems.read(tmp_path / "items.parquet")


def test_items_come_back(items: IndexedItems) -> None:
    assert [items.at(row) for row in range(len(items))] == ITEMS
    assert [items.item(one.id) for one in ITEMS] == ITEMS
    assert items.ids == ["7", "8", "caption 2", "9"]
    assert "8" in items
    assert "10" not in items


def test_a_number_finds_its_item_and_caption(items: IndexedItems) -> None:
    for row, item in enumerate(ITEMS):
        if item.image_number is not None:
            assert items.row("images", item.image_number) == row
        for number, caption in zip(item.caption_numbers, item.captions, strict=True):
            assert items.row("captions", number) == row
            assert items.caption(number) == caption


@pytest.mark.parametrize(
    ("target", "split", "expected"),
    [
        ("images", None, [0, 1, 5]),
        ("images", "test", [1, 5]),
        ("images", "own", []),
        ("captions", None, [0, 1, 2, 4, 5, 9]),
        ("captions", "test", [4, 5, 9]),
        ("captions", "val", []),
    ],
)
def test_numbers_of_a_split(items: IndexedItems, target, split: str | None, expected: list[int]) -> None:
    assert items.numbers(target, split).tolist() == expected


def test_who_has_a_caption(items: IndexedItems) -> None:
    assert items.with_caption(" a RED circle ") == ["7", "caption 2"]
    assert items.with_caption("x") == ["9"]
    assert items.with_caption("y") == []


def test_without_and_joined_keep_numbers(items: IndexedItems) -> None:
    left = items.without(["8", "7"])
    assert [left.at(row) for row in range(len(left))] == ITEMS[2:]
    both = left.joined(IndexedItems.of(ITEMS[:1]))
    assert [both.at(row) for row in range(len(both))] == [*ITEMS[2:], ITEMS[0]]
    assert both.row("captions", 1) == 2
    assert both.caption(9) == ""


def test_files_seen_from_another_root(items: IndexedItems) -> None:
    moved = items.moved(Path("/x/y"), Path("/x"))
    assert [moved.file_at(row) for row in range(4)] == ["y/a/7.jpg", "y/a/8.jpg", None, "y/9.jpg"]
    assert items.moved(Path("/x"), Path("/x")) is items


def test_photos_alone_and_sentences_alone() -> None:
    photos = IndexedItems.of([Item("a", "a.jpg", 0, (), (), "own")])
    assert (photos.at(0).captions, photos.numbers("captions").tolist()) == ((), [])
    sentences = IndexedItems.of([Item("c", None, None, ("x",), (0,), "own")])
    assert (sentences.numbers("images").tolist(), sentences.row("captions", 0)) == ([], 0)


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="can't be read"):
        IndexedItems.read(tmp_path / "bytes")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "other")
    with pytest.raises(DataError, match="lacks image_number, file, captions, caption_numbers, split"):
        IndexedItems.read(tmp_path / "other")
    with pytest.raises(DataError, match="captions without numbers"):
        IndexedItems.of([Item("a", None, None, ("x", "y"), (0,), "own")])


def test_many_items_read_from_several_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    many = IndexedItems.of([Item(f"i{n}", None, n, (f"c{n}",), (n,), "test") for n in range(2000)])
    order = np.random.default_rng(0).permutation(2000).tolist()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: (many.id_at(many.row("captions", n)), many.caption(n)), order))
    assert found == [(f"i{n}", f"c{n}") for n in order]
