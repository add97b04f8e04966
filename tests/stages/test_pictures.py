"""What a drawn answer shows: every phrase in the colour of its pixels."""

import numpy as np
from PIL import Image

from stages.pictures import PALETTE, PANEL_WIDTH_PX, Mark, Panel, _inner_point, contact_sheet, draw_panels

GREY = Image.new("RGB", (40, 40), (128, 128, 128))
LEFT = np.zeros((40, 40), dtype=np.bool_)
LEFT[:, :10] = True


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[start : start + 2], 16) for start in (1, 3, 5))


def count(picture: Image.Image, colour: str) -> int:
    return int((np.asarray(picture) == rgb(colour)).all(axis=-1).sum())


def panel(*marks: Mark, caption: str = "a dog and a cat") -> Panel:
    return Panel(title="Trained", caption=caption, marks=marks)


def test_phrase_and_mask_have_the_same_colour() -> None:
    picture = draw_panels(GREY, [panel(Mark(phrase="a dog", span=(0, 5), mask_HW=LEFT))])

    pixels = np.asarray(picture)
    below = Image.fromarray(pixels[-60:])  # the caption
    above = Image.fromarray(pixels[:-60])  # the image
    assert count(below, PALETTE[0]) > 300
    assert count(above, PALETTE[0]) > 300


def test_small_images_grow_by_a_whole_factor_and_large_ones_shrink() -> None:
    small = draw_panels(GREY, [panel()])
    large = draw_panels(Image.new("RGB", (2000, 1000)), [panel()])

    assert small.width == 9 * 40 + 24
    assert large.width == PANEL_WIDTH_PX + 24


def test_equal_phrases_have_equal_colours_in_all_panels() -> None:
    cat, dog = Mark(phrase="a cat", span=(10, 15), mask_HW=LEFT), Mark(phrase="A  Dog", span=(0, 5), mask_HW=LEFT)
    truth = panel(Mark(phrase="a dog", span=(0, 5), mask_HW=LEFT))

    picture = draw_panels(GREY, [truth, panel(cat, dog)])

    right = picture.crop((picture.width // 2, 0, *picture.size))
    assert count(right, PALETTE[0]) > 300
    assert count(right, PALETTE[1]) > 300
    assert count(right, PALETTE[2]) == 0


def test_a_phrase_without_pixels_is_underlined_not_filled() -> None:
    filled = draw_panels(GREY, [panel(Mark(phrase="a dog", span=(0, 5), mask_HW=LEFT))])
    empty = draw_panels(GREY, [panel(Mark(phrase="a dog", span=(0, 5), mask_HW=np.zeros_like(LEFT)))])

    assert 0 < count(empty, PALETTE[0]) < count(filled, PALETTE[0]) / 4


def test_odd_answers_are_drawn_too() -> None:
    word = "x" * 300
    marks = (
        Mark(phrase="inside", span=(2, 5), mask_HW=LEFT),
        Mark(phrase="", span=None, mask_HW=~LEFT),
        Mark(phrase="a dog", span=(0, 5), box_xyxy_px=(0, 0, 40, 40)),
        Mark(phrase=word, box_xyxy_px=(39, 39, 40, 40)),
        *(Mark(phrase=f"phrase {number}") for number in range(12)),
    )

    for image in (GREY, GREY.convert("L"), Image.new("RGB", (1, 1)), Image.new("RGB", (3000, 2))):
        fitting = marks if image.size == (40, 40) else marks[3:]
        assert draw_panels(image, [panel(*fitting), panel(caption="")]).height > 60


def test_a_contact_sheet_holds_every_picture() -> None:
    reds = [Image.new("RGB", (10, 5), (255, 0, 0))] * 3

    sheet = contact_sheet(reds, columns=2)

    assert sheet.size == (20, 10)
    assert count(sheet, "#FF0000") == 150


def test_the_number_of_a_ground_lies_deep_in_it_and_not_on_the_rim_of_what_stands_there() -> None:
    ground_HW = np.ones((100, 100), dtype=np.bool_)
    ground_HW[30:90, 35:85] = False

    x, y = _inner_point(ground_HW)

    assert ground_HW[max(0, y - 14) : y + 15, max(0, x - 14) : x + 15].all()
