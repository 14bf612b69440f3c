"""The page in a real browser: it asks for nothing, complains of nothing, fits, sorts, and is as dark as its reader."""

import json

import numpy as np
import pytest
from PIL import Image

from xmodal.cli import main

TRICK = '<img src="http://example.org/x.png" onerror="console.error(1)"><script>console.error(2)</script>'


def item(name, text=None, path=None):
    return {"id": name, "text": text, "path": path, "label": None}


def retrieved(photo):
    caption, image = item("c", f"a dog {TRICK}"), item("i", path=str(photo))
    texts = [{"item": caption, "score": 0.5, "match": place == 1} for place in range(5)]
    photos = [{"item": item("gone", path="/nowhere.jpg") if place else image, "score": 0.5, "match": not place}
              for place in range(5)]  # fmt: skip
    return {"format": 1, "split": "test", "data": "made-up", "ways": {
        "i2t": [{"kind": "near", "rank": 2, "query": image, "truth": [caption], "top": texts}] * 6,
        "t2i": [{"kind": "hit", "rank": 1, "query": caption, "truth": [image], "top": photos}] * 6,
    }}  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory, run_maker):
    root = tmp_path_factory.mktemp("runs")
    make = run_maker(root / "sweep")
    for number, (size, way) in enumerate((size, way) for size in (64, 128, 512) for way in ("sum", "mean")):
        settings = {"embedding_dim": size, "text_aggregator": way, "name": TRICK}
        make(f"{number}", settings, 0.05 * (number + 1), draw=number, provenance={"command": f"train.py {TRICK}"})
    make.failed("6", f"RuntimeError: {TRICK}")
    Image.new("RGB", (300, 200), "teal").save(root / "photo.jpg")
    (root / "sweep" / "5" / "retrieved_test.json").write_text(json.dumps(retrieved(root / "photo.jpg")))
    vectors = np.random.default_rng(0).normal(size=(30, 8))
    np.savez(root / "sweep" / "5" / "embeddings_test.npz", image=vectors, text=vectors, similarity=np.array("cosine"))
    assert main(["report", str(root / "sweep"), "--output", str(root / "report")]) == 0
    return (root / "report" / "report.html").as_uri()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 420])
def test_it_asks_for_nothing_and_fits(browser, report, width, scheme):
    browser.open(report, width, scheme)
    assert browser.requests == []
    assert browser.errors == []
    assert browser.value("document.documentElement.scrollWidth") == width
    ground = browser.value("getComputedStyle(document.body).backgroundColor")
    lightness = sum(map(int, ground.removeprefix("rgb(").removesuffix(")").split(","))) / 3
    assert (lightness < 60) == (scheme == "dark")
    assert browser.value("[...document.querySelectorAll('svg')].every(svg => svg.getBoundingClientRect().width < 560)")


@pytest.mark.slow
def test_a_photo_is_seen_wherever_it_is_used(browser, report, tmp_path):
    """In its own proportions, 3 : 2, in a card's query, and within a square among results."""
    browser.open(report)
    for place, share in ((".asked .photo", 1), (".photos .photo", 2 / 3)):
        box = browser.value(f"(({{x, y, width, height}}) => [x, y + scrollY, width, height])"
                            f"(document.querySelector('{place}').getBoundingClientRect())")  # fmt: skip
        browser.picture(tmp_path / "seen.png", top=box[1], height=box[3])
        left, width = round(box[0]), round(box[2])
        with Image.open(tmp_path / "seen.png") as seen:
            pixels = np.asarray(seen.convert("RGB"), dtype=int)[:, left : left + width]
        teal = np.abs(pixels - (0, 128, 128)).max(axis=2) < 12
        assert teal.mean() == pytest.approx(share, abs=0.06), place


@pytest.mark.slow
def test_every_link_within_the_page_leads_somewhere(browser, report):
    browser.open(report)
    targets = "[...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.getAttribute('href').slice(1))"
    assert browser.value(f"{targets}.length") > 6
    assert browser.value(f"{targets}.filter(id => !document.getElementById(id))") == []
    ids = "[...document.querySelectorAll('[id]')].map(element => element.id)"
    assert browser.value(f"{ids}.length - new Set({ids}).size") == 0


@pytest.mark.slow
def test_text_can_be_told_from_its_ground(browser, report):
    """At least 4.5 : 1, as WCAG 2 asks of text."""
    luminance = (
        "(rgb) => rgb.match(/[\\d.]+/g).slice(0, 3).map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : "
        "((c + 0.055) / 1.055) ** 2.4).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0)"
    )
    for scheme in ("light", "dark"):
        browser.open(report, scheme=scheme)
        for selector in ("p.note", "td small", ".caption", ".score", ".tick", "nav a", ".alarm h3", "a[href]"):
            ratio = browser.value(
                f"(() => {{ const light = {luminance}; let one = document.querySelector('{selector}');"
                "const ink = light(getComputedStyle(one).color); let ground = 'rgba(0, 0, 0, 0)';"
                "while (ground === 'rgba(0, 0, 0, 0)') { ground = getComputedStyle(one).backgroundColor; "
                "one = one.parentElement; } const paper = light(ground);"
                "return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05); })()"
            )
            assert ratio >= 4.5, (scheme, selector, ratio)


@pytest.mark.slow
def test_a_click_sorts_a_column_and_two_more_bring_the_order_back(browser, report):
    browser.open(report)
    column = (
        "[...document.querySelector('table:has(.bar)').tBodies[0].rows].map(row => Number(row.cells[4].dataset.order))"
    )
    click = "document.querySelector('table:has(.bar)').tHead.rows[0].cells[4].querySelector('button').click()"
    written = browser.value(column)
    assert written != sorted(written)
    browser.value(click)
    assert browser.value(column) == sorted(written, reverse=True)
    browser.value(click)
    assert browser.value(column) == sorted(written)
    browser.value(click)
    assert browser.value(column) == written


@pytest.mark.slow
def test_without_scripts_everything_is_there(browser, report):
    browser.open(report, scripts=False)
    assert browser.errors == []
    tree = browser.send("DOM.getDocument", depth=-1)
    root = tree["root"]["nodeId"]
    for selector in ("svg.figure", "article.query", "td.best, td.tied", "details", "nav a"):
        assert browser.send("DOM.querySelectorAll", nodeId=root, selector=selector)["nodeIds"], selector
    assert browser.send("DOM.querySelectorAll", nodeId=root, selector="th button")["nodeIds"] == []
