"""The page: its controls, and what happens when they are used."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr

from xmodal.demo import html, uploads
from xmodal.demo.answer import answer, text_of
from xmodal.demo.collection import Collection
from xmodal.demo.query import EVERYWHERE, FEW, MOST, MOST_LETTERS, Query, from_address
from xmodal.errors import DataError
from xmodal.search.manifest import Target

_AT_ONCE = 8  # searches
_DECODED_AT_ONCE = 2  # photos that were sent, of up to 150 MB each
_FORGOTTEN_AFTER = 3600  # seconds
_NAMES: dict[Target, str] = {"images": "Photos", "captions": "Captions"}

Shown = tuple[str, str, str, int, Query, str]  # text, side, split, k, the query, results


class Page:
    """Answers what visitors ask. It holds the indexes alone; the query of each visitor is in a session of its own.

    Args:
        folder: where Gradio keeps files that were sent.
    """

    def __init__(self, collections: Sequence[Collection], folder: Path) -> None:
        self.collections = tuple(collections)
        self.folder = folder
        first = self.collections[0]
        self.targets = first.targets
        self.splits = tuple(dict.fromkeys(split for one in self.collections for split in one.splits))

    def type(self, text: str, target: str, split: str, k: object, asked: Query) -> Shown:
        """A sentence was typed."""
        said = " ".join(str(text or "")[:MOST_LETTERS].split())
        return self._shown(self._within(asked, target, split, k).of_text(said))

    def change(self, text: str, target: str, split: str, k: object, asked: Query) -> Shown:
        """Side, split or number were changed: the same query once more."""
        return self._shown(self._within(asked, target, split, k), text)

    def ask(self, target: str, split: str, k: object, asked: Query, event: gr.EventData) -> Shown:
        """Something on the page was clicked: it is the next query, and the other side is searched."""
        told = _told(event)
        query = self._within(asked, target, split, k)
        if told.get("ask") != "item":
            return self._shown(query.of_text(""))
        place = {"of": told.get("of"), "caption": _next(told.get("caption"))}
        words = {"item": told.get("item", ""), "split": split, **place}
        clicked = from_address({name: word for name, word in words.items() if word is not None}, self.splits)
        side = self._other_side(clicked.is_photo)
        return self._shown(query.of_item(clicked, side))

    def visit(self, event: gr.EventData) -> Shown:
        """An address was opened."""
        words = dict(parse_qsl(_told(event).get("address", "").removeprefix("?"), max_num_fields=50))
        return self._shown(from_address(words, self.splits, self.targets))

    def send(self, target: str, split: str, k: object, asked: Query, event: gr.EventData) -> Shown:
        """A photo was sent."""
        query = self._within(asked, target, split, k).of_text("")
        told = _told(event)
        if told.get("fault"):
            return self._refused(told["fault"], query)
        try:
            content = uploads.taken(told.get("path", ""), self.folder)
            upload = uploads.encoded(content, told.get("name", ""), self.collections)
        except DataError as fault:
            return self._refused(str(fault), query)
        return self._shown(query.of_photo(upload, self._other_side(True)))

    def _within(self, asked: Query, target: str, split: str, k: object) -> Query:
        known = split if split in self.splits else EVERYWHERE
        return asked.within(target if target in self.targets else self.targets[0], known, k)

    def _other_side(self, is_photo: bool) -> Target:
        wanted: Target = "captions" if is_photo else "images"
        return wanted if wanted in self.targets else self.targets[0]

    def _shown(self, query: Query, text: str | None = None) -> Shown:
        if query.is_empty:
            return self._fields(query, text or "", html.start(self.collections, query))
        answers = self._answers(query)
        said = text_of(self.collections, query)
        return self._fields(query, said if text is None else text, html.results(self.collections, query, answers))

    def _answers(self, query: Query) -> list[Any]:
        places = range(len(self.collections))
        if len(places) == 1:
            return [answer(self.collections, 0, query)]
        with ThreadPoolExecutor(len(places)) as pool:
            return list(pool.map(lambda place: answer(self.collections, place, query), places))

    def _refused(self, sentence: str, query: Query) -> Shown:
        return self._fields(query, "", html.fault(sentence, query))

    def _fields(self, query: Query, text: str, shown: str) -> Shown:
        return text, query.target, query.split, query.k, query, shown


def _told(event: gr.EventData) -> Mapping[str, str]:
    """What the page's script says of an event: words alone are taken."""
    data = event._data if isinstance(event._data, dict) else {}
    return {str(name): word for name, word in data.items() if isinstance(word, str)}


