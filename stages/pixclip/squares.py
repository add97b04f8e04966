"""What the image tower reads of an image and its mask: a square of four channels, all normalised.

Shapes: H, W pixels of the image; S the side of what the tower reads.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.vision import CLIP_MEAN, CLIP_STD, Mask, normalised
from stages.windows import BLACK, Window

MASK_MEAN, MASK_STD = 0.5, 0.26  # of the mask (0..1), as in Alpha-CLIP and PixCLIP's release
RAW_WHOLE_MASK = 1.0  # what the release's scripts for long texts give a whole image, in the place of (1 - 0.5) / 0.26


def seen_through(
    window: Window, image: Image.Image, mask_HW: Mask | None, side_px: int, *, fill: tuple[int, int, int] = BLACK
) -> NDArray[np.float32]:
    """Scales what lies in a window to 4 x S x S: red, green, blue and the mask. None: a mask of the whole image.

    No mask reaches beyond the image's edges, which `fill` surrounds.
    """
    size = (side_px, side_px)
    pixels = normalised(window.cut(image, fill=fill).resize(size, Image.Resampling.BICUBIC), CLIP_MEAN, CLIP_STD)
    shown_HW = np.ones((image.height, image.width), dtype=np.bool_) if mask_HW is None else mask_HW
    covered = Image.fromarray(window.cut_mask(shown_HW).astype(np.uint8) * 255)
    mask_SS = np.asarray(covered.resize(size, Image.Resampling.BILINEAR), dtype=np.float32) / 255
    return np.concatenate([pixels, ((mask_SS - MASK_MEAN) / MASK_STD)[None]])


def squashed(image: Image.Image, side_px: int) -> NDArray[np.float32]:
    """Scales a whole image to 4 x S x S without keeping its shape, under a mask of plain ones.

    So do the release's scripts for long texts; for masks of parts they pad, as `seen_through` does.
    """
    pixels = normalised(image.resize((side_px, side_px), Image.Resampling.BICUBIC), CLIP_MEAN, CLIP_STD)
    return np.concatenate([pixels, np.full((1, side_px, side_px), RAW_WHOLE_MASK, dtype=np.float32)])
