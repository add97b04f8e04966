"""Draws scenes: which shapes lie where, what their picture looks like, and which pixels are whose.

Shapes of arrays: H, W the picture; h, w the window around one shape. Lengths of a plan are parts of the side (0..1).
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from orchestrator.records import record
from stages.vision import Mask

SHAPES = ("ring", "bar", "triangle", "cross")  # told apart at a few pixels: a disc or a square is not
COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 60),
    "blue": (45, 85, 220),
    "yellow": (240, 215, 50),
    "purple": (140, 55, 175),
    "orange": (242, 132, 30),
    "white": (246, 246, 246),
}
GROUNDS = {"grey": (128, 128, 128), "brown": (118, 84, 58), "sandy": (204, 184, 146), "dark": (44, 46, 52)}
RADII = {"small": (0.141, 0.160), "large": (0.211, 0.242)}  # of a circle of the same area
TEXTURES = {"plain": 0.7, "striped": 0.15, "dotted": 0.15}

LEAST_VISIBLE = 0.8  # of every object's pixels
_LEAST_GAP_X = 24 / 128  # between the centres of visible boxes: left and right is never in doubt
_MARGIN = 0.015
_TILT = math.radians(15)
_REACH = 1.8  # the farthest corner of any shape, in radii
_CORNERS = {  # upright, in radii, those of the right half
    "bar": ((1.571, -0.5), (1.571, 0.5)),
    "triangle": ((0.0, -1.167), (1.347, 1.167)),
    "cross": ((1.19, -0.397), (1.19, 0.397), (0.397, -1.19), (0.397, 1.19)),
}
_RING = (1.17, 0.607)  # outer and inner radius, in radii
_PROPOSALS = 128
_BY_CHANCE = 3  # things that chance finds room for soon; four it would find in one of thousands of proposals


@record
class Thing:
    """One object as planned."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float  # centre, 0..1
    y: float
    radius: float
    angle: float  # radians
    rgb: tuple[int, int, int]  # the colour, a little off


@record
class Scene:
    """A picture and the truth about it; things are ordered left to right."""

    things: tuple[Thing, ...]
    ground: str
    pixels_HW3: NDArray[np.uint8]
    owner_HW: NDArray[np.int8]  # 0 = ground, n = things[n - 1]

    def mask(self, number: int) -> Mask:
        """Returns the visible pixels of things[number]; -1 means the ground."""
        mask_HW: Mask = self.owner_HW == number + 1
        return mask_HW


def draw_scene(rng: np.random.Generator, *, image_px: int, max_objects: int) -> Scene:
    """Draws one scene; the same generator state gives the same scene."""
    things, windows, owner_HW, depth = _arranged(rng, image_px, max_objects)
    ground = list(GROUNDS)[int(rng.integers(len(GROUNDS)))]
    canvas_HW3 = _ground(rng, ground, image_px)
    for number in depth:
        _paint(canvas_HW3, things[number], windows[number])
    canvas_HW3 += np.float32(rng.uniform(2, 7)) * _noise_bank(image_px)[int(rng.integers(_NOISES))]
    pixels = np.clip(canvas_HW3, 0, 255, out=canvas_HW3).astype(np.uint8)
    return Scene(things=things, ground=ground, pixels_HW3=pixels, owner_HW=owner_HW)


# top, left, how much of each pixel is inside (0..1), and the pixel's place in the shape's own axes (radii)
Window = tuple[int, int, NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]

_NOISES = 64


def _arranged(
    rng: np.random.Generator, image_px: int, max_objects: int
) -> tuple[tuple[Thing, ...], list[Window], NDArray[np.int8], list[int]]:
    """Finds things that fit: from left to right, with their windows, the owner of each pixel and the painting order."""
    weights = np.minimum(np.arange(1, max_objects + 1), 2).cumsum()  # one thing is half as likely as each other number
    count = 1 + int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))
    while True:
        looks = _looks(rng, count)
        depth = rng.permutation(count).tolist()
        for places in _places(rng, looks):
            placed = [replace(look, x=x, y=y) for look, (x, y) in zip(looks, places, strict=True)]
            things = tuple(sorted(placed, key=lambda thing: thing.x))
            windows = [_window(thing, image_px) for thing in things]
            owner_HW = _owners(windows, depth, image_px)
            if _clear(owner_HW, windows):
                return things, windows, owner_HW, depth


def _looks(rng: np.random.Generator, count: int) -> list[Thing]:
    """Chooses what things look like, not yet where they are; no two have the same colour."""
    colours = rng.permutation(len(COLOURS))[:count]
    return [_look(rng, list(COLOURS)[int(colour)]) for colour in colours]


