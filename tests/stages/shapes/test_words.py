"""What is said about a scene: canonical, short, and with its phrases in place."""

from dataclasses import replace

import numpy as np

from stages.shapes.scenes import Scene, Thing
from stages.shapes.words import (
    dialogue,
    grounded_caption,
    segment_description,
    short_caption,
)

RING = Thing(
    shape="ring", colour="orange", size="large", texture="plain", x=0.2, y=0.5, radius=0.2, angle=0.0, rgb=(0, 0, 0)
)
BAR = replace(RING, shape="bar", colour="blue", size="small", texture="striped")
CROSS = replace(RING, shape="cross", colour="green", texture="dotted")


def scene(*things: Thing) -> Scene:
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    return Scene(things=things, ground="sandy", pixels_HW3=pixels, owner_HW=np.zeros((8, 8), dtype=np.int8))


def test_short_captions_name_colour_and_shape() -> None:
    assert short_caption(scene(RING)) == "An orange ring."
    assert short_caption(scene(RING, BAR)) == "An orange ring and a blue bar."
    assert short_caption(scene(BAR, RING, CROSS)) == "A blue bar, an orange ring and a green cross."


def test_phrases_of_a_grounded_caption_are_its_own_characters() -> None:
    said = grounded_caption(scene(RING, BAR, CROSS))

    assert said.text == ("An orange ring, a blue bar and a green cross on a sandy ground.")
    assert [said.text[start:end] for start, end in said.spans] == [
        "An orange ring", "a blue bar", "a green cross", "a sandy ground",
    ]  # fmt: skip


def test_descriptions_say_where_a_segment_is() -> None:
    three = scene(RING, BAR, CROSS)

    assert segment_description(three, 0) == "A large orange ring on the left of a blue bar."
    assert segment_description(three, 2) == "A large dotted green cross on the right of a blue bar."
    assert segment_description(three, -1) == "A sandy ground behind three shapes."
    assert segment_description(scene(RING), 0) == "A large orange ring alone on a sandy ground."
    assert segment_description(scene(RING), -1) == "A sandy ground behind one shape."


def test_dialogues_count_and_ask_only_what_has_one_answer() -> None:
    turns = dict(dialogue(scene(RING, BAR, replace(RING, colour="red"))))

    assert turns["How many shapes are there?"] == "Three."
    assert turns["What colour is the bar?"] == "Blue."
    assert "What colour is the ring?" not in turns  # there are two
    assert turns["Where is the orange ring?"] == "On the left of the blue bar."
    assert turns["Where is the red ring?"] == "On the right of the blue bar."
