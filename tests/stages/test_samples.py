"""Samples: equal samples are equal bytes, and nothing that does not fit becomes one."""

import json
from dataclasses import replace

import numpy as np
import pytest

from orchestrator.errors import InputError
from stages.samples import Caption, Grounding, Region, Rle, Sample, TimedPoint, Turn, Utterance
from stages.vision import rle_from_mask

JPEG = b"\xff\xd8\xff rest of a picture"
PNG = b"\x89PNG\r\n\x1a\n rest of a picture"


def a_sample() -> Sample:
    mask = np.zeros((20, 30), dtype=np.bool_)
    mask[2:9, 3:12] = True
    region = Region(
        box_xyxy_px=(3, 2, 12, 9), mask=rle_from_mask(mask), phrase="ein Pferd 🐎", caption="Ein Pferd steht da.",
        spans=((0, 11), (12, 14)), score=0.25, source="person", crowd=True,
    )  # fmt: skip
    plain = Region(box_xyxy_px=(0.5, 0, 30, 20), mask=None, phrase="")
    return Sample(
        key="one", image=JPEG, width_px=30, height_px=20, caption="ein Pferd 🐎 da", regions=(region, plain),
        points=(TimedPoint(word="da", x_unit=-0.01, y_unit=1.02, time_s=0.5),),
        turns=(Turn(question="Was?", answer="Ein Pferd."),),
    )  # fmt: skip


def edited(**changes: object) -> dict[str, bytes]:
    plain = json.loads(a_sample().to_members()["json"]) | changes
    return {"jpg": JPEG, "json": json.dumps(plain).encode()}


def test_a_sample_comes_back_as_it_was() -> None:
    sample = a_sample()

    assert Sample.from_members("one", sample.to_members()) == sample


def a_full_sample() -> Sample:
    sample = a_sample()
    more = Caption(text="noch ein Pferd", groundings=(Grounding(span=(5, 14), regions=(0, 1)),))
    return replace(
        sample,
        regions=(replace(sample.regions[0], more_phrases=("a horse", "馬")), sample.regions[1]),
        more_captions=(more, Caption(text="leer")),
        utterances=(Utterance(text="ein Pferd", start_s=0, end_s=1.5),),
    )


def test_further_captions_phrases_and_utterances_come_back_as_they_were() -> None:
    sample = a_full_sample()

    assert Sample.from_members("one", sample.to_members()) == sample


def test_what_a_sample_does_not_have_is_not_written() -> None:
    plain = json.loads(a_sample().to_members()["json"])

    assert {"more_captions", "utterances"}.isdisjoint(plain)
    assert all("more_phrases" not in region for region in plain["regions"])


@pytest.mark.parametrize(
    ("grounding", "problem"),
    [
        (Grounding(span=(5, 15), regions=(0,)), "is not inside its text of 14 characters"),
        (Grounding(span=(5, 5), regions=(0,)), "is not inside its text of 14 characters"),
        (Grounding(span=(0, 4), regions=(2,)), "but the image has 2"),
        (Grounding(span=(0, 4), regions=(-1,)), "but the image has 2"),
        (Grounding(span=(0, 4), regions=()), "but the image has 2"),
    ],
)
def test_groundings_of_a_further_caption_must_fit_it_and_the_regions(grounding: Grounding, problem: str) -> None:
    with pytest.raises(InputError, match=rf"sample 'one': more_captions\[0\]\.groundings: .*{problem}"):
        replace(a_sample(), more_captions=(Caption(text="noch ein Pferd", groundings=(grounding,)),))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_points_and_times_must_be_numbers(value: float) -> None:
    point = a_sample().points[0]

    with pytest.raises(InputError, match="a point or a time of it is not a number"):
        replace(a_sample(), points=(replace(point, y_unit=value),))
    with pytest.raises(InputError, match="a point or a time of it is not a number"):
        replace(a_sample(), utterances=(Utterance(text="a", start_s=0, end_s=value),))


@pytest.mark.parametrize(
    "field", ["caption", "phrase", "more_phrases", "more_captions", "utterances", "turns", "points"]
)
def test_half_a_character_is_refused_in_every_text(field: str) -> None:
    half, sample = "half \ud83d", a_sample()
    changes: dict[str, object] = {
        "caption": half + sample.caption,
        "phrase": (replace(sample.regions[0], phrase=half),),
        "more_phrases": (replace(sample.regions[0], more_phrases=(half,)),),
        "more_captions": (Caption(text=half),),
        "utterances": (Utterance(text=half, start_s=0, end_s=1),),
        "turns": (Turn(question=half, answer="a"),),
        "points": (replace(sample.points[0], word=half),),
    }
    name = "regions" if field in ("phrase", "more_phrases") else field

    with pytest.raises(InputError, match="sample 'one': half a character in a text"):
        replace(sample, **{name: changes[field]})


