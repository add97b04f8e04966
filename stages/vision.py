"""Images, boxes and masks: decoding, resizing, run lengths, polygons, panoptic ids; every unit is in a name.

Shapes: H, W height and width in pixels.
"""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from orchestrator.errors import InputError
from orchestrator.records import record
from stages.samples import Rle

Box = tuple[float, float, float, float]
Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]  # height x width x 3: red, green, blue

# of red, green and blue (0..1), as the encoders were trained with them
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (123.675 / 255, 116.28 / 255, 103.53 / 255), (58.395 / 255, 57.12 / 255, 57.375 / 255)
MAX_PIXELS = 100_000_000  # a picture that claims more is an accident or an attack


@record
class Fitted:
    """An image scaled to fit a square, at its top left; the rest is padding."""

    image: Image.Image  # side_px x side_px
    scale: float  # multiply pixel coordinates of the original by this
    width_px: int  # of the scaled content
    height_px: int


def read_image(path: Path) -> Image.Image:
    """Reads a JPEG or PNG file as RGB; InputError names the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: the image cannot be read ({error.strerror})") from None
    try:
        return decode_image(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def as_picture(image: Image.Image) -> Image.Image:
    """Returns an image that came from elsewhere as RGB; refuses one of more than MAX_PIXELS before it is decoded."""
    _expect_size(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def check_box(box_xyxy_px: Sequence[float], *, width_px: int, height_px: int) -> Box:
    """Returns a box that lies inside the image; refuses any other."""
    if len(box_xyxy_px) == 4:
        x0, y0, x1, y1 = box_xyxy_px
        if 0 <= x0 < x1 <= width_px and 0 <= y0 < y1 <= height_px:  # also false for nan
            return (x0, y0, x1, y1)
    shown = ",".join(f"{edge:g}" for edge in box_xyxy_px)
    raise InputError(f"{shown} is no box x0,y0,x1,y1 inside the image of {width_px} x {height_px} pixels")


def decode_image(data: bytes) -> Image.Image:
    """Decodes a JPEG or PNG to RGB. EXIF rotation is not applied: annotations are made on the stored pixels."""
    pixels_HWC = _ordinary_jpeg(data)
    return _decoded_by_pillow(data) if pixels_HWC is None else Image.fromarray(pixels_HWC)


def decode_pixels(data: bytes) -> Pixels:
    """Decodes like `decode_image`, for who wants an array: in half the time, as no image is made of it on the way."""
    pixels_HWC = _ordinary_jpeg(data)
    return np.array(_decoded_by_pillow(data)) if pixels_HWC is None else pixels_HWC


def image_size_px(data: bytes) -> tuple[int, int]:
    """Returns (width, height) of a whole JPEG or PNG; all of its data is read, so that damage is found here."""
    image = _opened(data)
    size = image.size
    try:
        image.draft("RGB", (1, 1))  # a JPEG is decoded at an eighth of its size: same damage found, less time
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"the image is damaged ({error})") from None
    return size


def resize_square(image: Image.Image, side_px: int) -> Image.Image:
    """Scales both sides to `side_px`, without keeping the aspect ratio."""
    return image.resize((side_px, side_px), Image.Resampling.BILINEAR)


def fit_square(image: Image.Image, side_px: int) -> Fitted:
    """Scales the longer side to `side_px` and pads right and below with black."""
    scale = side_px / max(image.size)
    width_px, height_px = (max(1, round(edge * scale)) for edge in image.size)
    canvas = Image.new("RGB", (side_px, side_px))
    canvas.paste(image.resize((width_px, height_px), Image.Resampling.BILINEAR), (0, 0))
    return Fitted(image=canvas, scale=scale, width_px=width_px, height_px=height_px)


def normalised(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Returns what encoders read: 3 x H x W, each colour (0..1) less its mean, over its deviation."""
    pixels_HWC = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    pixels_HWC = (pixels_HWC - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1))


