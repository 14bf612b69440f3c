"""What a run retrieved, on the page: shown as it is written, and where files are damaged, said in words."""

import base64
import copy
import json
import os
import re
from io import BytesIO

import pytest
from PIL import Image

from xmodal.reporting.groups import groups_of
from xmodal.reporting.page import page_of
from xmodal.reporting.runs import find_runs
from xmodal.reporting.tables import tables_of

SCRIPT = "<script>alert(1)</script> \"two\" 'one' & {{ 7 * 7 }}"


def item(name, text=None, path=None, label=None):
    return {"id": name, "text": text, "path": None if path is None else str(path), "label": label}


def query(kind, rank, asked, truth, top):
    answers = [{"item": one, "score": 0.5, "match": one["id"] == truth[0]["id"]} for one in top]
    return {"kind": kind, "rank": rank, "query": asked, "truth": truth, "top": answers}


@pytest.fixture
def told(tmp_path):
    """What a run retrieved: a hit in either direction; one photo is a photo, another is not there."""
    Image.new("RGB", (600, 400), "teal").save(tmp_path / "photo.jpg")
    photo, absent = item("seen", path=tmp_path / "photo.jpg"), item("gone <b>", path=tmp_path / "no.jpg")
    texts = [item(f"c{i}", f"caption {i} {SCRIPT}", label="<i>cat</i>") for i in range(5)]
    seen = query("hit", 1, photo, texts[:1], texts)
    ways = {"i2t": [seen], "t2i": [query("hit", 1, texts[0], [absent], [absent, photo])]}
    return {"format": 1, "split": "test", "data": "made-up", "ways": ways}


def page(run, content=None):
    """Of one run, without figures; as it is read back from a file."""
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content)
        (run / "retrieved_test.json").write_text(text, encoding="utf-8")
    runs = find_runs([run])
    return page_of(runs, groups_of(runs), tables_of(runs), [], {}, []).encode("utf-8").decode("utf-8")


def test_words_of_a_run_are_shown_as_they_are(make_run, told):
    html = page(make_run("<u>run", {"name": SCRIPT}), told)
    assert "&lt;script&gt;alert(1)" in html
    assert "{{ 7 * 7 }}" in html
    for smuggled in ("<script>alert", "<i>cat", "<b>gone", "gone <b>", "<u>run"):
        assert smuggled not in html
    assert html.count("<script") == 1


def test_nothing_is_asked_for_from_elsewhere(make_run, told):
    html = page(make_run("run"), told)
    places = re.findall(r"""(?:\bsrc|href|srcset|action|poster|data)\s*=\s*["']([^"']*)""", html)
    assert {place.split(":")[0] if ":" in place else place[0] for place in places} <= {"data", "#", "t", "f"}
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", html)
    assert "default-src 'none'" in html


@pytest.mark.parametrize(
    "damage",
    [
        lambda told: json.dumps(told)[:100],
        lambda told: "[" * 100_000,
        lambda told: told | {"format": 2},
        lambda told: told | {"ways": [1]},
        lambda told: told["ways"]["i2t"][0].update(rank=float("inf")) or told,
        lambda told: told["ways"]["i2t"][0].update(kind=[]) or told,
        lambda told: told["ways"]["i2t"][0]["top"][0].pop("item") and told,
    ],
)  # fmt: skip
def test_a_damaged_file_is_told_of(make_run, told, damage):
    html = page(make_run("run"), damage(copy.deepcopy(told)))
    assert "retrieved_test.json can&#39;t be read" in html


def test_half_a_letter(make_run, told):
    """JSON can hold what UTF-8 can't."""
    told["ways"]["t2i"][0]["query"]["text"] = "a \ud800 dog"
    assert " dog" in page(make_run("run"), told)


@pytest.mark.parametrize("kind", ["nul", "folder", "pipe", "long", "text"])
def test_what_is_no_photo_stands_by_its_id(make_run, told, tmp_path, kind):
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    (tmp_path / "text").write_text("no photo")
    place = {"nul": "/a\0b", "folder": tmp_path, "long": "/" + "x" * 5000}.get(kind, tmp_path / kind)
    told["ways"]["i2t"][0]["query"]["path"] = str(place)
    html = page(make_run("run"), told)
    assert re.search(r">\s*seen\s*<", html)
    assert "2 photos can&#39;t be shown" in html


def test_examples_are_shown_by_kind_with_their_ranks(make_run, told):
    told["ways"]["t2i"].append(told["ways"]["t2i"][0] | {"kind": "failure", "rank": 977})
    html = page(make_run("run"), told)
    assert html.index("Hits") < html.index("Worst failures")
    assert "977" in html
    assert "Near misses" not in html


def test_thumbnails_are_small_and_the_right_way_up(make_run, told, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (600, 400), "teal").save(tmp_path / "photo.jpg", exif=exif)
    found = re.search(
        r'href="data:image/jpeg;base64,([^"]+)" width="(\d+)" height="(\d+)"', page(make_run("run"), told)
    )
    with Image.open(BytesIO(base64.b64decode(found[1]))) as small:
        assert small.size == (int(found[2]), int(found[3]))
        assert small.height > small.width
        assert max(small.size) <= 210


def test_a_photo_that_is_shown_often_is_carried_once(make_run, told, tmp_path):
    Image.new("RGB", (60, 40), "teal").save(tmp_path / "photo.jpg")
    told["ways"]["i2t"] *= 5
    html = page(make_run("run"), told)
    assert html.count('href="#photo-1"') >= 5
    assert html.count("data:image/jpeg") == html.count('<image id="photo-1"') == 1


def test_a_run_without_examples_has_a_page(make_run):
    assert "Image → text" in page(make_run("run"))


def test_two_pages_of_one_run_are_the_same(make_run, told):
    run = make_run("run")
    assert page(run, told) == page(run, told)
