"""Draws grounded captions: every phrase in the colour and with the number of its mask, panels side by side."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt

from orchestrator.records import record
from stages.lettering import GAP_PX, TEXT_SIZE_PX, Word, fitting, font, set_lines

# Okabe and Ito's palette: told apart with any common kind of colour blindness; the numbers say it once more
PALETTE = (
    "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442", "#8C8C8C",
    "#7A4FA3", "#8DD17E", "#A0522D", "#E15FD0", "#17BECF", "#B8B000", "#E3A8A0", "#3D5A5A",  # for crowded pictures
)  # fmt: skip
PAPER, INK, FAINT = "#FFFFFF", "#1A1A1A", "#6B6B6B"
PANEL_WIDTH_PX = 384
MARGIN_PX = 12
TITLE_SIZE_PX, NUMBER_SIZE_PX = 17, 13
RADIUS_PX = 9  # of the disc behind a number
SMALL_BOX_PX, SMALL_MASK_PX = 45, 250  # below, a side or an area is hidden by a number on it
OPACITY, OPACITY_OF_LARGE = 0.22, 0.08  # captions name colours, so the true ones must stay visible below
LARGE = 0.35  # share of the image from which on a mask is background rather than a thing

Rgb = tuple[int, int, int]


@record
class Mark:
    """One phrase and what it means in the image: a mask, a box, points, or nothing that could be drawn."""

    phrase: str
    span: tuple[int, int] | None = None  # code points of the panel's caption; None = listed below the caption
    mask_HW: NDArray[np.bool_] | None = None  # at the image's own size
    box_xyxy_px: tuple[float, float, float, float] | None = None
    points_xy_px: tuple[tuple[float, float], ...] = ()  # drawn where there is neither box nor mask


@record
class Panel:
    """One view of the image: what the reference, or a model, says of it."""

    title: str
    caption: str
    marks: tuple[Mark, ...]
    notes: tuple[str, ...] = ()  # what else there is to say, below, a paragraph each


def draw_panels(image: Image.Image, panels: Sequence[Panel]) -> Image.Image:
    """Draws the panels from left to right; equal phrases have equal colours in all of them."""
    colours = _shared_colours(panels)
    drawn = [_draw_panel(image.convert("RGB"), panel, colours) for panel in panels]
    width_px = sum(panel.width for panel in drawn) + MARGIN_PX * (len(drawn) + 1)
    sheet = Image.new("RGB", (width_px, max(panel.height for panel in drawn) + 2 * MARGIN_PX), PAPER)
    left_px = MARGIN_PX
    for panel in drawn:
        sheet.paste(panel, (left_px, MARGIN_PX))
        left_px += panel.width + MARGIN_PX
    return sheet


def contact_sheet(pictures: Sequence[Image.Image], *, columns: int = 1) -> Image.Image:
    """Puts pictures into a grid, in reading order."""
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    width_px = max(sum(picture.width for picture in row) for row in rows)
    heights_px = [max(picture.height for picture in row) for row in rows]
    sheet = Image.new("RGB", (width_px, sum(heights_px)), PAPER)
    top_px = 0
    for row, height_px in zip(rows, heights_px, strict=True):
        left_px = 0
        for picture in row:
            sheet.paste(picture, (left_px, top_px))
            left_px += picture.width
        top_px += height_px
    return sheet


Colours = Mapping[tuple[str, int], Rgb]


def _shared_colours(panels: Sequence[Panel]) -> Colours:
    colours: dict[tuple[str, int], Rgb] = {}
    for panel in panels:
        for identity in _identities(panel):
            colours.setdefault(identity, _rgb(PALETTE[len(colours) % len(PALETTE)]))
    return colours


def _identities(panel: Panel) -> list[tuple[str, int]]:
    """Names every mark by its box, or else its phrase, and how often that was marked before in this panel."""
    seen: dict[str, int] = {}
    identities = []
    for mark in panel.marks:
        name = " ".join(mark.phrase.lower().split()) if mark.box_xyxy_px is None else str(mark.box_xyxy_px)
        identities.append((name, seen.get(name, 0)))
        seen[name] = seen.get(name, 0) + 1
    return identities


def _draw_panel(image: Image.Image, panel: Panel, colours: Colours) -> Image.Image:
    shades = [colours[identity] for identity in _identities(panel)]
    picture = _draw_marks(image, panel.marks, shades)
    lines = set_lines(list(_words(panel)), picture.width)
    line_px = TEXT_SIZE_PX + 3 * GAP_PX
    top_px = TITLE_SIZE_PX + 2 * GAP_PX
    sheet = Image.new("RGB", (picture.width, top_px + picture.height + 2 * GAP_PX + len(lines) * line_px), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((0, 0), fitting(panel.title, font(TITLE_SIZE_PX), picture.width), fill=INK, font=font(TITLE_SIZE_PX))
    sheet.paste(picture, (0, top_px))
    top_px += picture.height + 2 * GAP_PX
    for number, line in enumerate(lines):
        _draw_line(pen, line, top_px + number * line_px, panel.marks, shades)
    return sheet


def _draw_marks(image: Image.Image, marks: Sequence[Mark], shades: Sequence[Rgb]) -> Image.Image:
    size = shown_size(image)
    grown = size[0] >= image.width
    pixels_HWC = np.asarray(image.resize(size, Image.Resampling.NEAREST if grown else Image.Resampling.LANCZOS)).copy()
    masks = [None if mark.mask_HW is None else resized(mark.mask_HW, size) for mark in marks]
    for area_HW, shade in _largest_first(masks, shades):
        opacity = OPACITY_OF_LARGE if area_HW.mean() > LARGE else OPACITY
        blend = (1 - opacity) * pixels_HWC[area_HW] + opacity * np.array(shade)
        pixels_HWC[area_HW] = blend.astype(np.uint8)
        pixels_HWC[outline(area_HW)] = shade
    picture = Image.fromarray(pixels_HWC)
    pen, taken = ImageDraw.Draw(picture), list[tuple[int, int]]()
    for number, (mark, mask_HW, shade) in enumerate(zip(marks, masks, shades, strict=True), start=1):
        if mark.box_xyxy_px is not None:
            scale = size[0] / image.width
            x0, y0, x1, y1 = (round(value * scale) for value in mark.box_xyxy_px)
            pen.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=shade, width=3)
            small = min(abs(x1 - x0), abs(y1 - y0)) < SMALL_BOX_PX
            inward_px = -RADIUS_PX if small else RADIUS_PX
            taken.append(_free((min(x0, x1) + inward_px, min(y0, y1) + inward_px), taken, size))
            _draw_number(pen, number, taken[-1], shade)
        elif mask_HW is not None and mask_HW.any():
            x, y = _inner_point(mask_HW)
            inward_px = 0 if mask_HW.sum() > SMALL_MASK_PX else -2 * RADIUS_PX
            taken.append(_free((x + inward_px, y + inward_px), taken, size))
            _draw_number(pen, number, taken[-1], shade)
        elif mark.points_xy_px:
            scale = size[0] / image.width
            places = [(x * scale, y * scale) for x, y in mark.points_xy_px]
            pen.line(places, fill=shade, width=2)
            middle = (round(sum(axis) / len(axis)) for axis in zip(*places, strict=True))
            x, y = (min(max(0, value), edge - 1) for value, edge in zip(middle, size, strict=True))
            taken.append(_free((x, y), taken, size))
            _draw_number(pen, number, taken[-1], shade)
    return picture


def _largest_first(
    masks: Sequence[NDArray[np.bool_] | None], shades: Sequence[Rgb]
) -> list[tuple[NDArray[np.bool_], Rgb]]:
    """Orders masks so that the outline of a small one is not covered by a large one."""
    drawn = [(mask_HW, shade) for mask_HW, shade in zip(masks, shades, strict=True) if mask_HW is not None]
    return sorted(drawn, key=lambda pair: -int(pair[0].sum()))


def shown_size(image: Image.Image, longest_px: int = PANEL_WIDTH_PX) -> tuple[int, int]:
    """Grows small images by a whole factor, so that their pixels stay square, and shrinks large ones."""
    scale = longest_px / max(image.size)
    scale = float(int(scale)) if scale >= 1 else scale
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def resized(mask_HW: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Scales a mask as the image is scaled that it lies on; `size` is width and height."""
    return np.asarray(Image.fromarray(mask_HW.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)) > 127


