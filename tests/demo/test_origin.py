"""Two indexes side by side that call different things by one id."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from xmodal.demo.answer import answer
from xmodal.demo.collection import Collection, side_by_side
from xmodal.demo.html import results
from xmodal.demo.origin import origin_of
from xmodal.demo.query import Query
from xmodal.search.engine import SearchEngine


@pytest.fixture(scope="module")
def photos(studio: Any, by_heart: Path, engine: SearchEngine, learnt: Any) -> list[Collection]:
    """Two folders of one name, in each of which four photos are called a.png, b.png … ; other photos in each."""
    engines = []
    for which in range(2):
        folder = studio.root / f"album-{which}" / "album"
        folder.mkdir(parents=True)
        for name, item in zip("abcd", learnt[4 * which :], strict=False):
            shutil.copy(engine.path_of(item.file) or "", folder / f"{name}.png")
        engines.append(SearchEngine.open(studio.index(by_heart, f"album-{which}", "--images", str(folder))))
    return side_by_side(engines)


@pytest.fixture(scope="module")
def lines(studio: Any, by_heart: Path) -> list[Collection]:
    """Two files of sentences, which are called by the numbers of their lines."""
    engines = []
    for which, sentences in enumerate((["a red disc", "a blue star"], ["a green ring", "a yellow disc"])):
        file = studio.root / f"lines-{which}.txt"
        file.write_text("\n".join(sentences), encoding="utf-8")
        engines.append(SearchEngine.open(studio.index(by_heart, f"lines-{which}", "--captions", str(file))))
    return side_by_side(engines)


def test_a_photo_is_searched_with_as_it_is_in_the_index_that_it_is_of(photos: list[Collection]) -> None:
    (name,) = set(photos[0].items.ids) & {photos[1].items.at(0).id}
    query = Query(item=name, of=1, target="images")
    own, other = answer(photos, 1, query), answer(photos, 0, query)
    assert (own.found[0].hit.id, own.found[0].mark, own.encoding) == (name, "itself", None)
    assert other.encoding is not None  # the photo of the second index, encoded as one that is sent is
    assert [found.mark for found in other.found] == [""] * 4
    vector = photos[0].engine.encode_images([photos[1].photo(photos[1].items.item(name)) or ""])
    (expected,) = photos[0].engine.search_vectors(vector, 4, target="images")
    assert [found.hit.id for found in other.found] == expected.ids
    assert (own.holds_item, other.holds_item) == (True, False)


def test_a_sentence_is_searched_with_as_it_is_in_the_index_that_it_is_of(lines: list[Collection]) -> None:
    name = lines[0].items.ids[0]
    assert name in lines[1].items
    query = Query(item=name, of=1, caption=0, target="captions")
    own, other = answer(lines, 1, query), answer(lines, 0, query)
    assert [(found.hit.caption, found.mark) for found in own.found[:1]] == [("a green ring", "itself")]
    assert {found.mark for found in other.found} == {""}
    shown = results(lines, query, [other, own])
    assert '<h2 class="said">a green ring</h2>' in shown
    assert f'data-item="{name}" data-of="0"' in shown
    assert f'data-item="{name}" data-of="1"' in shown
    assert 'data-index="1" data-holds-item' in shown
    assert 'data-index="0" data-holds-item' not in shown


def test_the_same_item_of_the_same_data_set_is_known_in_both(engine: SearchEngine, learnt: Any) -> None:
    two = side_by_side([engine, SearchEngine.open(engine.folder, device="cpu")])
    for place in (0, 1):
        given = answer(two, place, Query(item=learnt[1].id, of=1, target="captions"))
        assert given.encoding is None
        assert given.truth is not None
        assert given.truth.rank == 1
        assert given.holds_item


def test_an_address_that_says_no_index_means_the_first_that_has_the_item(
    photos: list[Collection], engine: SearchEngine, learnt: Any
) -> None:
    mixed = [photos[0], Collection(engine)]
    origin = origin_of(mixed, Query(item=learnt[0].id))
    assert origin is not None
    assert origin.place == 1
    assert origin_of(photos, Query(item=photos[0].items.ids[0], of=2)) is None
    assert answer(photos, 0, Query(item=photos[0].items.ids[0], of=2)).fault == "There is no such item here."


def test_headings_tell_indexes_of_one_run_apart(photos: list[Collection], engine: SearchEngine) -> None:
    assert [one.name for one in photos] == [f"{photos[0].engine.manifest.name} (album-{which})" for which in range(2)]
    assert [one.name for one in side_by_side([engine])] == [engine.manifest.name]
    assert len({one.name for one in side_by_side([engine, engine])}) == 1  # one folder twice is one index
