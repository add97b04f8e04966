"""Masks from the size at which they are drawn to that of their image.

Legend: N masks, H W pixels.
"""

from torch import Tensor
from torch.nn import functional


def masks_at_image_size(low_NHW: Tensor, *, canvas: int, inside: tuple[int, int], image: tuple[int, int]) -> Tensor:
    """Enlarges logits to a square canvas, cuts the padding off, and resizes to the image: N x H x W, float32."""
    wide_1NHW = low_NHW.float()[None]
    if low_NHW.shape[-2:] != (canvas, canvas):
        wide_1NHW = functional.interpolate(wide_1NHW, size=(canvas, canvas), mode="bilinear", align_corners=False)
    wide_1NHW = wide_1NHW[..., : inside[0], : inside[1]]
    if inside != image:
        wide_1NHW = functional.interpolate(wide_1NHW, size=image, mode="bilinear", align_corners=False)
    return wide_1NHW[0]
