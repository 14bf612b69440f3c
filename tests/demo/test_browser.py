"""The page in a real browser: what a person types, clicks, sends and sees.

XMODAL_SCREENSHOTS names a folder for the pictures that are taken on the way (as it stands, that of the test run).
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from xmodal.search.engine import SearchEngine

playwright = pytest.importorskip("playwright.sync_api")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-extensions", "--no-first-run", "--force-color-profile=srgb",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
HIT = "#results [data-number]"

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next((path for name in NAMES if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser is installed ({', '.join(NAMES)})")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=program, args=list(FLAGS))
        yield found
        found.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Open an address as a reader with this window and these wishes does; nothing may be asked of another host, and
    nothing may go wrong in the browser."""
    contexts: list[Any] = []
    asked: list[str] = []
    wrong: list[str] = []

    def begin(address: str, **wishes: Any) -> Any:
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **wishes}))
        contexts[-1].on("request", lambda request: asked.append(request.url))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda told: wrong.append(told.text) if told.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("response", lambda answer: wrong.append(answer.url) if answer.status >= 400 else None)
        page.goto(address)
        page.wait_for_selector(".answer")
        return page

    yield begin
    for context in contexts:
        context.close()
    assert asked
    assert [url for url in asked if not re.match(r"http://127\.0\.0\.1:\d+/|data:|blob:", url)] == []
    assert wrong == []


@pytest.fixture
def picture(tmp_path: Path) -> Callable[[Any, str], None]:
    """Keep a picture of the page once its photos are there."""
    folder = Path(os.environ.get("XMODAL_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)

    def take(page: Any, name: str) -> None:
        page.wait_for_function(
            "[...document.images].filter(one => one.offsetParent && one.getBoundingClientRect().top < innerHeight)"
            ".every(image => image.complete && image.naturalWidth > 0)"
        )
        page.screenshot(path=folder / f"{name}.png")

    return take


def search(page: Any, text: str) -> None:
    page.fill("#text textarea", text)
    page.keyboard.press("Enter")
    page.wait_for_function("said => document.querySelector('.said')?.textContent === said", arg=text)


def ids(page: Any) -> list[str]:
    return page.eval_on_selector_all(HIT, "hits => hits.map(hit => hit.dataset.item)")


def photo_of(engine: SearchEngine, item: Any) -> str:
    return engine.path_of(item.file) or ""


def fits(page: Any) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def lightness(page: Any, selector: str = "body") -> float:
    color = page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).backgroundColor")
    return sum(map(float, re.findall(r"[\d.]+", color)[:3])) / 3


def test_a_sentence_finds_its_photo(site: str, open_page: Open, learnt: Any, picture: Any) -> None:
    page = open_page(site)
    page.wait_for_function("document.activeElement.tagName === 'TEXTAREA'")
    picture(page, "start")
    search(page, learnt[1].captions[0])
    first = page.locator(".photos li").first
    assert first.locator("button").get_attribute("data-item") == learnt[1].id
    assert "right" in first.get_attribute("class")
    assert "✓ right" in first.inner_text()
    assert learnt[1].captions[0] in first.inner_text()
    assert re.search(r"0\.\d{3}", first.inner_text())
    assert re.search("Right at rank 1 of 24", page.inner_text(".truth"))
    assert re.search(r"encoded in [\d.]+ ms · searched in [\d.]+ ms", page.inner_text(".facts"))
    assert page.title().startswith(learnt[1].captions[0])
    picture(page, "sentence")


def test_a_photo_finds_its_captions(
    site: str, open_page: Open, engine: SearchEngine, learnt: Any, picture: Any
) -> None:
    page = open_page(site)
    page.set_input_files(".send input", photo_of(engine, learnt[2]))
    page.wait_for_selector(".captions")
    assert page.locator(".captions .words").first.inner_text() in learnt[2].captions
    assert page.locator(".query .asked").evaluate("image => image.naturalWidth") == 96
    assert "Your photo" in page.inner_text(".query")
    picture(page, "photo")
    page.get_by_label("train", exact=True).check()
    page.wait_for_function("document.querySelector('.facts').textContent.includes('of 80')")
    assert page.locator(".captions .words").first.inner_text() in learnt[2].captions  # sent once, still the query


def test_what_is_no_photo_gets_a_sentence(site: str, open_page: Open, tmp_path: Path) -> None:
    page = open_page(site)
    page.set_input_files(".send input", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"text"})
    page.wait_for_selector(".fault")
    assert "no image in a known format" in page.inner_text(".fault")
    with (tmp_path / "b.jpg").open("wb") as large:
        large.truncate(21 * 2**20)
    page.set_input_files(".send input", tmp_path / "b.jpg")
    page.wait_for_function("document.querySelector('.fault').textContent.includes('larger than the 20 MiB')")


