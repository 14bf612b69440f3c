"""Pictures of scenes: drawn at twice the size, then reduced, so that edges are smooth."""

from collections.abc import Callable
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from xmodal.data.scene_model import BACKDROPS, COLOURS, TONES, Colour, Scene, Thing

SUPERSAMPLING = 2
Blend = np.ndarray  # (side, side) float in 0 … 1: how much of a backdrop's second colour shows


def draw_scene(scene: Scene, side: int, random: Random) -> Image.Image:
    """The scene as an RGB picture of ``side`` × ``side`` pixels; ``random`` scatters the grain of the backdrop."""
    large = side * SUPERSAMPLING
    picture = _draw_backdrop(scene, large, np.random.default_rng(random.getrandbits(64)))
    for thing in scene.things:
        picture.paste(_fill(thing, large), mask=_outline(thing, large, 1.12))
        picture.paste(_surface(thing, large), mask=_outline(thing, large, 1.0))
    return picture.resize((side, side), Image.Resampling.BOX)


def mixed(first: Colour, second: Colour, share: float) -> Colour:
    """``first`` with ``share`` (0 … 1) of ``second``."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def toned(colour: Colour, tone: str) -> Colour:
    """The colour in a pale, unchanged or dark tone."""
    share = TONES[tone]
    return mixed(colour, (255, 255, 255) if share > 0 else (0, 0, 0), abs(share))


def _draw_backdrop(scene: Scene, side: int, rng: np.random.Generator) -> Image.Image:
    backdrop = BACKDROPS[scene.backdrop]
    blend = PATTERNS[backdrop.pattern](side, rng)[..., None]
    first, second = (np.array(toned(colour, scene.tone), np.float32) for colour in (backdrop.first, backdrop.second))
    return Image.fromarray((first + (second - first) * blend).round().astype(np.uint8))


def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Row (downwards) and column of each pixel, 0 … 1."""
    axis = np.arange(side, dtype=np.float32) / side
    return axis[:, None] + 0 * axis[None, :], axis[None, :] + 0 * axis[:, None]


