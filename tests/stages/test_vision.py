"""Images, boxes and masks: the arithmetic of COCO, and refusal of what would read outside an array."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from orchestrator.errors import InputError
from stages.samples import Rle
from stages.vision import (
    MAX_PIXELS,
    box_of_mask,
    clip_box,
    decode_image,
    decode_pixels,
    fit_square,
    image_size_px,
    mask_from_coco,
    mask_from_polygons,
    mask_from_rle,
    panoptic_ids,
    panoptic_png,
    resize_mask,
    rle_from_mask,
    union,
    xywh_from_xyxy,
    xyxy_from_xywh,
)


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def noise(height: int, width: int, share: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width)) < share


def coloured(width: int, height: int) -> Image.Image:
    """Draws soft and sharp colours, so that how chroma is scaled up shows."""
    numbers = np.random.default_rng(width * 1000 + height)
    coarse = Image.fromarray(numbers.integers(0, 256, (1 + height // 8, 1 + width // 8, 3), dtype=np.uint8))
    sharp = Image.fromarray(numbers.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return Image.blend(coarse.resize((width, height), Image.Resampling.BICUBIC), sharp, 0.3)


def assert_pixels_are_those_of_pillow(data: bytes) -> None:
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    assert (np.asarray(decode_image(data)) == expected).all()
    assert (decode_pixels(data) == expected).all()


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    share=st.sampled_from([0.0, 0.01, 0.5, 0.99, 1.0]),
    seed=st.integers(0, 9),
)
def test_run_lengths_are_those_of_pycocotools_in_both_directions(
    height: int, width: int, share: float, seed: int
) -> None:
    mask = noise(height, width, share, seed)
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))

    ours = rle_from_mask(mask)

    assert ours.counts.encode() == theirs["counts"]
    assert (mask_from_rle(ours) == mask).all()
    assert (mask_from_coco({"size": [height, width], "counts": theirs["counts"]}) == mask).all()


def test_large_masks_with_long_runs_come_back() -> None:
    mask = np.zeros((1500, 2000), dtype=np.bool_)
    mask[700:, 900:1700] = True

    assert (mask_from_rle(rle_from_mask(mask)) == mask).all()


def test_uncompressed_run_lengths_of_crowds_are_read() -> None:
    mask = mask_from_coco({"size": [2, 3], "counts": [1, 2, 3]})

    assert mask.T.ravel().tolist() == [False, True, True, False, False, False]


@pytest.mark.parametrize("counts", ["", "zzzz", "Z", "5", "ooooooooo", "P1P1P1", "\x7f", "é", "0" * 7, "`````````1"])
def test_run_lengths_that_do_not_add_up_are_refused_instead_of_read_past_the_end(counts: str) -> None:
    with pytest.raises(InputError):
        mask_from_rle(Rle(height_px=4, width_px=4, counts=counts))


@pytest.mark.parametrize("counts", [[], [17], [-1, 17], [[16]], [10**15], [8, 4]])
def test_lists_of_run_lengths_that_do_not_add_up_are_refused(counts: list[object]) -> None:
    with pytest.raises((InputError, ValueError)):
        mask_from_coco({"size": [4, 4], "counts": counts})


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=30))
def test_any_text_is_a_mask_or_refused(text: str) -> None:
    try:
        mask = mask_from_rle(Rle(height_px=6, width_px=5, counts=text))
    except InputError:
        return

    assert mask.shape == (6, 5)


def test_a_mask_as_large_as_an_attack_is_refused() -> None:
    with pytest.raises(InputError, match="is refused"):
        mask_from_coco({"size": [10**6, 10**6], "counts": [10**12]})


def test_polygons_are_filled_and_their_union_counts() -> None:
    square = [1, 1, 5, 1, 5, 5, 1, 5]
    other = [3, 3, 8, 3, 8, 8, 3, 8]

    mask = mask_from_polygons([square, other], width_px=10, height_px=9)

    assert mask.shape == (9, 10)
    assert mask[2, 2]
    assert mask[6, 6]
    assert not mask[7, 1]
    assert (
        mask.sum() == mask_from_polygons([square], width_px=10, height_px=9).sum() + 25 - 4
    )  # the two overlap in four pixels


@pytest.mark.parametrize("polygons", [[], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], [[0, 0, 1, 1, float("nan"), 2]]])
def test_polygons_without_an_inside_are_refused(polygons: list[list[float]]) -> None:
    with pytest.raises(InputError, match="three points"):
        mask_from_polygons(polygons, width_px=5, height_px=5)


def test_polygons_far_outside_of_the_image_are_refused() -> None:
    with pytest.raises(InputError, match="far outside"):
        mask_from_polygons([[0, 0, 1e12, 0, 1e12, 1e12]], width_px=5, height_px=5)


def test_parts_of_different_sizes_have_no_union() -> None:
    with pytest.raises(InputError, match="differ in size"):
        union([np.zeros((2, 3), np.bool_), np.zeros((3, 2), np.bool_)])


def test_boxes_turn_into_corners_and_back() -> None:
    box = xyxy_from_xywh(3, 4, 10, 20)

    assert box == (3, 4, 13, 24)
    assert xywh_from_xyxy(box) == (3, 4, 10, 20)


def test_the_box_of_a_mask_ends_behind_its_last_pixel() -> None:
    mask = np.zeros((9, 8), dtype=np.bool_)
    mask[2:5, 3] = True

    assert box_of_mask(mask) == (3, 2, 4, 5)
    assert box_of_mask(np.zeros((3, 3), dtype=np.bool_)) is None


def test_a_box_is_cut_to_the_image_or_gone() -> None:
    assert clip_box((-3, 2, 50, 9), width_px=40, height_px=30) == (0, 2, 40, 9)
    assert clip_box((41, 2, 50, 9), width_px=40, height_px=30) is None


def test_panoptic_ids_use_all_three_bytes() -> None:
    ids = np.array([[0, 255, 256], [65_536, 16_777_215, 3_937_500]], dtype=np.int32)

    assert (panoptic_ids(panoptic_png(ids)) == ids).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_images_are_measured_and_decoded_to_rgb(kind: str, mode: str) -> None:
    data = encoded(Image.new(mode, (31, 17)), kind)

    assert image_size_px(data) == (31, 17)
    assert decode_image(data).mode == "RGB"


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_cut_off_image_is_found_out(kind: str) -> None:
    data = encoded(Image.fromarray((noise(64, 64, 0.5, 0) * 255).astype(np.uint8)), kind)

    with pytest.raises(InputError, match="damaged"):
        image_size_px(data[: len(data) // 2])


@pytest.mark.parametrize("size", [(1, 1), (7, 1), (2, 3), (17, 33), (64, 48), (131, 129)])
@pytest.mark.parametrize("restart_every", [0, 1, 3])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
def test_an_ordinary_jpeg_has_the_pixels_that_pillow_finds_in_it(
    size: tuple[int, int], restart_every: int, *, progressive: bool, subsampling: str
) -> None:
    buffer = io.BytesIO()
    coloured(*size).save(
        buffer, "JPEG", subsampling=subsampling, progressive=progressive, restart_marker_blocks=restart_every
    )

    assert_pixels_are_those_of_pillow(buffer.getvalue())


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "P"])
def test_other_kinds_of_images_have_the_pixels_that_pillow_finds_in_them(mode: str) -> None:
    kind = "JPEG" if mode in {"L", "CMYK"} else "PNG"

    assert_pixels_are_those_of_pillow(encoded(coloured(40, 30).convert(mode), kind))


def test_a_jpeg_that_stores_red_green_and_blue_has_the_pixels_that_pillow_finds_in_it() -> None:
    buffer = io.BytesIO()
    coloured(40, 30).save(buffer, "JPEG", keep_rgb=True)

    assert_pixels_are_those_of_pillow(buffer.getvalue())


def test_pixels_can_be_changed_whoever_decoded_them() -> None:
    for data in (encoded(coloured(8, 8), "JPEG"), encoded(coloured(8, 8), "PNG")):
        decode_pixels(data)[0, 0] = 7


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_was_cut_off_anywhere_is_refused(*, progressive: bool) -> None:
    buffer = io.BytesIO()
    coloured(33, 17).save(buffer, "JPEG", progressive=progressive)
    data = buffer.getvalue()

    for size in range(len(data) - 1):  # without its very last byte Pillow takes it: the end is known by then
        with pytest.raises(InputError):
            decode_image(data[:size])
        with pytest.raises(InputError):
            decode_pixels(data[:size])


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    progressive=st.booleans(),
)
def test_a_jpeg_with_bytes_changed_gives_what_pillow_makes_of_it_or_is_refused_with_it(
    changes: list[tuple[int, int]], *, progressive: bool
) -> None:
    buffer = io.BytesIO()
    coloured(24, 20).save(buffer, "JPEG", progressive=progressive, restart_marker_blocks=2)
    data = bytearray(buffer.getvalue())
    for place, value in changes:
        data[place % len(data)] = value
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            expected = None if image.width * image.height > MAX_PIXELS else np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        expected = None

    if expected is None:
        with pytest.raises(InputError):
            decode_pixels(bytes(data))
    else:
        assert (decode_pixels(bytes(data)) == expected).all()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_jpeg_that_claims_too_many_pixels_is_refused_before_they_are_made() -> None:
    data = bytearray(encoded(coloured(16, 16), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = (11_000).to_bytes(2, "big") * 2

    for decode in (decode_image, decode_pixels):
        with pytest.raises(InputError, match="claims 11000 x 11000 px"):
            decode(bytes(data))


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"<svg/>", b"\xff\xd8\xff"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    for read in (image_size_px, decode_image, decode_pixels):
        with pytest.raises(InputError):
            read(data)


def test_fitting_keeps_the_shape_and_pads_below_and_right() -> None:
    fitted = fit_square(Image.new("RGB", (200, 100), (255, 255, 255)), 64)

    assert (fitted.width_px, fitted.height_px, fitted.scale) == (64, 32, 0.32)
    assert fitted.image.getpixel((63, 31)) == (255, 255, 255)
    assert fitted.image.getpixel((63, 33)) == (0, 0, 0)


def test_a_mask_shrinks_to_where_it_filled_at_least_half() -> None:
    mask = np.zeros((8, 8), dtype=np.bool_)
    mask[:, :4] = True

    small = resize_mask(mask, width_px=4, height_px=4)

    assert small.tolist() == [[True, True, False, False]] * 4