def test_a_click_on_a_result_is_the_next_query(site: str, open_page: Open, learnt: Any) -> None:
    page = open_page(site)
    search(page, learnt[1].captions[0])
    page.locator(HIT).first.click()
    page.wait_for_selector(".captions")
    assert page.locator(".query img.asked").get_attribute("src").startswith("photo/0?id=" + learnt[1].id)
    assert page.get_by_label("Captions", exact=True).is_checked()
    assert f"item={learnt[1].id}" in page.url
    words = page.locator(".captions .words").first.inner_text()
    page.locator(HIT).first.click()
    page.wait_for_selector("#results .photos")
    assert page.inner_text(".said") == words
    assert page.input_value("#text textarea") == words
    assert ids(page)[0] == learnt[1].id
    page.go_back()
    page.wait_for_selector(".captions")
    page.go_back()
    page.wait_for_selector("#results .photos")
    assert page.inner_text(".said") == learnt[1].captions[0]


def test_an_address_shows_the_same_to_another(site: str, open_page: Open, learnt: Any) -> None:
    page = open_page(site)
    search(page, "a red disc & a blue star?")
    page.get_by_label("val", exact=True).check()
    page.wait_for_function("document.querySelector('.facts').textContent.includes('in val')")
    shown = ids(page)
    assert len(shown) == 4
    page.wait_for_function("location.search.includes('split=val')")
    other = open_page(page.url)
    other.wait_for_selector(HIT)
    assert ids(other) == shown
    assert other.get_by_label("val", exact=True).is_checked()
    assert other.inner_text(".said") == "a red disc & a blue star?"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(
    site: str, open_page: Open, engine: SearchEngine, learnt: Any, scheme: str, picture: Any
) -> None:
    page = open_page(site, color_scheme=scheme, **PHONE)
    assert fits(page)
    search(page, learnt[3].captions[3])
    assert fits(page)
    assert (lightness(page) < 60) == (scheme == "dark")
    picture(page, f"phone-{scheme}")
    page.locator(HIT).first.tap()
    page.wait_for_selector(".captions")
    assert fits(page)
    small = "[...document.querySelectorAll('#search, .send, #settings .wrap > label, .captions button')]"
    assert page.evaluate(f"{small}.every(one => one.getBoundingClientRect().height >= 24)")
    page.locator("#map-fold > button").tap()
    page.wait_for_selector("canvas[data-points]")
    assert fits(page)
    picture(page, f"phone-{scheme}-captions")


def test_an_address_can_ask_for_the_dark(site: str, open_page: Open, learnt: Any, picture: Any) -> None:
    page = open_page(site + "?__theme=dark")
    assert lightness(page) < 60
    search(page, learnt[0].captions[1])
    picture(page, "dark")
    page.wait_for_function("location.search.includes('q=')")
    assert "__theme=dark" in page.url  # it stays so


def test_text_can_be_told_from_its_ground(site: str, open_page: Open, learnt: Any) -> None:
    """At least 4.5 : 1, as WCAG 2 asks of text."""
    ratio = """selector => {
      const parts = rgb => rgb.match(/[\\d.]+/g).slice(0, 3).map(Number);
      const luminance = rgb => parts(rgb).map(c => rgb.includes('srgb') ? c : c / 255)
        .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
      let one = document.querySelector(selector);
      const ink = luminance(getComputedStyle(one).color);
      while (/, 0\\)$|\\/ 0\\)$/.test(getComputedStyle(one).backgroundColor)) one = one.parentElement;
      const paper = luminance(getComputedStyle(one).backgroundColor);
      return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    }"""
    for scheme in ("light", "dark"):
        page = open_page(site, color_scheme=scheme)
        search(page, learnt[0].captions[0])
        for selector in (".facts", ".score", ".mark.right", ".truth strong", ".photos .caption", "#search", ".top p"):
            assert page.evaluate(ratio, selector) >= 4.5, (scheme, selector)


