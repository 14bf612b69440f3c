"""A figure as the files of a paper (PDF, PNG), and as part of a page (SVG in the colours of the page)."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xmodal.atomic import complete_file
from xmodal.reporting.style import COLUMN, RC, VARIABLES

_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_COLOUR = re.compile("|".join(VARIABLES))
_FAMILY = re.compile(r"font-family:[^;]*;?\s*")
_REFERENCES = ("clip-path", "mask", "fill")  # attributes that may name an element: url(#…)
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _LINK)


@dataclass(frozen=True)
class Picture:
    """One figure with one pair of axes.

    Attributes:
        name: of its files, unique in a report.
        title: in words; read out in the place of the picture.
        draw: draws into axes.
        size: width and height in inches.
    """

    name: str
    title: str
    draw: Callable[[Axes], None]
    size: tuple[float, float] = (COLUMN, 2.3)


@dataclass(frozen=True)
class Plate:
    """Pictures that are looked at together.

    Attributes:
        anchor: what it is called within its section.
        section: the group of runs that it is about.
        title: in words.
        caption: what is shown, of which runs, and how to read it.
        pictures: shown at once.
        more: shown when asked for.
        is_overview: whether a reader wants it before any table.
    """

    anchor: str
    section: str
    title: str
    caption: str
    pictures: tuple[Picture, ...]
    more: tuple[Picture, ...] = ()
    is_overview: bool = False


@dataclass(frozen=True)
class Drawn:
    """A picture in the formats of a report."""

    picture: Picture
    pdf: bytes
    png: bytes
    svg: str

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """How a notebook shows it: half as large again as on paper."""
        return self.png, {"width": round(1.5 * 96 * self.picture.size[0])}


def drawn(picture: Picture) -> Drawn:
    """The same bytes for the same picture: no dates, ids made of names."""
    with matplotlib.rc_context(RC | {"svg.hashsalt": picture.name}):
        figure = Figure(figsize=picture.size, layout="constrained")
        picture.draw(figure.add_subplot())
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the places just found hold for all formats
        pdf = _saved(figure, "pdf", {"CreationDate": None})
        png = _saved(figure, "png", {})
        svg = _saved(figure, "svg", {"Date": None}, transparent=True)
    return Drawn(picture, pdf, png, for_page(svg, picture.name, picture.title))


def write_pictures(pictures: Sequence[Drawn], folder: Path) -> list[Path]:
    """Write each as ``.pdf`` and ``.png``.

    Raises:
        OSError: the folder can't be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for one in pictures:
        for suffix, content in (("pdf", one.pdf), ("png", one.png)):
            with complete_file(folder / f"{one.picture.name}.{suffix}") as partial:
                partial.write_bytes(content)
            written.append(folder / f"{one.picture.name}.{suffix}")
    return written


def for_page(svg: bytes, name: str, title: str) -> str:
    """An element for a page: as wide as there is room, in the font and the colours of the page, its ids its own.

    Args:
        svg: as matplotlib writes it.
        name: what its ids begin with.
        title: read out in its place.
    """
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):  # a style would hold for the whole page
                parent.remove(child)
    for element in root.iter():
        _adapt(element, name)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"role": "img", "aria-label": title, "class": "figure", "stroke-linejoin": "round"}
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(element: ElementTree.Element, name: str) -> None:
    if "id" in element.attrib:
        element.set("id", f"{name}-{element.attrib['id']}")
    if element.get(f"{{{_LINK}}}href", "").startswith("#"):
        element.set(f"{{{_LINK}}}href", f"#{name}-{element.attrib[f'{{{_LINK}}}href'][1:]}")
    for attribute in _REFERENCES:
        if attribute in element.attrib:
            element.set(attribute, element.attrib[attribute].replace("url(#", f"url(#{name}-"))
    if "style" in element.attrib:
        style = _FAMILY.sub("", element.attrib["style"])
        element.set("style", _COLOUR.sub(lambda found: f"var({VARIABLES[found[0]]})", style))


def _saved(figure: Figure, suffix: str, metadata: dict[str, None], transparent: bool = False) -> bytes:
    content = BytesIO()
    figure.savefig(content, format=suffix, metadata=metadata, transparent=transparent)
    return content.getvalue()
