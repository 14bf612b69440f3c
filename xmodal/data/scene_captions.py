"""True sentences about a scene, in many wordings."""

from collections.abc import Callable
from random import Random

from xmodal.data.scene_model import Scene, Thing

APART = 0.3  # two centres at least this far apart (in sides of the picture) are left/right of or above/below each other

SHAPE_NAMES = {"circle": ("circle", "disc"), "square": ("square", "box"), "diamond": ("diamond", "rhombus")}
TEXTURE_NAMES = {"plain": ("",), "striped": ("striped",), "dotted": ("dotted", "spotted")}
SIZE_NAMES = {"small": ("small", "little"), "medium": ("",), "large": ("large", "big")}
BACKDROP_NAMES = {
    "grass": ("grass", "a lawn"),
    "sand": ("sand", "a sandy beach"),
    "sky": ("the sky", "a blue sky"),
    "night": ("a night sky", "the night sky with stars"),
    "snow": ("snow", "a snowy ground"),
    "brick": ("a brick wall", "bricks"),
    "water": ("water", "the sea"),
    "wood": ("wooden planks", "a wooden floor"),
    "sunset": ("a sunset", "an evening sky at sunset"),
    "tiles": ("grey tiles", "a tiled floor"),
    "curtain": ("a purple curtain", "a curtain"),
    "wallpaper": ("pink wallpaper", "pink wallpaper with spots"),
}
RELATIONS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
NUMBERS = ("one", "two", "three", "four")


def captions(scene: Scene, count: int, random: Random) -> list[str]:
    """``count`` captions, each from the next of the five ways to describe a scene; repeats are avoided if possible."""
    texts: list[str] = []
    for number in range(count):
        describe = WAYS[number % len(WAYS)]
        tries = [describe(scene, random) for _ in range(8)]
        texts.append(next((text for text in tries if text not in texts), tries[0]))
    return texts


def relation(first: Thing, second: Thing) -> str | None:
    """Where ``first`` is as seen from ``second``, along the axis on which they are farther apart; None if too close."""
    across, down = first.x - second.x, first.y - second.y
    if max(abs(across), abs(down)) < APART:
        return None
    if abs(across) >= abs(down):
        return "left" if across < 0 else "right"
    return "above" if down < 0 else "below"


def place(thing: Thing) -> str:
    """The part of the picture that holds the centre: ``top left``, ``left``, ``centre`` … (thirds of each side)."""
    vertical = "top" if thing.y < 1 / 3 else "bottom" if thing.y > 2 / 3 else ""
    horizontal = "left" if thing.x < 1 / 3 else "right" if thing.x > 2 / 3 else ""
    return f"{vertical} {horizontal}".strip() or "centre"


def _everything(scene: Scene, random: Random) -> str:
    """All objects, then the backdrop."""
    things = _joined([_phrase(thing, random) for thing in _shuffled(scene.things, random)])
    return f"{things} {random.choice(('on', 'in front of', 'against'))} {_backdrop(scene, random)}"


def _related(scene: Scene, random: Random) -> str:
    """Two objects and how they lie to each other; a single object and where it lies."""
    pair = _shuffled(scene.things, random)[:2]
    found = relation(pair[0], pair[1]) if len(pair) == 2 else None
    if found is None:
        return f"{_placed(pair[0], random)} of a picture of {_backdrop(scene, random)}"
    words = random.choice(RELATIONS[found])
    sentence = f"{_phrase(pair[0], random)} {random.choice(('', 'is '))}{words} {_phrase(pair[1], random)}"
    return f"{sentence}, with {_backdrop(scene, random)} behind them"


def _backdrop_first(scene: Scene, random: Random) -> str:
    """The backdrop, then all objects."""
    things = _joined([_phrase(thing, random) for thing in _shuffled(scene.things, random)])
    opening = random.choice(("in front of {}", "the background is {}; on it", "{} with", "on {} there is"))
    return f"{opening.format(_backdrop(scene, random))} {things}"


def _positions(scene: Scene, random: Random) -> str:
    """Every object with its place in the picture, then the backdrop."""
    things = _joined([_placed(thing, random) for thing in _shuffled(scene.things, random)])
    return (
        f"{things}, all on {_backdrop(scene, random)}"
        if len(scene.things) > 1
        else (f"{things}, {random.choice(('alone on', 'the only thing on'))} {_backdrop(scene, random)}")
    )


def _counted(scene: Scene, random: Random) -> str:
    """How many objects there are and the biggest of them, with its colour and place."""
    biggest = max(scene.things, key=lambda thing: thing.radius)
    backdrop = _backdrop(scene, random)
    if len(scene.things) == 1:
        return f"one object on {backdrop}: {_phrase(biggest, random)}"
    others = _joined([f"{_article(thing.colour)} one" for thing in scene.things if thing is not biggest])
    return (
        f"{NUMBERS[len(scene.things) - 1]} objects on {backdrop}: {_phrase(biggest, random)}, the biggest, and {others}"
    )


WAYS: tuple[Callable[[Scene, Random], str], ...] = (_everything, _related, _backdrop_first, _positions, _counted)


def _phrase(thing: Thing, random: Random) -> str:
    """``a small striped blue square``, size and texture in varying order."""
    adjectives = [random.choice(SIZE_NAMES[thing.size]), random.choice(TEXTURE_NAMES[thing.texture])]
    if random.random() < 0.3:
        adjectives.reverse()
    name = random.choice(SHAPE_NAMES.get(thing.shape, (thing.shape,)))
    return _article(" ".join(word for word in (*adjectives, thing.colour, name) if word))


def _placed(thing: Thing, random: Random) -> str:
    return f"{_phrase(thing, random)} {'in' if place(thing) == 'centre' else 'at'} the {place(thing)}"


def _backdrop(scene: Scene, random: Random) -> str:
    """``dark grass``, ``a pale night sky``: the tone goes before the name, after its article."""
    name = random.choice(BACKDROP_NAMES[scene.backdrop])
    head, _, rest = name.partition(" ")
    if not scene.tone:
        return name
    return (
        f"{'a' if head == 'an' else head} {scene.tone} {rest}" if head in ("a", "an", "the") else f"{scene.tone} {name}"
    )


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _shuffled(things: tuple[Thing, ...], random: Random) -> list[Thing]:
    return random.sample(things, len(things))
