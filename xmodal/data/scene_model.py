"""What a built-in scene is: a few objects in front of a backdrop, drawn at random from a seed."""

from dataclasses import dataclass
from random import Random

GENERATOR_VERSION = 1  # part of the name of the cached folder: raise it whenever pictures or captions change

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (225, 25, 30),
    "orange": (255, 140, 0),
    "yellow": (255, 232, 20),
    "green": (20, 150, 50),
    "turquoise": (40, 215, 205),
    "blue": (25, 60, 220),
    "purple": (130, 30, 170),
    "pink": (255, 110, 190),
    "white": (250, 250, 250),
    "black": (12, 12, 12),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
TEXTURES = ("plain", "plain", "striped", "dotted")
RADII = {"small": (0.10, 0.13), "medium": (0.155, 0.18), "large": (0.21, 0.235)}
TONES = {"pale": 0.45, "": 0.0, "dark": -0.5}  # how far a backdrop is mixed with white (+) or black (-)


@dataclass(frozen=True)
class Backdrop:
    """A kind of background: its pattern, two colours, and the object colours that would be lost on it."""

    pattern: str
    first: Colour
    second: Colour
    hides: tuple[str, ...] = ()


BACKDROPS: dict[str, Backdrop] = {
    "grass": Backdrop("blades", (70, 165, 50), (110, 200, 70), ("green",)),
    "sand": Backdrop("grains", (225, 195, 130), (190, 155, 95), ("yellow",)),
    "sky": Backdrop("fade", (70, 140, 245), (170, 210, 255), ("blue", "turquoise")),
    "night": Backdrop("stars", (20, 20, 55), (255, 255, 220), ("black",)),
    "snow": Backdrop("flakes", (235, 240, 250), (200, 212, 235), ("white",)),
    "brick": Backdrop("bricks", (165, 60, 45), (215, 190, 175), ("red",)),
    "water": Backdrop("waves", (20, 130, 140), (60, 180, 190), ("turquoise", "green")),
    "wood": Backdrop("planks", (125, 80, 40), (85, 50, 22), ("orange",)),
    "sunset": Backdrop("fade", (250, 90, 60), (255, 205, 90), ("orange", "red", "yellow")),
    "tiles": Backdrop("checks", (150, 150, 150), (105, 105, 105), ()),
    "curtain": Backdrop("folds", (120, 50, 150), (165, 95, 195), ("purple",)),
    "wallpaper": Backdrop("spots", (255, 175, 205), (255, 225, 235), ("pink",)),
}


@dataclass(frozen=True)
class Thing:
    """One object; centre and radius are fractions of the picture's side, the angle is in degrees."""

    shape: str
    colour: str
    texture: str
    size: str
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Scene:
    """A backdrop in one of three tones, and the objects in front of it, no two alike in colour and shape."""

    backdrop: str
    tone: str
    things: tuple[Thing, ...]


def sample_scene(random: Random, max_things: int) -> Scene:
    """One scene with 1 … ``max_things`` objects that don't overlap."""
    backdrop = random.choice(list(BACKDROPS))
    colours = [colour for colour in COLOURS if colour not in BACKDROPS[backdrop].hides]
    count = random.randint(1, max_things)
    kinds = random.sample([(colour, shape) for colour in colours for shape in SHAPES], count)
    places = _places(random, count)
    things = tuple(_thing(random, kind, place) for kind, place in zip(kinds, places, strict=True))
    return Scene(backdrop, random.choice(list(TONES)), things)


def _thing(random: Random, kind: tuple[str, str], place: tuple[float, float]) -> Thing:
    colour, shape = kind
    size = random.choice(list(RADII))
    return Thing(
        shape=shape,
        colour=colour,
        texture=random.choice(TEXTURES),
        size=size,
        x=round(place[0] + random.uniform(-0.02, 0.02), 4),
        y=round(place[1] + random.uniform(-0.02, 0.02), 4),
        radius=round(random.uniform(*RADII[size]), 4),
        angle=round(random.uniform(-12, 12), 1),
    )


def _places(random: Random, count: int) -> list[tuple[float, float]]:
    """Centres far enough apart for the largest objects: the middle of a side, halves, or quarters of the picture."""
    quarters = [(0.255, 0.255), (0.745, 0.255), (0.255, 0.745), (0.745, 0.745)]
    if count == 1:
        return [random.choice([*quarters, (0.5, 0.5)])]
    if count == 2 and random.random() < 0.5:
        return random.choice([[(0.255, 0.5), (0.745, 0.5)], [(0.5, 0.255), (0.5, 0.745)]])
    return random.sample(quarters, count)