@pytest.mark.parametrize(
    "change",
    [
        {"more_captions": {}}, {"more_captions": [{"text": "a"}]}, {"more_captions": [{"text": 7, "groundings": []}]},
        {"more_captions": [{"text": "ab", "groundings": [{"span": [0], "regions": [0]}]}]},
        {"more_captions": [{"text": "ab", "groundings": [{"span": [0, float("nan")], "regions": [0]}]}]},
        {"more_captions": [{"text": "ab", "groundings": [{"span": [0, 1], "regions": ["0"]}]}]},
        {"utterances": [{"text": "a", "start_s": "0", "end_s": 1}]}, {"utterances": None},
    ],
)  # fmt: skip
def test_further_fields_of_the_wrong_type_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="sample 'one'"):
        Sample.from_members("one", edited(**change))


def test_equal_samples_are_equal_bytes_even_after_a_round_trip() -> None:
    first = a_sample().to_members()
    again = Sample.from_members("one", first).to_members()

    assert again == first
    assert list(json.loads(first["json"])) == sorted(json.loads(first["json"]))


def test_whole_numbers_and_fractions_in_a_box_are_the_same_bytes() -> None:
    region = Region(box_xyxy_px=(0, 0, 5, 5), mask=None, phrase="")
    whole = Sample(key="k", image=PNG, width_px=9, height_px=9, regions=(region,))
    fraction = replace(whole, regions=(replace(region, box_xyxy_px=(0.0, 0.0, 5.0, 5.0)),))

    assert whole.to_members() == fraction.to_members()


@pytest.mark.parametrize(("image", "extension"), [(JPEG, "jpg"), (PNG, "png")])
def test_the_image_is_stored_as_it_is_under_its_own_extension(image: bytes, extension: str) -> None:
    members = replace(a_sample(), image=image).to_members()

    assert members[extension] == image
    assert set(members) == {extension, "json"}


def test_an_image_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match=r"neither a JPEG nor a PNG$"):
        replace(a_sample(), image=b"GIF89a").to_members()


@pytest.mark.parametrize(
    "box", [(0, 0, 31, 5), (-1, 0, 3, 3), (5, 5, 5, 9), (9, 0, 3, 3), (0, 0, float("nan"), 3), (0, 0, 3, 20.5)]
)
def test_a_box_outside_the_image_is_refused(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(InputError, match=r"sample 'one': regions\[0\]\.box_xyxy_px.*30 x 20"):
        replace(a_sample(), regions=(Region(box_xyxy_px=box, mask=None, phrase=""),))


def test_a_mask_of_another_size_than_the_image_is_refused() -> None:
    region = replace(a_sample().regions[0], mask=Rle(height_px=30, width_px=20, counts="x"))

    with pytest.raises(InputError, match="mask: 20 x 30 px, but the image has 30 x 20 px"):
        replace(a_sample(), regions=(region,))


@pytest.mark.parametrize("span", [(0, 99), (-1, 3), (4, 4), (5, 2)])
def test_a_span_outside_the_caption_is_refused(span: tuple[int, int]) -> None:
    region = replace(a_sample().regions[0], spans=(span,))

    with pytest.raises(InputError, match="is not inside the caption of 14 characters"):
        replace(a_sample(), regions=(region,))


def test_unknown_keys_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="unknown key colour; allowed: width_px"):
        Sample.from_members("one", edited(colour="red"))


def test_unknown_keys_of_a_region_are_refused_with_their_place() -> None:
    region = json.loads(a_sample().to_members()["json"])["regions"][0] | {"depth": 1}

    with pytest.raises(InputError, match=r"regions\[0\]: unknown key depth"):
        Sample.from_members("one", edited(regions=[region]))


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_another_schema_is_refused(schema: object) -> None:
    with pytest.raises(InputError, match="this version reads schema 1"):
        Sample.from_members("one", edited(schema=schema))


@pytest.mark.parametrize(
    "change",
    [
        {"width_px": "30"}, {"width_px": True}, {"caption": None}, {"regions": {}}, {"regions": [3]},
        {"turns": [{"question": "a"}]}, {"points": [{"word": "a", "x_unit": "b", "y_unit": 0, "time_s": 0}]},
    ],
)  # fmt: skip
def test_values_of_the_wrong_type_are_refused_with_the_name_of_the_sample(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="sample 'one'"):
        Sample.from_members("one", edited(**change))


@pytest.mark.parametrize("members", [{}, {"json": b"{}"}, {"jpg": JPEG}, {"jpg": JPEG, "png": PNG, "json": b"{}"}])
def test_members_that_are_no_sample_are_refused(members: dict[str, bytes]) -> None:
    with pytest.raises(InputError, match="needed: one of jpg or png, and json"):
        Sample.from_members("one", members)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[]", b"3"])
def test_a_member_that_is_no_json_object_is_refused(text: bytes) -> None:
    with pytest.raises(InputError, match="sample 'one'"):
        Sample.from_members("one", {"jpg": JPEG, "json": text})
