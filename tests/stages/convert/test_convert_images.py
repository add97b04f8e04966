"""Pictures of all kinds and none: kept as they are stored, or skipped by name."""

import io
import shutil
from pathlib import Path

import pytest
from PIL import Image

from stages.vision import decode_image
from tests.stages.conversion import COMMITTED, Converted, convert
from tests.stages.raw_edits import reasons, skipped

PICTURE = "coco/val2017/000000142238.jpg"
SIZE = (640, 427)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A copy of the real data that a test may break."""
    return Path(shutil.copytree(COMMITTED, tmp_path / "raw_data"))


def converted(tmp_path: Path, root: Path) -> Converted:
    return convert(tmp_path, root, source="coco", split="val")


def stored(picture: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind", "extension"),
    [
        ("RGB", "JPEG", "jpg"), ("L", "JPEG", "jpg"), ("CMYK", "JPEG", "jpg"), ("YCbCr", "JPEG", "jpg"),
        ("RGBA", "PNG", "png"), ("LA", "PNG", "png"), ("P", "PNG", "png"), ("1", "PNG", "png"), ("L", "PNG", "png"),
        ("I;16", "PNG", "png"),
    ],
)  # fmt: skip
def test_grey_cmyk_alpha_and_palettes_are_kept_byte_for_byte_and_can_be_decoded(
    raw: Path, tmp_path: Path, mode: str, kind: str, extension: str
) -> None:
    content = stored(Image.new(mode, SIZE), format=kind)
    (raw / PICTURE).write_bytes(content)

    made = converted(tmp_path, raw)

    assert made.samples()[0].image == content
    assert set(made.samples()[0].to_members()) == {extension, "json"}
    picture = decode_image(made.samples()[0].image)
    assert (picture.mode, picture.size) == ("RGB", SIZE)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_picture_is_what_is_stored_whatever_exif_says_of_its_rotation(raw: Path, tmp_path: Path, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    picture = Image.open(raw / PICTURE)
    picture.load()
    (raw / PICTURE).write_bytes(stored(picture, format="JPEG", exif=exif))

    made = converted(tmp_path, raw)

    sample = made.samples()[0]
    assert (sample.width_px, sample.height_px) == SIZE  # what COCO's boxes and masks mean
    assert decode_image(sample.image).size == SIZE
    assert made.facts["skipped"]["total"] == 0


@pytest.mark.parametrize("kind", ["GIF", "BMP", "WEBP", "TIFF"])
def test_other_formats_are_skipped_by_name(raw: Path, tmp_path: Path, kind: str) -> None:
    (raw / PICTURE).write_bytes(stored(Image.new("RGB", SIZE), format=kind))

    made = converted(tmp_path, raw)

    assert reasons(made) == {"image is damaged": 1}
    assert str(raw / PICTURE) in skipped(made)[0]["detail"]


@pytest.mark.parametrize("kept", [0, 1, 3, 100, 0.5, 0.99])
def test_a_picture_cut_anywhere_is_skipped_by_name(raw: Path, tmp_path: Path, kept: float) -> None:
    content = (raw / PICTURE).read_bytes()
    (raw / PICTURE).write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])

    made = converted(tmp_path, raw)

    assert reasons(made) == {"image is damaged": 1}
    assert made.facts["samples"] == 1


def test_a_picture_that_claims_to_be_huge_is_skipped(raw: Path, tmp_path: Path) -> None:
    content = bytearray(stored(Image.new("L", (8, 8)), format="PNG"))
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    (raw / PICTURE).write_bytes(content)

    assert reasons(converted(tmp_path, raw)) == {"image is damaged": 1}


def test_a_folder_in_the_place_of_a_picture_is_a_missing_picture(raw: Path, tmp_path: Path) -> None:
    (raw / PICTURE).unlink()
    (raw / PICTURE).mkdir()

    assert reasons(converted(tmp_path, raw)) == {"image is missing": 1}
