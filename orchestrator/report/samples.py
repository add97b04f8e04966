"""Held-out images with what was said of them: every phrase in the colour of its mask, to be switched on and off."""

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.records import record
from orchestrator.report.gather import RunView, Scores, read_json
from orchestrator.report.masks import outline_of
from orchestrator.report.text import safe

PAGE_BYTES = 6_000_000  # of all pictures together, before base64
PICTURE_BYTES = 600_000
LAYERS_BYTES = 4_000_000  # of what was said of one picture, as JSON
WIDEST_PX = 1400
COLOURS = 16
OPEN = 3  # samples of each benchmark; the others are folded away
LARGE = 0.35  # share of the picture from which on a mask is background rather than a thing
SMALL = 12  # times the square of a number's radius: a smaller mask would be hidden by it
PIXELATED_PX = 160  # wide: below, pixels are shown as squares
TYPES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg"}


def samples(run: RunView) -> str:
    """Shows the held-out pictures that fit into the page, the first ones of each benchmark."""
    left = PAGE_BYTES
    drawn: dict[tuple[str, str], list[str]] = {}  # stage and benchmark -> its samples
    missing = 0
    for scores in run.scores:
        for number, picture in enumerate(scores.metrics.get("pictures", [])):
            sample = _sample(scores, picture, number, left)
            if sample is None:
                missing += 1
                continue
            left -= len(sample) * 3 // 4  # as base64 had it
            drawn.setdefault((scores.stage, str(picture.get("benchmark", ""))), []).append(sample)
    parts = [_first_ones(stage, benchmark, found) for (stage, benchmark), found in drawn.items()]
    if missing:
        parts.append(f'<p class="soft">{missing} more pictures are in the run folder; this page holds what fits.</p>')
    return "".join(parts) or '<p class="soft">No pictures yet: an evaluation draws them.</p>'


def _first_ones(stage: str, benchmark: str, found: Sequence[str]) -> str:
    more = "".join(found[OPEN:])
    folded = (
        f"<details><summary>{len(found) - OPEN} more of {safe(benchmark)}</summary>{more}</details>" if more else ""
    )
    return f"<h3>{safe(stage)}: {safe(benchmark)}</h3>{''.join(found[:OPEN])}{folded}"


def _sample(scores: Scores, picture: Mapping[str, Any], number: int, left: int) -> str | None:
    """Draws one picture: in layers if the evaluation left them, else as it was drawn then; None if it does not fit."""
    layers = _read_layers(scores.directory, str(picture.get("layers", "")))
    drawn = None if layers is None else _layered(scores, layers, number)
    if drawn is None:
        source = _read_picture(scores.directory, str(picture.get("path", "")))
        if source is None:
            return None
        drawn = f'<div class="wide"><img loading="lazy" alt="{safe(picture.get("text", ""))}" src="{source}"></div>'
    told = safe(picture.get("title") or f"Held-out image {picture.get('key', '')}")
    whole = f'<figure class="picture"><figcaption>{told}</figcaption>{drawn}</figure>'
    return whole if len(whole) * 3 // 4 <= left else None


@record
class _Layers:
    """What the evaluation wrote of one picture: {"image", "width_px", "height_px", "panels"}."""

    image: str  # as a data: address
    width_px: int
    height_px: int
    panels: tuple[Mapping[str, Any], ...]  # {"title", "caption", "phrases"}


def _read_layers(directory: Path, relative: str) -> _Layers | None:
    path = _inside(directory, relative)
    if path is None or path.stat().st_size > LAYERS_BYTES:
        return None
    plain = read_json(path)
    match plain:
        case {"image": str(image), "width_px": int(width), "height_px": int(height), "panels": [*panels]} if (
            width > 0 and height > 0 and all(isinstance(panel, dict) for panel in panels)
        ):
            source = _read_picture(directory, image)
            if source is not None:
                return _Layers(image=source, width_px=width, height_px=height, panels=tuple(panels))
    return None


