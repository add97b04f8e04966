"""Windows on an image: padded wholes, crops over the edges, boxes and masks measured in them."""

import numpy as np
from PIL import Image

from stages.windows import WHITE, Window, around, mask_of_box, whole


def image() -> Image.Image:
    return Image.new("RGB", (8, 4), (200, 10, 10))


def test_a_whole_image_is_padded_to_a_square_in_the_middle() -> None:
    window = whole(image())
    pixels_HWC = np.asarray(window.cut(image()))

    assert window == Window(left=0, top=-2, side=8)
    assert (pixels_HWC[2:6] == (200, 10, 10)).all()
    assert not pixels_HWC[[0, 1, 6, 7]].any()
    assert window.unit_box((0, 0, 8, 4)) == (0.0, 0.25, 1.0, 0.75)


def test_a_crop_reaches_over_the_edges_and_its_mask_does_not() -> None:
    window = around((0, 0, 4, 2), 1.5)
    mask_HW = np.ones((4, 8), dtype=np.bool_)
    pixels_HWC = np.asarray(window.cut(image(), fill=WHITE))

    assert window == Window(left=-1, top=-2, side=6)
    assert (pixels_HWC[:2] == 255).all()
    assert (pixels_HWC[:, 0] == 255).all()
    assert (pixels_HWC[2:, 1:] == (200, 10, 10)).all()
    assert (window.cut_mask(mask_HW) == (pixels_HWC[..., 1] == 10)).all()


def test_a_box_outside_is_cut_off_and_one_without_a_mask_is_filled() -> None:
    assert Window(left=0, top=0, side=4).unit_box((-2, 1, 8, 3)) == (0.0, 0.25, 1.0, 0.75)

    mask_HW = mask_of_box((1.2, 0, 2.5, 1), width_px=4, height_px=2)

    assert mask_HW.tolist() == [[False, True, True, False], [False, False, False, False]]