def _look(rng: np.random.Generator, colour: str) -> Thing:
    size = "small" if rng.random() < 0.5 else "large"
    texture = int(np.searchsorted(np.cumsum(list(TEXTURES.values())), rng.random(), side="right"))
    jitter = rng.integers(-12, 13, size=3).tolist()
    red, green, blue = (min(255, max(0, value + off)) for value, off in zip(COLOURS[colour], jitter, strict=True))
    return Thing(
        shape=SHAPES[int(rng.integers(len(SHAPES)))],
        colour=colour,
        size=size,
        texture=list(TEXTURES)[min(texture, len(TEXTURES) - 1)],
        x=0.5,
        y=0.5,
        radius=float(rng.uniform(*RADII[size])),
        angle=float(rng.uniform(-_TILT, _TILT)),
        rgb=(red, green, blue),
    )


def _places(rng: np.random.Generator, looks: list[Thing]) -> Iterator[list[tuple[float, float]]]:
    """Proposes some centres that keep the things in the picture and off each other."""
    radii = np.array([look.radius for look in looks])
    edges = _MARGIN + radii[:, None] * [_extent(look.shape, look.angle) for look in looks]
    xy = edges + rng.random((_PROPOSALS, len(looks), 2)) * (1 - 2 * edges)
    if len(looks) > _BY_CHANCE:
        xy[..., 0] = _apart(rng, edges[:, 0])
    good = (np.diff(np.sort(xy[..., 0], axis=1), axis=1) >= _LEAST_GAP_X).all(axis=1)
    for one in range(len(looks)):
        for other in range(one):
            good &= np.hypot(*(xy[:, one] - xy[:, other]).T) >= 0.8 * (radii[one] + radii[other])
    for proposal in xy[good][:8]:
        yield [(float(x), float(y)) for x, y in proposal]


