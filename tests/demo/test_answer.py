"""What is found, what is known to be right, and what is said where nothing can be found."""

from pathlib import Path
from typing import Any

import pytest

from xmodal.demo.answer import answer, known_numbers
from xmodal.demo.collection import Collection
from xmodal.demo.origin import origin_of
from xmodal.demo.query import Query, Upload
from xmodal.search.engine import SearchEngine


def numbers_of(collection: Collection, query: Query) -> tuple[list[int], list[int]]:
    return known_numbers(collection, query, origin_of([collection], query))


@pytest.fixture(scope="module")
def collection(engine: SearchEngine) -> Collection:
    return Collection(engine)


def test_a_photo_finds_its_captions_with_nothing_encoded(collection: Collection, learnt: Any) -> None:
    given = answer([collection], 0, Query(item=learnt[0].id, target="captions", k=8))
    assert given.encoding is None
    assert given.searched == 120
    assert [found.hit.rank for found in given.found] == list(range(1, 9))
    assert [found.mark == "right" for found in given.found] == [f.hit.id == learnt[0].id for f in given.found]
    assert given.truth is not None
    assert given.truth.rank == 1
    assert given.truth.count == 5
    assert [learnt[0].captions[f.place] for f in given.found if f.mark] == [
        f.hit.caption for f in given.found if f.mark
    ]


def test_a_typed_sentence_that_is_a_caption_is_known(collection: Collection, learnt: Any) -> None:
    given = answer([collection], 0, Query(text="  " + learnt[2].captions[1].upper(), k=24))
    assert given.encoding is not None
    assert given.truth is not None
    (right,) = [found for found in given.found if found.mark == "right"]
    assert right.hit.id == learnt[2].id
    assert given.truth.rank == right.hit.rank
    assert answer([collection], 0, Query(text="nothing like it")).truth is None


def test_the_query_itself_is_told_from_what_is_right(collection: Collection, learnt: Any) -> None:
    item = learnt[3]
    photos = answer([collection], 0, Query(item=item.id, target="images"))
    assert [f.hit.id for f in photos.found if f.mark == "itself"] == [item.id]
    assert photos.found[0].mark == "itself"
    assert photos.truth is None
    right, itself = numbers_of(collection, Query(item=item.id, caption=1, target="captions"))
    assert itself == [item.caption_numbers[1]]
    assert sorted(right + itself) == list(item.caption_numbers)


def test_what_is_right_may_lie_in_another_split(collection: Collection, learnt: Any) -> None:
    given = answer([collection], 0, Query(item=learnt[0].id, target="captions", split="val"))
    assert given.searched == 20
    assert {found.hit.split for found in given.found} == {"val"}
    assert given.truth is not None
    assert given.truth.is_elsewhere
    assert given.truth.rank is None


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (Query(item="no-such-item"), "no such item"),
        (Query(item="0", caption=77), "has 5 captions"),
        (Query(upload=Upload("a.jpg", "", (None,), ("It can't.",), (0.0,))), "It can't."),
    ],
)
def test_faults_are_sentences(collection: Collection, query: Query, said: str) -> None:
    given = answer([collection], 0, query)
    assert said in given.fault
    assert given.found == ()


def test_bars_grow_with_scores(collection: Collection) -> None:
    shares = [found.share for found in answer([collection], 0, Query(text="a red disc", k=24)).found]
    assert shares == sorted(shares, reverse=True)
    assert 0 <= shares[-1] < shares[0] <= 1


def test_a_photo_outside_the_data_folder_is_none(engine: SearchEngine, tmp_path: Path) -> None:
    from dataclasses import replace

    collection, item = Collection(engine), engine.items.at(0)
    assert collection.has_photo(item)
    for file in ("../secret.jpg", "/etc/passwd", "a/../../secret.jpg", f"{engine.root}-beside/x.jpg"):
        assert collection.photo(replace(item, file=file)) is None, file
    assert collection.photo(replace(item, file="a/../b.jpg")) == Path(engine.root) / "b.jpg"
    assert not collection.has_photo(replace(item, file="gone.jpg"))