def test_keys_alone_will_do(site: str, open_page: Open, learnt: Any, picture: Any) -> None:
    page = open_page(site)
    page.wait_for_function("document.activeElement.tagName === 'TEXTAREA'")
    page.keyboard.type(learnt[4].captions[0])
    page.keyboard.press("Enter")
    page.wait_for_selector(HIT)
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.number !== undefined"):
            break
    assert page.evaluate("document.activeElement.dataset.item") == learnt[4].id
    assert "Rank 1, score" in page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    picture(page, "keys")
    page.keyboard.press("Enter")
    page.wait_for_selector(".captions")
    page.wait_for_function("document.activeElement.classList.contains('query')")  # reading goes on at the new query
    names = "[...document.querySelectorAll('button, input, textarea, canvas')].filter(one => one.offsetParent)"
    named = "one => one.innerText?.trim() || one.ariaLabel || one.labels?.length"
    assert page.evaluate(f"{names}.filter(one => !({named})(one)).map(one => one.outerHTML)") == []
    assert page.evaluate("[...document.images].every(image => image.hasAttribute('alt'))")


def test_the_map_is_wandered_in(site: str, open_page: Open, engine: SearchEngine, picture: Any) -> None:
    page = open_page(site)
    page.locator("#map-fold > button").click()
    page.wait_for_selector("canvas[data-points='144']")
    page.locator("canvas").scroll_into_view_if_needed()
    page.focus("canvas")
    for key in ("ArrowRight", "ArrowRight", "ArrowUp"):
        page.keyboard.press(key)
    reached = page.inner_text(".map .said")
    assert re.match("photo: |caption: ", reached)
    assert page.locator(".point").is_visible()
    page.keyboard.press("Enter")
    page.wait_for_selector(HIT)
    assert reached.split(": ")[1][:60] in page.inner_text(".query")
    assert page.locator(".near button").count() == 8
    picture(page, "map")
    page.locator(".near button").first.click()  # from neighbour to neighbour
    page.wait_for_function("was => location.search !== was", arg=page.evaluate("location.search"))
    before = page.evaluate("location.search")
    place = page.evaluate("""async () => {
      const points = await (await fetch('map/0')).json();
      const canvas = document.querySelector('canvas');
      const far = points.x.map((x, i) => x * x + points.y[i] ** 2);
      const i = far.indexOf(Math.max(...far));
      const scale = Math.min(canvas.clientWidth, canvas.clientHeight) / 2 - 16;
      const [x, y] = [canvas.clientWidth / 2 + points.x[i] * scale, canvas.clientHeight / 2 - points.y[i] * scale];
      return {x, y, id: points.id[i]};
    }""")  # fmt: skip
    page.locator("canvas").click(position={"x": place["x"], "y": place["y"]})
    page.wait_for_function("was => location.search !== was", arg=before)
    assert f"item={place['id']}&" in page.url + "&"


def test_two_runs_side_by_side(serve: Any, open_page: Open, engine: SearchEngine, learnt: Any, picture: Any) -> None:
    with serve(engine, engine) as address:
        page = open_page(address)
        search(page, learnt[1].captions[0])
        assert page.locator(".searched").count() == 2
        left, right = (page.locator(".searched").nth(place).bounding_box() for place in (0, 1))
        assert left["x"] + left["width"] <= right["x"]
        assert page.locator(".truth").count() == 2
        picture(page, "two")
        page.locator(HIT).last.click()
        page.wait_for_selector(".captions")
        assert "&of=1&" in page.url  # an item of the second index
        picture(page, "two-captions")
        narrow = open_page(page.url, **PHONE)
        assert fits(narrow)


def test_unfriendly_words_do_nothing(serve: Any, open_page: Open, words_only: SearchEngine) -> None:
    with serve(words_only) as address:
        page = open_page(address)
        assert page.locator("text=<img src=x onerror=alert(1)>").count() >= 1
        page.locator("text=${alert(1)}").first.click()
        page.wait_for_selector(".said")
        assert page.inner_text(".said") == "${alert(1)} {{value}} {{#each value}}"
        assert page.locator(".answer img, .answer script").count() == 0
        page.locator("#map-fold > button").click()
        page.wait_for_selector("canvas[data-points='4']")
