"""Pictures in layers: the image as it is, small enough for a page, and apart what was said of it."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from stages.evaluate.answers import Answer, Said
from stages.evaluate.layers import write_layers
from stages.vision import rle_from_mask


def written(folder: Path, image: Image.Image, answer: Answer) -> dict[str, object]:
    folder.mkdir()
    name = write_layers(folder / "gcg_000.json", image, [("Ground truth", answer)])
    plain: dict[str, object] = json.loads((folder.parent / name).read_text())
    return plain


def test_a_small_image_keeps_every_pixel_and_what_was_said_stands_apart(tmp_path: Path) -> None:
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    mask = rle_from_mask(pixels_HWC[..., 0] > 100)
    answer = Answer(caption="A thing.", said=(Said(phrase="A thing", span=(0, 7), mask=mask),))

    plain = written(tmp_path / "pictures", Image.fromarray(pixels_HWC), answer)

    assert (plain["width_px"], plain["height_px"], plain["image"]) == (40, 30, "pictures/gcg_000_plain.png")
    assert (np.asarray(Image.open(tmp_path / str(plain["image"]))) == pixels_HWC).all()
    assert plain["panels"] == [{"title": "Ground truth", **answer.to_plain()}]


def test_a_photograph_is_shrunk_and_places_stay_those_of_the_original(tmp_path: Path) -> None:
    answer = Answer(caption="", said=(Said(phrase="all", box_xyxy_px=(0, 0, 1920, 1080)),))

    plain = written(tmp_path / "pictures", Image.new("RGBA", (1920, 1080), "teal"), answer)

    assert (plain["width_px"], plain["height_px"]) == (1920, 1080)
    with Image.open(tmp_path / str(plain["image"])) as shown:
        assert (shown.size, shown.format) == ((640, 360), "JPEG")
    assert plain["panels"][0]["phrases"][0]["box_xyxy_px"] == [0, 0, 1920, 1080]  # type: ignore[index]