def outline(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the pixels of a mask that lie within three pixels of its edge."""
    inner_HW = np.pad(mask_HW, 3)
    eroded_HW = inner_HW.copy()
    for shift in (-3, -2, -1, 1, 2, 3):
        eroded_HW &= np.roll(inner_HW, shift, axis=0) & np.roll(inner_HW, shift, axis=1)
    return mask_HW & ~eroded_HW[3:-3, 3:-3]


def _inner_point(mask_HW: NDArray[np.bool_]) -> tuple[int, int]:
    """Returns the (x, y) of the mask's pixel that lies deepest in it: farthest from all that is not the mask."""
    depth_HW = distance_transform_edt(np.pad(mask_HW, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth_HW.argmax()), depth_HW.shape)
    return int(x), int(y)


def _free(wanted: tuple[int, int], taken: Sequence[tuple[int, int]], size: tuple[int, int]) -> tuple[int, int]:
    """Returns the place nearest to the wanted one where a number covers no other and is not cut; if there is one."""
    width_px, height_px = size
    xs, ys = (np.arange(RADIUS_PX, max(edge - RADIUS_PX, RADIUS_PX + 1)) for edge in (width_px, height_px))
    apart_HW = np.ones((ys.size, xs.size), dtype=np.bool_)
    for x, y in taken:
        apart_HW &= (ys[:, None] - y) ** 2 + (xs - x) ** 2 > (2 * RADIUS_PX) ** 2
    away_HW = (ys[:, None] - wanted[1]) ** 2 + (xs - wanted[0]) ** 2
    row, column = divmod(int(np.where(apart_HW, away_HW, away_HW.max() + 1).argmin()), xs.size)
    return int(xs[column]), int(ys[row])


def _draw_number(pen: ImageDraw.ImageDraw, number: int, centre: tuple[int, int], shade: Rgb) -> None:
    x, y = centre
    pen.ellipse((x - RADIUS_PX, y - RADIUS_PX, x + RADIUS_PX, y + RADIUS_PX), fill=shade, outline=PAPER)
    pen.text((x, y), str(number), fill=_ink_on(shade), font=font(NUMBER_SIZE_PX), anchor="mm")


def _words(panel: Panel) -> Iterator[Word]:
    """Yields the caption's words, then the phrases of marks that are no part of the caption, one a line."""
    end = 0
    spanned = [(mark.span, index) for index, mark in enumerate(panel.marks) if mark.span is not None]
    for (start, stop), index in sorted(spanned):
        if start < end or stop <= start:  # a phrase inside another one is listed below instead
            continue
        yield from _plain(panel.caption[end:start])
        yield from _chip(panel.caption[start:stop], index)
        end = stop
    yield from _plain(panel.caption[end:])
    if not panel.caption.strip() and not panel.marks:
        yield from _plain("(said nothing)")
    shown = _shown_in_caption(spanned)
    for index, mark in enumerate(panel.marks):
        if index not in shown:
            yield from _chip(mark.phrase or "(said nothing)", index, opens_line=True)
    for note in panel.notes:
        for position, text in enumerate(note.split()):
            yield Word(text=text, mark=None, opens_line=position == 0, faint=True)


def _shown_in_caption(spanned: Sequence[tuple[tuple[int, int], int]]) -> set[int]:
    shown, end = set(), 0
    for (start, stop), index in sorted(spanned):
        if start >= end and stop > start:
            shown.add(index)
            end = stop
    return shown


def _plain(text: str) -> Iterator[Word]:
    for position, word in enumerate(text.split()):
        yield Word(text=word, mark=None, tight=position == 0 and not text[0].isspace())


def _chip(text: str, mark: int, *, opens_line: bool = False) -> Iterator[Word]:
    for position, word in enumerate(text.split() or ["?"]):
        first = position == 0
        shown = f"{mark + 1}: {word}" if first else word
        yield Word(text=shown, mark=mark, tight=not first, opens_line=opens_line and first)


def _draw_line(
    pen: ImageDraw.ImageDraw,
    line: Sequence[tuple[int, int, Word]],
    top_px: int,
    marks: Sequence[Mark],
    shades: Sequence[Rgb],
) -> None:
    letters = font(TEXT_SIZE_PX)
    for left_px, right_px, word in line:
        if word.mark is None:
            pen.text((left_px, top_px + GAP_PX), word.text, fill=FAINT if word.faint else INK, font=letters)
            continue
        shade = shades[word.mark]
        box = (left_px, top_px, right_px, top_px + TEXT_SIZE_PX + 2 * GAP_PX)
        if _visible(marks[word.mark]):
            pen.rectangle(box, fill=shade)
        ink = _ink_on(shade) if _visible(marks[word.mark]) else INK
        pen.text((left_px + GAP_PX, top_px + GAP_PX), word.text, fill=ink, font=letters)
        if not _visible(marks[word.mark]):  # a phrase without a single pixel is underlined, not filled
            pen.line((box[0], box[3], box[2], box[3]), fill=shade, width=3)


def _visible(mark: Mark) -> bool:
    return mark.box_xyxy_px is not None or (mark.mask_HW is not None and bool(mark.mask_HW.any()))


def _ink_on(shade: Rgb) -> str:
    red, green, blue = shade
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 115 else PAPER


def _rgb(colour: str) -> Rgb:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
