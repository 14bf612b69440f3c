"""Scenes: the same seed gives the same files, and every caption is true of what was drawn."""

import json
import re
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xmodal.data.scene_captions import BACKDROP_NAMES, NUMBERS, SHAPE_NAMES, captions, relation
from xmodal.data.scene_drawing import CORNERS, PATTERNS, draw_scene
from xmodal.data.scene_model import BACKDROPS, COLOURS, RADII, SHAPES, Scene, Thing, sample_scene
from xmodal.data.scenes import SceneData
from xmodal.errors import ConfigError, DataError
from xmodal.tokens import tokenize

SMALL: dict[str, Any] = {"train_size": 6, "val_size": 2, "test_size": 3, "image_size": 64}
SCENES = [sample_scene(Random(seed), 4) for seed in range(300)]
SIDES = {"left": "left", "right": "right", "above": "above", "over": "above", "below": "below", "under": "below"}
NAMES_OF = {name: shape for shape in SHAPES for name in SHAPE_NAMES.get(shape, (shape,))}
SIZES = {"small": "small", "little": "small", "large": "large", "big": "large"}
LOOKS = {"striped": "striped", "dotted": "dotted", "spotted": "dotted"}
PHRASE = re.compile(rf"\ban? ((?:\w+ ){{0,2}})({'|'.join(COLOURS)}) ({'|'.join(NAMES_OF)})\b")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def named(match: re.Match[str], scene: Scene) -> Thing:
    """The one object that a phrase speaks of; its size and texture must be those said (unsaid: medium, plain)."""
    adjectives, colour, shape = match.groups()
    found = [thing for thing in scene.things if (thing.colour, thing.shape) == (colour, NAMES_OF[shape])]
    assert len(found) == 1
    words = adjectives.split()
    assert [SIZES[word] for word in words if word in SIZES] == [s for s in [found[0].size] if s != "medium"]
    assert [LOOKS[word] for word in words if word in LOOKS] == [t for t in [found[0].texture] if t != "plain"]
    return found[0]


def test_same_seed_same_files(tmp_path: Path) -> None:
    first = SceneData("scenes", tmp_path / "a", **SMALL)
    second = SceneData("scenes", tmp_path / "b", **SMALL)
    assert first.load().captions == second.load().captions
    assert content(first.folder) == content(second.folder)
    assert len(content(first.folder)) == 12


def test_another_seed_gives_other_scenes(tmp_path: Path) -> None:
    one, other = (SceneData("scenes", tmp_path, **SMALL, seed=seed) for seed in (0, 1))
    assert not {c.text for c in one.load().captions} & {c.text for c in other.load().captions}
    same = [name for name, data in content(one.folder).items() if data == content(other.folder)[name]]
    assert same == []


def test_a_larger_data_set_begins_with_the_smaller(tmp_path: Path) -> None:
    small = SceneData("scenes", tmp_path, **SMALL)
    large = SceneData("scenes", tmp_path, **{**SMALL, "train_size": 9})
    few, many = small.load(), large.load()
    for role in ("train", "val", "test"):
        texts = [[items.captions[row].text for row in items.caption_rows(role)] for items in (few, many)]
        assert texts[1][: len(texts[0])] == texts[0]


def test_what_was_made_is_read_like_any_data_set(tmp_path: Path) -> None:
    source = SceneData("scenes", tmp_path, **SMALL, captions_per_image=7)
    assert source.missing() == []
    items = source.load()
    assert [len(items.image_rows(role)) for role in ("train", "val", "test")] == [6, 2, 3]
    assert items.caption_images.tolist() == [row for row in range(11) for _ in range(7)]
    assert items.has_photos
    for image in items.images:
        assert image.path is not None
        assert Image.open(image.path).size == (64, 64)