def resize_mask(mask_HW: Mask, *, width_px: int, height_px: int) -> Mask:
    """Scales a mask; a pixel is set where at least half of what it covers was."""
    picture = Image.fromarray(mask_HW.astype(np.uint8) * 255)
    return np.asarray(picture.resize((width_px, height_px), Image.Resampling.BILINEAR)) >= 128


def xyxy_from_xywh(x_px: float, y_px: float, width_px: float, height_px: float) -> Box:
    """Turns corner and size into two corners."""
    return (float(x_px), float(y_px), float(x_px + width_px), float(y_px + height_px))


def xywh_from_xyxy(box_xyxy_px: Box) -> Box:
    """Turns two corners into corner and size."""
    x0, y0, x1, y1 = box_xyxy_px
    return (x0, y0, x1 - x0, y1 - y0)


def clip_box(box_xyxy_px: Box, *, width_px: int, height_px: int) -> Box | None:
    """Cuts a box to the image; None where nothing of it lies inside."""
    x0, y0, x1, y1 = box_xyxy_px
    x0, x1 = (min(max(x, 0.0), float(width_px)) for x in (x0, x1))
    y0, y1 = (min(max(y, 0.0), float(height_px)) for y in (y0, y1))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def box_of_mask(mask_HW: Mask) -> Box | None:
    """Returns the smallest box around a mask; None for an empty one."""
    columns, rows = np.flatnonzero(mask_HW.any(axis=0)), np.flatnonzero(mask_HW.any(axis=1))
    if not columns.size:
        return None
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def mask_from_rle(rle: Rle) -> Mask:
    """Decodes a run-length mask; refuses run lengths that do not add up to its size."""
    return _mask_from_runs(_runs_from_text(rle.counts), rle.height_px, rle.width_px)


def rle_from_mask(mask_HW: Mask) -> Rle:
    """Encodes a mask as COCO's compressed run lengths (column by column, zeros first)."""
    height_px, width_px = mask_HW.shape
    pixels = np.asarray(mask_HW, dtype=np.bool_).ravel(order="F")
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    bounds = np.concatenate(([0], edges, [pixels.size]))
    runs = np.diff(bounds).tolist()
    if pixels.size and pixels[0]:
        runs.insert(0, 0)
    return Rle(height_px=height_px, width_px=width_px, counts=_text_from_runs(runs))


def mask_from_coco(plain: Any) -> Mask:
    """Decodes COCO's {"size": [height, width], "counts": text or list of run lengths}."""
    if not isinstance(plain, dict) or not {"size", "counts"} <= set(plain):
        raise InputError("a run-length mask needs size and counts")
    height_px, width_px = (int(edge) for edge in plain["size"])
    counts = plain["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", errors="replace")
    runs = np.asarray(counts, dtype=np.int64) if isinstance(counts, list) else _runs_from_text(str(counts))
    return _mask_from_runs(runs, height_px, width_px)


def mask_from_polygons(polygons_px: Sequence[Sequence[float]], *, width_px: int, height_px: int) -> Mask:
    """Fills polygons, each [x0, y0, x1, y1, ...], the way COCO does; overlapping parts count once."""
    from pycocotools import mask as coco  # planning does not need it, a login node may not have it

    flat = [[float(value) for value in polygon] for polygon in polygons_px]
    if not flat or any(len(polygon) < 6 or len(polygon) % 2 or not np.isfinite(polygon).all() for polygon in flat):
        raise InputError("a polygon needs at least three points, each of two numbers")
    if max(abs(value) for polygon in flat for value in polygon) > 2 * max(width_px, height_px):
        raise InputError(f"a polygon lies far outside of {width_px} x {height_px} px")  # filling it would take for ever
    return union(mask_from_coco(part) for part in coco.frPyObjects(flat, height_px, width_px))