def _next(place: str | None) -> str | None:
    """The place of a caption as an address says it, from 1."""
    return str(int(place) + 1) if place is not None and place.isascii() and place.isdigit() else None


def build(page: Page) -> gr.Blocks:
    """Lay the page out, and connect its controls."""
    with gr.Blocks(title="xmodal", analytics_enabled=False, delete_cache=(600, _FORGOTTEN_AFTER)) as blocks:
        gr.HTML(html.header(page.collections), js_on_load=None, apply_default_css=False)
        with gr.Row(elem_id="ask", equal_height=True):
            text = gr.Textbox(
                label="Search", show_label=False, placeholder="Describe a photo", scale=6, elem_id="text",
                max_length=MOST_LETTERS, min_width=160,
            )  # fmt: skip
            search = gr.Button("Search", variant="primary", scale=0, min_width=96, elem_id="search")
            photo = gr.HTML(
                _photo_button(), js_on_load=html.static("photo.js"), apply_default_css=False, elem_id="photo"
            )
        with gr.Row(elem_id="settings"):
            target = gr.Radio(
                [(_NAMES[side], side) for side in page.targets], value=page.targets[0], label="Find", min_width=150
            )
            split = gr.Radio(_split_choices(page.splits), value=EVERYWHERE, label="In", min_width=200)
            k = gr.Slider(FEW, MOST, value=Query().k, step=1, label="Results", min_width=150, buttons=[])
        results = gr.HTML("", js_on_load=html.static("page.js"), apply_default_css=False, elem_id="results")
        with gr.Accordion("Map of the embeddings", open=False, elem_id="map-fold"):
            chart = gr.HTML(
                html.chart(page.collections), js_on_load=html.static("map.js"), apply_default_css=False, elem_id="map"
            )
        asked = gr.State(Query(target=page.targets[0]), time_to_live=_FORGOTTEN_AFTER)
        settings, outputs = [target, split, k, asked], [text, target, split, k, asked, results]
        for event in (text.submit, search.click):
            _connect(event, page.type, [text, *settings], outputs)
        for event in (target.input, split.input, k.release):
            _connect(event, page.change, [text, *settings], outputs)
        for event in (results.ask, chart.ask):
            _connect(event, page.ask, settings, outputs)
        _connect(results.visit, page.visit, [], outputs)
        _connect(photo.send, page.send, settings, outputs, _DECODED_AT_ONCE)
    blocks.queue(api_open=False, max_size=256)
    return blocks


def _connect(
    event: Callable[..., Any],
    answer: Callable[..., Shown],
    inputs: list[Any],
    outputs: list[Any],
    at_once: int = _AT_ONCE,
) -> None:
    event(
        answer, inputs, outputs, show_progress="hidden", api_visibility="private", trigger_mode="always_last",
        concurrency_limit=at_once,
    )  # fmt: skip


def _split_choices(splits: Sequence[str]) -> list[tuple[str, str]]:
    return [("All", EVERYWHERE), *((split, split) for split in splits)]


def _photo_button() -> str:
    return html.photo_button(uploads.MOST_BYTES)


def mount(page: Page, app: Any) -> None:
    """Put the page at the root of an application."""
    gr.mount_gradio_app(
        app,
        build(page),
        "/",
        footer_links=[],
        run_history=False,
        app_kwargs={"openapi_url": None, "docs_url": None, "redoc_url": None},
        show_error=False,
        max_file_size=uploads.MOST_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=_theme(),
        head=f"<style>{html.static('page.css')}</style>",  # as `css`, Gradio would rewrite its selectors
    )


def _theme() -> gr.themes.Base:
    """Fonts of the reader's own system: others would be asked for elsewhere, or be sent along."""
    sans = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    mono = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
    theme = gr.themes.Base(primary_hue="teal", neutral_hue="stone", font=sans, font_mono=mono, radius_size="md")
    dark_enough = {
        "button_primary_background_fill": "*primary_700",
        "button_primary_background_fill_dark": "*primary_700",
    }
    return theme.set(
        **dark_enough,
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_600",
        input_background_fill="*background_fill_primary",
        checkbox_label_background_fill="transparent",
        checkbox_label_background_fill_hover="*background_fill_secondary",
        checkbox_label_background_fill_selected="*background_fill_secondary",
        block_label_text_color="*body_text_color_subdued",
    )