def _layered(scores: Scores, layers: _Layers, number: int) -> str:
    """Draws a panel for the truth and for each model, the image once and shared by all."""
    prefix = f"{re.sub(r'[^A-Za-z0-9]', '-', scores.stage)}-{number}"
    colours: dict[str, int] = {}  # phrase -> colour, the same in every panel
    panels = "".join(_panel(panel, layers, prefix, index, colours) for index, panel in enumerate(layers.panels))
    return (
        f'<div class="panels">{panels}</div>'
        '<p class="layers"><button type="button" data-all="true">All masks</button> '
        '<button type="button" data-all="false">No masks</button></p>'
    )


def _panel(panel: Mapping[str, Any], layers: _Layers, prefix: str, index: int, colours: dict[str, int]) -> str:
    phrases = [phrase for phrase in panel.get("phrases", []) if isinstance(phrase, dict)]
    caption = str(panel.get("caption", ""))
    shades = [colours.setdefault(_identity(phrase), len(colours) % COLOURS) for phrase in phrases]
    names = [f"mask-{prefix}-{index}-{place}" for place in range(len(phrases))]
    shapes = [_shape(phrase, layers, place + 1) for place, phrase in enumerate(phrases)]
    largest_first = sorted(range(len(phrases)), key=lambda place: -shapes[place].share)
    look = "pixels" if layers.width_px <= PIXELATED_PX else "photo"
    image = f'<image id="image-{prefix}" class="{look}" {_size(layers)} href="{layers.image}"/>'
    if index:
        image = f'<use href="#image-{prefix}"/>'
    drawn = "".join(
        f'<g class="mask m{shades[place]}" id="{names[place]}">{shapes[place].svg}</g>'
        for place in largest_first
        if shapes[place].svg
    )
    chips = [
        _chip(phrase, shade, name, place + 1, visible=bool(shape.svg))
        for place, (phrase, shade, name, shape) in enumerate(zip(phrases, shades, names, shapes, strict=True))
    ]
    title = safe(panel.get("title", ""))
    return (
        f'<div class="panel"><h4>{title}</h4><svg class="view" viewBox="0 0 {layers.width_px} {layers.height_px}" '
        f'role="img" aria-label="{title}: {safe(caption or _listed(phrases))}">{image}{drawn}</svg>'
        f'<div class="caption" dir="auto">{_told(caption, phrases, chips)}</div></div>'
    )


def _size(layers: _Layers) -> str:
    return f'width="{layers.width_px}" height="{layers.height_px}" preserveAspectRatio="none"'


def _identity(phrase: Mapping[str, Any]) -> str:
    """Names what a phrase is about: a box that was asked about, or else its words."""
    box = phrase.get("box_xyxy_px")
    return str(box) if box else " ".join(str(phrase.get("phrase", "")).lower().split())


@record
class _Shape:
    """What is drawn of a phrase."""

    svg: str = ""  # empty: nothing can be drawn
    share: float = 0.0  # of the picture


def _shape(phrase: Mapping[str, Any], layers: _Layers, number: int) -> _Shape:
    """Draws a mask or a box with its number."""
    outline = outline_of(phrase.get("mask"))
    if outline is not None:
        height, width = phrase["mask"]["size"]
        across, down = layers.width_px / width, layers.height_px / height
        scale = "" if across == down == 1 else f' transform="scale({across:.6g},{down:.6g})"'
        large = ' class="large"' if outline.share > LARGE else ""
        (x, y), radius = outline.inside_xy, _radius(layers)
        covered = outline.share * layers.width_px * layers.height_px
        aside = 2 * radius if covered < SMALL * radius**2 else 0.0
        path = f'<path d="{outline.path}"{large}{scale}/>'
        numbered = _number(x * across - aside, y * down - aside, layers, number)
        return _Shape(svg=path + numbered, share=outline.share)
    match phrase.get("box_xyxy_px"):
        case [int() | float() as x0, int() | float() as y0, int() | float() as x1, int() | float() as y1]:
            width, height = max(0.0, x1 - x0), max(0.0, y1 - y0)
            box = f'<rect x="{x0:.7g}" y="{y0:.7g}" width="{width:.7g}" height="{height:.7g}"/>'
            share = width * height / (layers.width_px * layers.height_px)
            return _Shape(svg=box + _number(x0, y0, layers, number), share=share)
    return _Shape()


