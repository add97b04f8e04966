"""Square windows on an image's plane: the whole image padded, or a crop around a box that may reach over its edges."""

import math

import numpy as np
from PIL import Image

from orchestrator.records import record
from stages.vision import Box, Mask

BLACK, WHITE = (0, 0, 0), (255, 255, 255)


@record
class Window:
    """A square, in pixels of an image; may reach over its edges."""

    left: int
    top: int
    side: int

    def cut(self, image: Image.Image, *, fill: tuple[int, int, int] = BLACK) -> Image.Image:
        """Cuts it out of an image, `fill` beyond the edges."""
        canvas = Image.new("RGB", (self.side, self.side), fill)
        canvas.paste(image, (-self.left, -self.top))
        return canvas

    def cut_mask(self, mask_HW: Mask) -> Mask:
        """Cuts it out of a mask; nothing is set beyond the edges."""
        canvas = Image.new("L", (self.side, self.side))
        canvas.paste(Image.fromarray(mask_HW.astype(np.uint8)), (-self.left, -self.top))
        return np.asarray(canvas) > 0

    def unit_box(self, box_xyxy_px: Box) -> Box:
        """Measures a box in units of the window (0..1), and cuts off what lies outside."""
        x0, y0, x1, y1 = box_xyxy_px
        ends = (x0 - self.left, y0 - self.top, x1 - self.left, y1 - self.top)
        left, top, right, bottom = (min(max(end / self.side, 0.0), 1.0) for end in ends)
        return left, top, right, bottom


def whole(image: Image.Image) -> Window:
    """Returns the smallest square that holds an image, in the middle."""
    side = max(image.size)
    return Window(left=-((side - image.width) // 2), top=-((side - image.height) // 2), side=side)


def around(box_xyxy_px: Box, scale: float) -> Window:
    """Returns a square around the middle of a box, `scale` times its longer side."""
    x0, y0, x1, y1 = box_xyxy_px
    side = max(1, round(scale * max(x1 - x0, y1 - y0)))
    return Window(left=math.floor((x0 + x1 - side) / 2), top=math.floor((y0 + y1 - side) / 2), side=side)


def mask_of_box(box_xyxy_px: Box, *, width_px: int, height_px: int) -> Mask:
    """Fills a box: every pixel that it touches."""
    x0, y0, x1, y1 = box_xyxy_px
    mask_HW = np.zeros((height_px, width_px), dtype=np.bool_)
    mask_HW[max(0, math.floor(y0)) : math.ceil(y1), max(0, math.floor(x0)) : math.ceil(x1)] = True
    return mask_HW
