"""The shapes world: captions, held-out combinations, rendering and the oracle."""

import itertools

import numpy as np
import pytest

from ditscope.shapes import world as shapes
from ditscope.shapes.oracle import UNCLEAR, oracle


def test_there_are_1920_scenes_and_288_are_held_out():
    assert len(shapes.all_scenes()) == len(set(shapes.all_scenes())) == 1920
    assert len(shapes.held_out()) == 288
    assert not set(shapes.held_out()) & set(shapes.train_scenes())
    assert len(shapes.train_scenes()) == 1920 - 288


def test_every_value_and_pair_occurs_in_training():
    for first, second in itertools.combinations(shapes.ATTRIBUTES, 2):
        pairs = {(getattr(s, first), getattr(s, second)) for s in shapes.train_scenes()}
        assert pairs == set(itertools.product(shapes.VALUES[first], shapes.VALUES[second]))


def test_held_out_list_never_changes():
    assert shapes.caption(shapes.held_out()[0]) == "a small red circle at the bottom on a white background"
    assert shapes.caption(shapes.held_out()[-1]) == "a large pink star at the center on a gray background"


@pytest.mark.parametrize("template", range(len(shapes.TEMPLATES)))
def test_captions_parse_back(template):
    for scene in shapes.all_scenes():
        assert shapes.parse_caption(shapes.caption(scene, template)) == scene.attributes()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("A big GREY disc", {"size": "large", "background": "gray", "shape": "circle"}),
        ("a red and blue star", {"shape": "star"}),
        ("a red, red square", {"colour": "red", "shape": "square"}),
        ("redness of squares", {}),
    ],
)
def test_parse_names_only_what_is_said_once(text, expected):
    assert shapes.parse_caption(text) == dict.fromkeys(shapes.ATTRIBUTES) | expected


def test_render_is_deterministic_and_jitters():
    scene = shapes.all_scenes()[0]
    first, again = (shapes.render(scene, np.random.default_rng(3)) for _ in range(2))
    other = shapes.render(scene, np.random.default_rng(4))
    assert first.size == (64, 64) and first.mode == "RGB"
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_unknown_shape_names_the_choices():
    with pytest.raises(ValueError, match="choose from circle"):
        shapes.coverage("hexagon", 32, 32, 8)


def test_oracle_reads_plain_renders():
    rng = np.random.default_rng(0)
    for scene in shapes.all_scenes()[::7]:
        assert oracle(shapes.render(scene, rng)) == scene.attributes()


def test_oracle_reads_augmented_renders():
    rng = np.random.default_rng(1)
    scenes = shapes.all_scenes()[::5]
    wrong = [s for s in scenes if oracle(shapes.augment(shapes.render(s, rng), rng)) != s.attributes()]
    assert len(wrong) <= 0.015 * len(scenes), wrong


def test_oracle_is_unclear_about_what_is_no_scene():
    rng = np.random.default_rng(2)
    flat = np.full((64, 64, 3), 248, np.uint8)
    attributes = oracle(shapes.Image.fromarray(flat))
    assert attributes["background"] == "white"
    assert {attributes[name] for name in ("shape", "colour", "size", "place")} == {UNCLEAR}
    noise = oracle(shapes.Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    assert UNCLEAR in noise.values()


def test_oracle_takes_other_sizes_of_picture():
    scene = shapes.all_scenes()[700]
    picture = shapes.render(scene, np.random.default_rng(5)).resize((256, 256))
    assert oracle(picture) == scene.attributes()


@pytest.mark.parametrize("count", range(6))
def test_descriptions_name_what_they_are_given_and_nothing_else(count):
    scene = shapes.all_scenes()[777].attributes()
    for names in itertools.combinations(shapes.ATTRIBUTES, count):
        named = {name: scene[name] for name in names}
        text = shapes.describe(named)
        assert {k: v for k, v in shapes.parse_caption(text).items() if v is not None} == named
        assert shapes.is_description(text)
    assert shapes.describe(scene) == shapes.caption(shapes.all_scenes()[777])
    assert shapes.describe({}) == "a shape"


@pytest.mark.parametrize(
    "text", ["", "a red", "red ring", "a ring red", "a ring at the left at the left", "a ring on a background"]
)
def test_other_texts_are_no_descriptions(text):
    assert not shapes.is_description(text)
