"""Queries in addresses, there and back, and addresses that say nonsense."""

from typing import Any
from urllib.parse import parse_qsl

import pytest

from xmodal.demo.query import MOST, USUAL, Query, from_address

SPLITS = ("train", "val", "test")


def read(address: str, **settings: Any) -> Query:
    return from_address(dict(parse_qsl(address.removeprefix("?"))), SPLITS, **settings)


@pytest.mark.parametrize(
    "query",
    [
        Query(text="ein Hund & eine Katze? 100 % ☂"),
        Query(text="a dog", target="captions", split="val", k=3),
        Query(item="photos/a b&c.jpg", target="captions"),
        Query(item="7", caption=2, target="images", split="test"),
        Query(item="a.jpg", of=1, target="captions"),
        Query(k=MOST),
    ],
)
def test_an_address_gives_its_query_back(query: Query) -> None:
    assert read(query.address) == query


def test_what_is_not_said_is_the_usual() -> None:
    assert read("?q=a+dog") == Query(text="a dog", k=USUAL)
    assert read("?item=7").target == "captions"  # a photo looks for captions
    assert read("?item=7&caption=1").target == "images"
    assert read("?item=7&find=images").target == "images"
    assert read("?item=7", targets=("images",)).target == "images"


@pytest.mark.parametrize(
    ("k", "expected"),
    [("0", 1), ("900", MOST), ("-3", USUAL), ("x", USUAL), ("999999999999", USUAL), ("٣", USUAL)],
)
def test_a_number_out_of_bounds(k: str, expected: int) -> None:
    assert read(f"?q=x&k={k}").k == expected


@pytest.mark.parametrize("k", [None, "7", float("nan"), [3]])
def test_what_is_no_number_is_the_usual_one(k: object) -> None:
    assert Query().within("images", "all", k).k == USUAL


def test_nonsense_is_taken_as_not_said() -> None:
    query = read("?q=" + "x" * 9000 + "&find=everything&split=secret&caption=9&of=1&__theme=dark")
    assert (len(query.text), query.target, query.split, query.caption) == (2000, "images", "all", None)
    assert query.of == 0
    assert (read("?item=7&of=-1").of, read("?item=7&of=x").of) == (0, 0)
    assert read("").is_empty
