"""Draws retrieval: each query beside what every model finds first for it, the right ones in a green frame."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from orchestrator.records import record
from stages.evaluate.grids import TOP, Hit, Search, View
from stages.lettering import Word, fitting, font, set_lines
from stages.pictures import FAINT, INK, MARGIN_PX, PAPER, TITLE_SIZE_PX, outline, resized, shown_size
from stages.vision import Mask

RIGHT, FRAME, ASKED = "#009E73", "#C8C8C8", "#D55E00"  # green and vermilion of Okabe and Ito; a tick says it once more
TILE_PX = 136  # of a candidate: its longer side
QUERY_PX, LONG_QUERY_PX = 176, 264  # wide, where the query is a text; one of more than LONG characters
LONG = 160
SCORE_PX = 66  # wide: a cosine and a tick
GAP_PX, BETWEEN_PX = 10, 26  # between tiles, and between queries
SIZE_PX, LINE_PX = 13, 18  # of letters, and from line to line
TEXT_LINES = 2  # of a text that was found
VEIL = 0.62  # how white all is that does not belong to the region


@record
class Look:
    """What a view shows: its image, and the region that is meant; None: all of it."""

    image: Image.Image
    mask_HW: Mask | None


Looker = Callable[[View], Look]


def draw_grid(title: str, found: Sequence[tuple[str, Sequence[Search]]], look: Looker) -> Image.Image:
    """Draws a row a query; `found` has the name of each model and its searches, with the same queries in order."""
    rows = list(zip(*(searches for _, searches in found), strict=True))
    names = [name for name, _ in found]
    drawn = [_draw_row(names, row, look) for row in rows]
    top_px = MARGIN_PX + TITLE_SIZE_PX + GAP_PX
    width_px = max(one.width for one in drawn) + 2 * MARGIN_PX
    height_px = top_px + sum(one.height + BETWEEN_PX for one in drawn) + LINE_PX + MARGIN_PX
    sheet = Image.new("RGB", (width_px, height_px), PAPER)
    pen = ImageDraw.Draw(sheet)
    letters = font(TITLE_SIZE_PX)
    pen.text((MARGIN_PX, MARGIN_PX), fitting(title, letters, width_px - 2 * MARGIN_PX), fill=INK, font=letters)
    for one in drawn:
        sheet.paste(one, (MARGIN_PX, top_px))
        top_px += one.height + BETWEEN_PX
        pen.line((MARGIN_PX, top_px - BETWEEN_PX / 2, width_px - MARGIN_PX, top_px - BETWEEN_PX / 2), fill=FRAME)
    _tick(pen, (MARGIN_PX, top_px + 2))
    told = "and green: right. Numbers are cosines; the nearest stands first, of equally near ones a wrong one."
    pen.text((MARGIN_PX + 18, top_px), told, fill=FAINT, font=font(SIZE_PX))
    return sheet


def _draw_row(names: Sequence[str], searches: Sequence[Search], look: Looker) -> Image.Image:
    strips = [_draw_strip(name, search, look) for name, search in zip(names, searches, strict=True)]
    height_px = sum(strip.height for strip in strips) + GAP_PX * (len(strips) - 1)
    query = _draw_query(searches[0].query, look, height_px)
    width_px = query.width + 2 * GAP_PX + max(strip.width for strip in strips)
    row = Image.new("RGB", (width_px, max(height_px, query.height)), PAPER)
    row.paste(query, (0, 0))
    top_px = 0
    for strip in strips:
        row.paste(strip, (query.width + 2 * GAP_PX, top_px))
        top_px += strip.height + GAP_PX
    return row


def _draw_query(query: View | str, look: Looker, height_px: int) -> Image.Image:
    if isinstance(query, View):
        return _draw_tile(look(query), ASKED)
    width_px = QUERY_PX if len(query) <= LONG else LONG_QUERY_PX
    cell = Image.new("RGB", (width_px, height_px), PAPER)
    _write(ImageDraw.Draw(cell), (0, 0), _lines(query, width_px, height_px // LINE_PX))
    return cell


def _draw_strip(name: str, search: Search, look: Looker) -> Image.Image:
    """Draws what one model found, below its name and the rank of the right one."""
    wide_px = TOP * TILE_PX + (TOP - 1) * GAP_PX
    told = [_lines(hit.shown, wide_px - SCORE_PX, TEXT_LINES) for hit in search.hits if isinstance(hit.shown, str)]
    high_px = LINE_PX * sum(map(len, told)) if told else TILE_PX + LINE_PX
    strip = Image.new("RGB", (wide_px, LINE_PX + high_px), PAPER)
    pen = ImageDraw.Draw(strip)
    heading = f"{name}: the right one is number {search.rank} of {search.among}"
    pen.text((0, 0), heading, fill=FAINT, font=font(SIZE_PX))
    top_px = LINE_PX
    for number, hit in enumerate(search.hits):
        if isinstance(hit.shown, View):
            left_px = number * (TILE_PX + GAP_PX)
            strip.paste(_draw_tile(look(hit.shown), RIGHT if hit.right else FRAME), (left_px, top_px))
            _score(pen, hit, (left_px, top_px + TILE_PX + 1))
        else:
            _score(pen, hit, (0, top_px))
            _write(pen, (SCORE_PX, top_px), told[number], RIGHT if hit.right else INK)
            top_px += LINE_PX * len(told[number])
    return strip


def _draw_tile(look: Look, colour: str) -> Image.Image:
    """Draws a view in a frame; where a region is meant all else is veiled, and the region has an edge."""
    inner_px = TILE_PX - 8
    size = shown_size(look.image, inner_px)
    grown = size[0] >= look.image.width
    scaled = look.image.resize(size, Image.Resampling.NEAREST if grown else Image.Resampling.LANCZOS)
    pixels_HWC = np.asarray(scaled.convert("RGB")).copy()
    if look.mask_HW is not None:
        area_HW = resized(look.mask_HW, size)
        pixels_HWC[~area_HW] = (VEIL * 255 + (1 - VEIL) * pixels_HWC[~area_HW]).astype(np.uint8)
        pixels_HWC[outline(area_HW)] = (0, 0, 0)
    tile = Image.new("RGB", (TILE_PX, TILE_PX), PAPER)
    tile.paste(Image.fromarray(pixels_HWC), ((TILE_PX - size[0]) // 2, (TILE_PX - size[1]) // 2))
    width_px = 1 if colour == FRAME else 4
    ImageDraw.Draw(tile).rectangle((0, 0, TILE_PX - 1, TILE_PX - 1), outline=colour, width=width_px)
    return tile


def _score(pen: ImageDraw.ImageDraw, hit: Hit, at: tuple[int, int]) -> None:
    x, y = at
    pen.text(at, f"{hit.cosine:.2f}", fill=RIGHT if hit.right else FAINT, font=font(SIZE_PX))
    if hit.right:
        _tick(pen, (x + 38, y + 2))


def _tick(pen: ImageDraw.ImageDraw, at: tuple[int, int]) -> None:
    x, y = at
    pen.line([(x, y + 6), (x + 4, y + 10), (x + 12, y)], fill=RIGHT, width=3)


def _lines(text: str, width_px: int, most: int) -> list[str]:
    """Breaks a text into at most so many lines; what does not fit is left out behind dots."""
    lines = set_lines([Word(text=word, mark=None) for word in text.split()], width_px, SIZE_PX)
    words = [[word.text for _, _, word in line] for line in lines[:most]]
    if len(lines) > most:
        words[-1][-1] = "…"
    return [" ".join(line) for line in words]


def _write(pen: ImageDraw.ImageDraw, at: tuple[int, int], lines: Sequence[str], colour: str = INK) -> None:
    for number, line in enumerate(lines):
        pen.text((at[0], at[1] + number * LINE_PX), line, fill=colour, font=font(SIZE_PX))