def union(masks_HW: Iterable[Mask]) -> Mask:
    """Joins the parts of one thing; all must have the same size."""
    parts = list(masks_HW)
    if len({part.shape for part in parts}) != 1:
        raise InputError("the parts of a mask differ in size" if parts else "a mask without parts")
    joined: Mask = np.logical_or.reduce(parts)
    return joined


def panoptic_ids(png: bytes) -> NDArray[np.int32]:
    """Reads COCO's panoptic PNG: id = R + 256 G + 65536 B, 0 is void."""
    rgb = decode_pixels(png).astype(np.int32)
    ids: NDArray[np.int32] = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
    return ids


def panoptic_png(ids_HW: NDArray[np.int32]) -> bytes:
    """Writes COCO's panoptic PNG; the inverse of `panoptic_ids`."""
    rgb = np.stack([ids_HW & 255, (ids_HW >> 8) & 255, (ids_HW >> 16) & 255], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="PNG")
    return buffer.getvalue()


def _ordinary_jpeg(data: bytes) -> Pixels | None:
    """Decodes what nearly all photographs are, by libjpeg-turbo without Pillow around it: same pixels, half the time.

    None stands for everything else, and for whatever has a flaw: Pillow then decides what can be used.
    """
    import simplejpeg  # planning does not need it, a login node may not have it

    try:
        height_px, width_px, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours != "YCbCr" or height_px * width_px > MAX_PIXELS:
            return None
        pixels_HWC: Pixels = simplejpeg.decode_jpeg(data)
    except ValueError:
        return None
    return pixels_HWC


def _decoded_by_pillow(data: bytes) -> Image.Image:
    image = _opened(data)
    try:
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"the image is damaged ({error})") from None


def _opened(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
    except Image.DecompressionBombError as error:
        raise InputError(f"the image is too large, more than {MAX_PIXELS} pixels are refused ({error})") from None
    except UnidentifiedImageError:  # whose words name an object of ours
        raise InputError("the image is neither a JPEG nor a PNG") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"the image is neither a JPEG nor a PNG ({error})") from None
    _expect_size(image)
    return image


def _expect_size(image: Image.Image) -> None:
    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise InputError(f"the image claims {image.width} x {image.height} px, 1 to {MAX_PIXELS} are allowed")


def _mask_from_runs(runs: NDArray[np.int64], height_px: int, width_px: int) -> Mask:
    # pycocotools reads and writes outside its arrays for run lengths that do not add up, so they are checked here
    if min(height_px, width_px) < 1 or height_px * width_px > MAX_PIXELS:
        raise InputError(f"a mask of {width_px} x {height_px} px is refused")
    if runs.ndim != 1 or (runs < 0).any() or (runs > MAX_PIXELS).any() or int(runs.sum()) != height_px * width_px:
        raise InputError(f"the run lengths of a mask do not add up to {width_px} x {height_px} px")
    values = np.arange(runs.size) % 2 == 1
    return np.repeat(values, runs).reshape((height_px, width_px), order="F")


def _runs_from_text(counts: str) -> NDArray[np.int64]:
    """Undoes COCO's text form: 5 bits a character, low bits first, differences to the run before the last one."""
    codes = np.frombuffer(counts.encode("utf-8"), dtype=np.uint8).astype(np.int64) - 48
    if not codes.size or (codes < 0).any() or (codes > 63).any() or codes[-1] & 32:
        raise InputError("the run lengths of a mask are not COCO's text form")
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if (lengths > 7).any():
        raise InputError("a run length of a mask is too long")
    place = np.arange(codes.size) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << (5 * place), starts)
    runs -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _text_from_runs(runs: Sequence[int]) -> str:
    characters = bytearray()
    for number, run in enumerate(runs):
        rest = run - runs[number - 2] if number > 2 else run
        more = True
        while more:
            bits = rest & 31
            rest >>= 5
            more = rest != (-1 if bits & 16 else 0)
            characters.append(48 + bits + (32 if more else 0))
    return characters.decode("ascii")