def _number(x: float, y: float, layers: _Layers, number: int) -> str:
    """Writes the number of a phrase into the picture: colours alone do not tell phrases apart for everybody."""
    radius = _radius(layers)
    x = min(max(x, radius), layers.width_px - radius)
    y = min(max(y, radius), layers.height_px - radius)
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.2f}"/>'
        f'<text x="{x:.1f}" y="{y + 0.45 * radius:.1f}" style="font-size:{1.3 * radius:.2f}px">{number}</text>'
    )


def _radius(layers: _Layers) -> float:
    return max(layers.width_px, layers.height_px) / 42


def _chip(phrase: Mapping[str, Any], shade: int, name: str, number: int, *, visible: bool) -> str:
    words = f'<span class="at">{number}</span>{safe(phrase.get("phrase") or "(said nothing)")}'
    if not visible:
        return f'<span class="phrase nothing" title="nothing of it could be drawn">{words}</span>'
    return f'<button type="button" class="phrase m{shade}" aria-pressed="true" data-mask="{name}">{words}</button>'


def _told(caption: str, phrases: Sequence[Mapping[str, Any]], chips: Sequence[str]) -> str:
    """Writes a caption with its phrases as switches, then those that are no part of it."""
    parts, end, used = [], 0, set()
    for (start, stop), place in sorted(_spans(phrases, len(caption))):
        if start < end:  # a phrase inside another one is listed below instead
            continue
        parts += [safe(caption[end:start]), chips[place]]
        used.add(place)
        end = stop
    parts.append(safe(caption[end:]))
    others = "".join(f"<li>{chip}</li>" for place, chip in enumerate(chips) if place not in used)
    text = "".join(parts).strip() or ("" if others else "(said nothing)")
    return (f"<p>{text}</p>" if text else "") + (f"<ul>{others}</ul>" if others else "")


def _spans(phrases: Sequence[Mapping[str, Any]], length: int) -> Iterator[tuple[tuple[int, int], int]]:
    for place, phrase in enumerate(phrases):
        match phrase.get("span"):
            case [int(start), int(stop)] if 0 <= start < stop <= length:
                yield (start, stop), place


def _listed(phrases: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(str(phrase.get("phrase", "")) for phrase in phrases) or "(nothing)"


def _inside(directory: Path, relative: str) -> Path | None:
    """Returns a file of a report; None if there is none: a name from data must not lead out of its folder."""
    if not relative:
        return None
    path = (directory / relative).resolve()
    return path if path.is_relative_to(directory.resolve()) and path.is_file() else None


def _read_picture(directory: Path, relative: str) -> str | None:
    """Reads a picture of a report as a data: address, made smaller if it is too big; None if it is no picture."""
    path = _inside(directory, relative)
    if path is None:
        return None
    data = path.read_bytes()
    kind = next((kind for magic, kind in TYPES.items() if data.startswith(magic)), None)
    if kind is None:
        return None
    if len(data) > PICTURE_BYTES:
        smaller = _smaller(data)
        if smaller is None:
            return None
        data, kind = smaller, "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _smaller(data: bytes) -> bytes | None:
    """Shrinks a picture until it fits; None on machines without Pillow, e.g. some login nodes."""
    import importlib.util
    import io

    if importlib.util.find_spec("PIL") is None:
        return None
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return None
    width_px = min(picture.width, WIDEST_PX)
    while width_px >= 200:
        shrunk = picture.resize((width_px, max(1, round(picture.height * width_px / picture.width))))
        buffer = io.BytesIO()
        shrunk.quantize(128).save(buffer, format="PNG", optimize=True)
        if buffer.tell() <= PICTURE_BYTES:
            return buffer.getvalue()
        width_px = width_px * 3 // 4
    return None