def _apart(rng: np.random.Generator, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Proposes centres from left to right, in any order of the things, as far from each other as they must be.

    Where an order has no room for all, its proposal stays without: it is refused like others that do not fit.
    """
    count, lines = len(edges), np.arange(_PROPOSALS)[:, None]
    orders = rng.permuted(np.tile(np.arange(count), (_PROPOSALS, 1)), axis=1)
    room = 1 - edges[orders[:, 0]] - edges[orders[:, -1]] - (count - 1) * _LEAST_GAP_X
    steps = np.sort(rng.random((_PROPOSALS, count)), axis=1) * np.maximum(room, 0)[:, None]
    x = np.empty((_PROPOSALS, count))
    x[lines, orders] = edges[orders[:, :1]] + steps + np.arange(count) * _LEAST_GAP_X
    x[((x < edges) | (x > 1 - edges)).any(axis=1)] = np.nan
    return x


def _extent(shape: str, angle: float) -> tuple[float, float]:
    """Returns how far a tilted shape reaches to either side and up or down, in radii."""
    if shape == "ring":
        return (_RING[0], _RING[0])
    cosine, sine = math.cos(angle), math.sin(angle)
    corners = [(side * u, v) for u, v in _CORNERS[shape] for side in (-1, 1)]
    return (max(abs(u * cosine - v * sine) for u, v in corners), max(abs(u * sine + v * cosine) for u, v in corners))


def _owners(windows: list[Window], depth: list[int], image_px: int) -> NDArray[np.int8]:
    owner_HW = np.zeros((image_px, image_px), dtype=np.int8)
    for number in depth:
        top, left, inside_hw, _, _ = windows[number]
        view = owner_HW[top : top + inside_hw.shape[0], left : left + inside_hw.shape[1]]
        view[inside_hw >= 0.5] = number + 1
    return owner_HW


def _clear(owner_HW: NDArray[np.int8], windows: list[Window]) -> bool:
    """Tells whether every thing shows enough of itself and the visible boxes stand clearly left to right."""
    centres = []
    for number, (_, _, inside_hw, _, _) in enumerate(windows):
        visible_HW = owner_HW == number + 1
        if np.count_nonzero(visible_HW) < LEAST_VISIBLE * np.count_nonzero(inside_hw >= 0.5):
            return False
        columns = np.flatnonzero(visible_HW.any(axis=0))
        centres.append((columns[0] + columns[-1] + 1) / 2)
    return bool((np.diff(centres) >= _LEAST_GAP_X * owner_HW.shape[1]).all())


def _window(thing: Thing, image_px: int) -> Window:
    reach = _REACH * thing.radius * image_px + 1
    x, y = thing.x * image_px, thing.y * image_px
    left, top = max(0, int(x - reach)), max(0, int(y - reach))
    columns = np.arange(left, min(image_px, int(x + reach) + 1), dtype=np.float32) + np.float32(0.5 - x)
    rows = np.arange(top, min(image_px, int(y + reach) + 1), dtype=np.float32) + np.float32(0.5 - y)
    radius_px = np.float32(thing.radius * image_px)
    cosine, sine = np.float32(math.cos(thing.angle)) / radius_px, np.float32(math.sin(thing.angle)) / radius_px
    u_hw = columns[None, :] * cosine + rows[:, None] * sine
    v_hw = rows[:, None] * cosine - columns[None, :] * sine
    inside_hw = _covered(_distance(thing.shape, u_hw, v_hw) * radius_px)
    return top, left, inside_hw, u_hw, v_hw


def _distance(shape: str, u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns how far outside (above 0) or inside (below 0) of a shape a point lies; all shapes have one area."""
    if shape == "ring":
        outer, inner = _RING
        return np.abs(np.sqrt(u * u + v * v) - np.float32((outer + inner) / 2)) - np.float32((outer - inner) / 2)
    if shape == "bar":
        return np.maximum(np.abs(u) - np.float32(1.571), np.abs(v) - np.float32(0.5))
    if shape == "triangle":  # equilateral, upright, its box in the middle: three half planes at the inner radius
        slope, v = np.float32(math.sqrt(3) / 2), v - np.float32(0.389)
        return np.maximum(v, slope * np.abs(u) - np.float32(0.5) * v) - np.float32(0.778)
    long, short = np.float32(1.19), np.float32(0.397)
    across = np.maximum(np.abs(u) - long, np.abs(v) - short)
    return np.minimum(across, np.maximum(np.abs(u) - short, np.abs(v) - long))


def _paint(canvas_HW3: NDArray[np.float32], thing: Thing, window: Window) -> None:
    top, left, inside_hw, u_hw, v_hw = window
    view = canvas_HW3[top : top + inside_hw.shape[0], left : left + inside_hw.shape[1]]
    shade_hw = 1 - np.float32(0.8) * _marks(thing, canvas_HW3.shape[0], u_hw, v_hw)
    colour_hw3 = shade_hw[..., None] * np.asarray(thing.rgb, dtype=np.float32)
    view += inside_hw[..., None] * (colour_hw3 - view)


def _marks(thing: Thing, image_px: int, u_hw: NDArray[np.float32], v_hw: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns where the texture darkens the shape (1) and where it does not (0)."""
    if thing.texture == "plain":
        return np.zeros_like(u_hw)
    period = np.float32(10 / 128 / thing.radius)  # ten pixels of 128, whatever the size of the thing
    softness = np.float32(thing.radius * image_px)  # radii to pixels
    if thing.texture == "striped":
        off_hw = np.abs(np.mod(u_hw + v_hw, period * np.float32(1.414)) / np.float32(1.414) - period / 2)
        outside_hw = off_hw - period * np.float32(0.22)
        return _covered(outside_hw * softness)
    across_hw = np.mod(u_hw, period) - period / 2
    down_hw = np.mod(v_hw, period) - period / 2
    outside_hw = np.hypot(across_hw, down_hw) - period * np.float32(0.29)
    return _covered(outside_hw * softness)


def _covered(outside_px: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turns the distance of a pixel's centre from an edge into how much of the pixel is inside."""
    covered: NDArray[np.float32] = np.clip(np.float32(0.5) - outside_px, np.float32(0), np.float32(1))
    return covered


def _ground(rng: np.random.Generator, name: str, image_px: int) -> NDArray[np.float32]:
    """Fills the picture with a ground: its colour, a little off, brighter towards one side."""
    colour = np.asarray(GROUNDS[name], dtype=np.float32) + rng.uniform(-8, 8, size=3).astype(np.float32)
    place = np.linspace(-1, 1, image_px, dtype=np.float32)
    angle, strength = float(rng.uniform(0, 2 * math.pi)), float(rng.uniform(0, 16))
    across, down = np.float32(strength * math.cos(angle)), np.float32(strength * math.sin(angle))
    light_HW = across * place[None, :] + down * place[:, None]
    canvas: NDArray[np.float32] = colour + light_HW[..., None]
    return canvas


@lru_cache(maxsize=4)
def _noise_bank(image_px: int) -> NDArray[np.float32]:
    """Returns a few fields of noise that scenes choose from: drawing it anew would be most of the work."""
    rng = np.random.default_rng(20_240_607)
    return rng.standard_normal((_NOISES, image_px, image_px, 1), dtype=np.float32)
