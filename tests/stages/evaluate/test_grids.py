"""Retrieval to be looked at: what is shown as found is what was scored, and the right ones are marked."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor

from stages.evaluate.answers import Answer, Said
from stages.evaluate.grid_pictures import RIGHT, Look, draw_grid
from stages.evaluate.grids import Hit, Search, View, searches


def at(degrees: float) -> tuple[float, float]:
    """Returns a unit vector of a plane."""
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))


def answered(texts: Sequence[str], seen: Sequence[float], read: Sequence[float]) -> tuple[Answer, Answer]:
    """Makes an answer and a reference of one image: texts, and where regions and texts lie."""
    said = [Said(phrase="?", seen_as=at(one), read_as=at(other)) for one, other in zip(seen, read, strict=True)]
    return Answer(caption="", said=tuple(said)), Answer(caption="", said=tuple(Said(phrase=text) for text in texts))


def shown(search: Search) -> list[tuple[object, bool]]:
    return [(hit.shown, hit.right) for hit in search.hits]


def test_a_text_finds_regions_and_any_with_the_same_text_is_right() -> None:
    """Two images: a cup and a dog, a cup again and a cat. The second cup looks like a dog."""
    both = [answered(["a cup", "a dog"], [0, 90], [0, 90]), answered(["A  cup", "a cat"], [80, 180], [0, 180])]

    by_text, by_region = searches([one for one, _ in both], [other for _, other in both], "regions", 2)

    assert [search.query for search in by_text] == ["a cup"]  # the second image begins with the same text
    assert shown(by_text[0]) == [
        (View(item=0, region=0), True), (View(item=1, region=0), True), (View(item=0, region=1), False),
        (View(item=1, region=1), False),
    ]  # fmt: skip
    assert [search.query for search in by_region] == [View(item=0, region=0), View(item=1, region=0)]
    assert shown(by_region[1]) == [("a dog", False), ("a cup", True), ("a cat", False)]  # each text once
    assert [search.rank for search in by_region] == [1, 2]


def test_an_image_finds_texts_and_only_its_own_are_right() -> None:
    """The first image lies at 0 with captions at 5 and 100; the second at 90 with one at 95, of the same words."""
    both = [answered(["a", "b"], [0, 0], [5, 100]), answered(["a"], [90], [95])]

    by_text, by_image = searches([one for one, _ in both], [other for _, other in both], "images", 5)

    assert shown(by_image[0]) == [("a", True), ("a", False), ("b", True)]
    assert [search.rank for search in by_text] == [1, 1]
    assert shown(by_text[1]) == [(View(item=1, region=None), True), (View(item=0, region=None), False)]


def test_of_equally_near_candidates_the_wrong_ones_are_shown_first_as_they_are_scored() -> None:
    both = [answered([text], [7], [7]) for text in ("a cup", "a dog", "a cat")]

    (search,), _ = searches([one for one, _ in both], [other for _, other in both], "regions", 1)

    assert [hit.right for hit in search.hits] == [False, False, True]
    assert search.rank == 3


def test_only_what_is_right_has_a_green_frame() -> None:
    views = [View(item=item, region=item or None) for item in range(2)]
    mask_HW = np.zeros((30, 40), dtype=np.bool_)
    mask_HW[5:20, 5:20] = True

    def look(view: View) -> Look:
        return Look(image=Image.new("RGB", (40, 30), "white"), mask_HW=None if view.region is None else mask_HW)

    def green(*right: bool) -> int:
        hits = tuple(Hit(shown=view, cosine=0.5, right=one) for view, one in zip(views, right, strict=True))
        search = Search(query="a red ring " * 90, hits=hits, rank=1, among=9)
        drawn = np.asarray(draw_grid("Texts look for regions", [("Trained", [search]), ("Untrained", [search])], look))
        return int((drawn == np.array(ImageColor.getrgb(RIGHT))).all(axis=-1).sum())

    assert green(False, False) < 100  # the legend
    assert green(True, False) == green(False, True) > 2 * 4 * 4 * 100
    assert green(True, True) > 1.8 * green(True, False)


def test_texts_that_are_found_are_written_and_the_right_one_is_green() -> None:
    hits = tuple(Hit(shown=f"text {number}", cosine=0.1, right=number == 1) for number in range(3))
    search = Search(query=View(item=0, region=None), hits=hits, rank=2, among=9)
    wrong = Search(query=View(item=0, region=None), hits=(hits[0], hits[2]), rank=9, among=9)

    def drawn(one: Search) -> int:
        picture = draw_grid("x", [("Trained", [one])], lambda _: Look(image=Image.new("RGB", (9, 9)), mask_HW=None))
        return int((np.asarray(picture) == np.array(ImageColor.getrgb(RIGHT))).all(axis=-1).sum())

    assert drawn(search) > drawn(wrong) > 0