def test_scenes_are_made_once_and_half_made_ones_never_count(tmp_path: Path) -> None:
    source = SceneData("scenes", tmp_path, **SMALL)
    (tmp_path / ".making-dead" / "images").mkdir(parents=True)
    source.load()
    before = {path: path.stat().st_mtime_ns for path in source.folder.rglob("*")}
    source.load()
    assert {path: path.stat().st_mtime_ns for path in source.folder.rglob("*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".making-dead", source.folder.name])


def test_a_run_that_comes_second_takes_what_the_first_made(tmp_path: Path) -> None:
    first = SceneData("scenes", tmp_path, **SMALL)
    first.load()
    before = content(first.folder)
    first._make()
    assert content(first.folder) == before
    assert [path.name for path in tmp_path.iterdir()] == [first.folder.name]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"can't be written below .*file .*data.root="):
        SceneData("scenes", tmp_path / "file", **SMALL).load()


def test_parameters_have_folders_of_their_own(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {"seed": 3}, {"train_size": 7}, {"max_objects": 2}, {"captions_per_image": 4}]
    assert len({SceneData("scenes", tmp_path, **{**SMALL, **change}).folder for change in changes}) == len(changes)


def test_ranges_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        SceneData("scenes", "anywhere", train_size=0, max_objects=5, image_size=8)
    assert [fault.split()[0] for fault in caught.value.faults] == [
        "data.train_size",
        "data.max_objects",
        "data.image_size",
    ]
    assert "between 1 and 4, found 5" in caught.value.faults[1]


def test_the_geometry_is_kept_beside_the_captions(tmp_path: Path) -> None:
    source = SceneData("scenes", tmp_path, **SMALL)
    source.load()
    document = json.loads((source.folder / "dataset.json").read_text())
    for entry in document["images"]:
        scene = Scene(**{**entry["scene"], "things": tuple(Thing(**thing) for thing in entry["scene"]["things"])})
        text = entry["sentences"][0]["raw"]
        assert len({named(match, scene) for match in PHRASE.finditer(text)}) == len(scene.things)


@pytest.mark.parametrize("scene", SCENES[:60])
def test_objects_lie_inside_and_apart(scene: Scene) -> None:
    assert 1 <= len(scene.things) <= 4
    assert len({(thing.colour, thing.shape) for thing in scene.things}) == len(scene.things)
    for number, thing in enumerate(scene.things):
        assert thing.colour not in BACKDROPS[scene.backdrop].hides
        assert RADII[thing.size][0] <= thing.radius <= RADII[thing.size][1]
        assert thing.radius <= min(thing.x, thing.y, 1 - thing.x, 1 - thing.y) + 0.01
        for other in scene.things[:number]:
            apart = max(abs(thing.x - other.x), abs(thing.y - other.y))
            assert apart >= 0.9 * max(thing.radius, other.radius) * 2


def test_every_part_occurs() -> None:
    things = [thing for scene in SCENES for thing in scene.things]
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {thing.size for thing in things} == set(RADII)
    assert {scene.backdrop for scene in SCENES} == set(BACKDROPS) == set(BACKDROP_NAMES)
    assert {len(scene.things) for scene in SCENES} == {1, 2, 3, 4}


@pytest.mark.parametrize("seed", range(150))
def test_captions_are_true(seed: int) -> None:
    scene = SCENES[seed]
    texts = captions(scene, 10, Random(seed))
    assert len(set(texts[:5])) == 5
    for text in texts:
        mentioned = [named(match, scene) for match in PHRASE.finditer(text)]
        assert mentioned, text
        assert any(name.split()[-1] in text for name in BACKDROP_NAMES[scene.backdrop])
        assert scene.tone in tokenize(text) if scene.tone else not {"pale", "dark"} & set(tokenize(text))
    for whole in (texts[0], texts[2], texts[3]):
        assert {named(match, scene) for match in PHRASE.finditer(whole)} == set(scene.things)


@pytest.mark.parametrize("seed", range(150))
def test_relations_are_those_of_the_centres(seed: int) -> None:
    scene = SCENES[seed]
    for number in range(4):
        text = captions(scene, 2, Random(f"{seed}-{number}"))[1]
        if len(scene.things) == 1:
            continue
        (first, start), (second, end) = [(named(m, scene), m.end()) for m in PHRASE.finditer(text)]
        side = next(SIDES[word] for word in tokenize(text[start:end]) if word in SIDES)
        dx, dy = first.x - second.x, first.y - second.y
        gap = {"left": -dx, "right": dx, "above": -dy, "below": dy}[side]
        assert gap > 0.25, text
        assert gap >= max(abs(dx), abs(dy)) - 1e-9


@pytest.mark.parametrize("seed", range(100))
def test_places_are_where_the_objects_are(seed: int) -> None:
    scene = SCENES[seed]
    text = captions(scene, 4, Random(seed))[3]
    for match in PHRASE.finditer(text):
        thing = named(match, scene)
        said = re.match(r" (?:in|at) the ((?:top|bottom|left|right|centre)(?: (?:left|right))?)", text[match.end() :])
        assert said is not None, text
        words = said.group(1).split()
        assert ("left" in words, "right" in words) == (thing.x < 1 / 3, thing.x > 2 / 3)
        assert ("top" in words, "bottom" in words) == (thing.y < 1 / 3, thing.y > 2 / 3)


@pytest.mark.parametrize("seed", range(100))
def test_counts_and_the_biggest(seed: int) -> None:
    scene = SCENES[seed]
    text = captions(scene, 5, Random(seed))[4]
    assert text.startswith(f"{NUMBERS[len(scene.things) - 1]} object")
    first = PHRASE.search(text)
    assert first is not None
    assert named(first, scene).radius == max(thing.radius for thing in scene.things)


def test_relation_of_close_objects_is_none() -> None:
    thing = SCENES[0].things[0]
    assert relation(thing, replace(thing, x=thing.x + 0.1)) is None
    assert relation(thing, replace(thing, x=thing.x + 0.4)) == "left"
    assert relation(thing, replace(thing, y=thing.y - 0.5, x=thing.x + 0.4)) == "below"


@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_is_drawn_where_the_scene_says(shape: str) -> None:
    thing = Thing(shape, "red", "plain", "large", 0.7, 0.3, 0.22, 5.0)
    picture = np.asarray(draw_scene(Scene("grass", "", (thing,)), 128, Random(0)), np.float32)
    is_red = np.abs(picture - COLOURS["red"]).sum(axis=2) < 30
    rows, columns = np.nonzero(is_red)
    assert is_red.mean() > 0.02
    assert rows.min() >= 128 * (0.3 - 0.25)
    assert rows.max() <= 128 * (0.3 + 0.25)
    assert columns.mean() / 128 == pytest.approx(0.7, abs=0.03)


def test_textures_and_tones_change_the_picture() -> None:
    thing = Thing("circle", "red", "plain", "large", 0.5, 0.5, 0.22, 0.0)
    scenes = [Scene("grass", "", (replace(thing, texture=texture),)) for texture in ("plain", "striped", "dotted")]
    inside = [np.asarray(draw_scene(scene, 128, Random(0)), np.float32)[52:76, 52:76] for scene in scenes]
    assert inside[0].std(axis=(0, 1)).max() < 1
    assert min(inside[1].std(axis=(0, 1)).max(), inside[2].std(axis=(0, 1)).max()) > 20
    light = [np.asarray(draw_scene(Scene("grass", tone, ()), 64, Random(0))).mean() for tone in ("dark", "", "pale")]
    assert light[0] + 20 < light[1] < light[2] - 20


def test_every_pattern_and_shape_can_be_drawn() -> None:
    assert {backdrop.pattern for backdrop in BACKDROPS.values()} == set(PATTERNS)
    assert {"circle", "ring", *CORNERS} == set(SHAPES)
    for name in BACKDROPS:
        assert draw_scene(Scene(name, "pale", ()), 48, Random(1)).size == (48, 48)
