"""Masks that somebody gives in a file: a PNG, or COCO's run lengths as JSON."""

import json
from pathlib import Path

import numpy as np

from orchestrator.errors import InputError
from stages.vision import Mask, decode_image, mask_from_coco

_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_BYTES = 100_000_000
_WANTED = 'COCO\'s run lengths, {"size": [height, width], "counts": ...}'


def read_mask(path: Path, *, width_px: int, height_px: int) -> Mask:
    """Reads a mask of an image of this size: every pixel of a PNG that is not black, or {"size", "counts"}.

    InputError names the file, and what is wrong: another size, not one pixel, neither of the two kinds of file.
    """
    try:
        mask_HW = _decoded(_bytes_of(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if mask_HW.shape != (height_px, width_px):
        given = f"{mask_HW.shape[1]} x {mask_HW.shape[0]}"
        raise InputError(f"{path} has {given} pixels, the image {width_px} x {height_px}; both must be the same")
    if not mask_HW.any():
        raise InputError(f"{path} has not one pixel: all of it is black")
    return mask_HW


def _bytes_of(path: Path) -> bytes:
    try:
        if path.is_file() and path.stat().st_size <= _MOST_BYTES:  # a device would be read for ever
            return path.read_bytes()
    except OSError as error:
        raise InputError(f"the mask cannot be read ({error.strerror})") from None
    raise InputError(f"there is no file of at most {_MOST_BYTES} bytes")


def _decoded(data: bytes) -> Mask:
    if data.startswith(_PNG):
        mask_HW: Mask = np.asarray(decode_image(data)).max(axis=-1) > 0
        return mask_HW
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError):
        raise InputError(f"is neither a PNG nor JSON; needed is a PNG or {_WANTED}") from None
    try:
        return mask_from_coco(plain)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"is no mask ({error}); needed is a PNG or {_WANTED}") from None