def _coarse(side: int, rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Random blocks, ``rows`` × ``columns`` of them, enlarged to the whole picture."""
    noise = Image.fromarray((rng.random((rows, columns)) * 255).astype(np.uint8))
    return np.asarray(noise.resize((side, side), Image.Resampling.BILINEAR), np.float32) / 255


def _fade(side: int, rng: np.random.Generator) -> Blend:
    return _grid(side)[0]


def _blades(side: int, rng: np.random.Generator) -> Blend:
    return (_coarse(side, rng, 14, 112) > 0.5).astype(np.float32)


def _grains(side: int, rng: np.random.Generator) -> Blend:
    return _coarse(side, rng, 112, 112)


def _flakes(side: int, rng: np.random.Generator) -> Blend:
    return _coarse(side, rng, 9, 9)


def _stars(side: int, rng: np.random.Generator) -> Blend:
    return _scattered(side, [(*rng.random(2), 0.005 + 0.007 * rng.random()) for _ in range(45)])


def _spots(side: int, rng: np.random.Generator) -> Blend:
    return _scattered(side, [((i + j % 2 / 2) / 8, j / 8, 0.025) for i in range(9) for j in range(9)])


def _scattered(side: int, discs: list[tuple[float, float, float]]) -> Blend:
    layer = Image.new("L", (side, side))
    draw = ImageDraw.Draw(layer)
    for x, y, radius in discs:
        draw.ellipse([side * (x - radius), side * (y - radius), side * (x + radius), side * (y + radius)], fill=255)
    return np.asarray(layer, np.float32) / 255


def _bricks(side: int, rng: np.random.Generator) -> Blend:
    down, across = _grid(side)
    course = np.floor(down * 12)
    joint = (down * 12 % 1 < 0.14) | ((across * 6 + course % 2 / 2) % 1 < 0.07)
    return joint.astype(np.float32)


def _waves(side: int, rng: np.random.Generator) -> Blend:
    down, across = _grid(side)
    return 0.5 + 0.5 * np.sin(2 * np.pi * (9 * down + 0.35 * np.sin(2 * np.pi * (2 * across + rng.random()))))


def _planks(side: int, rng: np.random.Generator) -> Blend:
    down, _ = _grid(side)
    return np.where(down * 7 % 1 < 0.08, 1.0, 0.6 * _coarse(side, rng, 112, 5)).astype(np.float32)


def _checks(side: int, rng: np.random.Generator) -> Blend:
    down, across = _grid(side)
    return ((np.floor(down * 6) + np.floor(across * 6)) % 2).astype(np.float32)


def _folds(side: int, rng: np.random.Generator) -> Blend:
    return 0.5 + 0.5 * np.sin(2 * np.pi * (8 * _grid(side)[1] + rng.random()))


PATTERNS: dict[str, Callable[[int, np.random.Generator], Blend]] = {
    "fade": _fade,
    "blades": _blades,
    "grains": _grains,
    "flakes": _flakes,
    "stars": _stars,
    "spots": _spots,
    "bricks": _bricks,
    "waves": _waves,
    "planks": _planks,
    "checks": _checks,
    "folds": _folds,
}


def _fill(thing: Thing, side: int) -> Image.Image:
    """The colour of a thin rim, so that an object stands out from any backdrop."""
    rim = (255, 255, 255) if thing.colour == "black" else mixed(COLOURS[thing.colour], (0, 0, 0), 0.7)
    return Image.new("RGB", (side, side), rim)


def _surface(thing: Thing, side: int) -> Image.Image:
    """Plain colour, or stripes or dots of a lighter (on light colours: darker) one."""
    colour = COLOURS[thing.colour]
    contrast: Colour = (40, 40, 40) if sum(colour) > 480 else (255, 255, 255)
    surface = Image.new("RGB", (side, side), colour)
    draw = ImageDraw.Draw(surface)
    step = side / 16
    if thing.texture == "striped":
        for number in range(-16, 17):
            start = number * step * 1.4
            draw.line([(start, 0), (start + side, side)], fill=mixed(colour, contrast, 0.75), width=round(step * 0.4))
    elif thing.texture == "dotted":
        for x, y in [(i * step, j * step) for i in range(17) for j in range(17)]:
            draw.ellipse([x - step / 4, y - step / 4, x + step / 4, y + step / 4], fill=mixed(colour, contrast, 0.8))
    return surface


def _outline(thing: Thing, side: int, scale: float) -> Image.Image:
    """White where the object is; ``scale`` enlarges it around its centre."""
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    radius = thing.radius * side * scale
    centre = np.array([thing.x, thing.y]) * side
    if thing.shape in ("circle", "ring"):
        draw.ellipse([*(centre - radius * 0.95), *(centre + radius * 0.95)], fill=255)
        if thing.shape == "ring":
            hole = thing.radius * side * (0.95 - scale / 2)  # a wider rim leaves a narrower hole
            draw.ellipse([*(centre - hole), *(centre + hole)], fill=0)
        return mask
    angle = np.deg2rad(thing.angle)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = centre + radius * np.array(CORNERS[thing.shape]) @ turn.T
    draw.polygon([(float(x), float(y)) for x, y in corners], fill=255)
    return mask


def _star() -> list[tuple[float, float]]:
    angles = [np.pi * number / 5 for number in range(10)]
    return [((1, 0.45)[n % 2] * np.sin(a), -(1, 0.45)[n % 2] * np.cos(a)) for n, a in enumerate(angles)]


def _heart() -> list[tuple[float, float]]:
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x = np.sin(angles) ** 3
    y = (13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)) / 16
    return [(float(a), -float(b) - 0.08) for a, b in zip(x, y, strict=True)]


_ARM = 0.32
CORNERS: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
    "triangle": [(0, -1), (0.95, 0.75), (-0.95, 0.75)],
    "diamond": [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)],
    "star": _star(),
    "heart": _heart(),
    "cross": [
        *[(-_ARM, -0.95), (_ARM, -0.95), (_ARM, -_ARM), (0.95, -_ARM), (0.95, _ARM), (_ARM, _ARM)],
        *[(_ARM, 0.95), (-_ARM, 0.95), (-_ARM, _ARM), (-0.95, _ARM), (-0.95, -_ARM), (-_ARM, -_ARM)],
    ],
}
