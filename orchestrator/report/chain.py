"""The lineage of a run as an SVG graph: layers from top to bottom, long edges led around the stages between."""

from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path

from orchestrator.records import record
from orchestrator.report.text import brief, safe

NODE_PX, LANE_PX, GAP_PX = 176, 14, 14  # width of a stage, of an edge that passes a layer, and the space between
HEIGHT_PX, PITCH_PX, MARGIN_PX = 50, 92, 8
SMALLEST = 0.8  # of its size, to fit into the page; beyond that it scrolls
SWEEPS = 4
MOST_LANES = 5000  # beyond, edges are drawn straight through: nobody follows one by eye any more
LONGEST_NAME = 19  # characters
CHAIN_STYLE = "".join(
    (Path(__file__).parent / name).read_text(encoding="utf-8") for name in ("colors.css", "chain.css")
)

OUTSIDE = "outside"
SYMBOLS: Mapping[str, str] = {
    "done": "✓", "reused": "↺", "running": "▶", "failed": "✗", "cancelled": "■", "waiting": "…", "queued": "…",
    OUTSIDE: "◇",
}  # fmt: skip


@record
class Node:
    """A stage, or an artifact from outside of the run, to be drawn."""

    name: str
    key: str
    state: str  # of the stage; OUTSIDE for what is none
    parents: tuple[str, ...]
    roles: Mapping[str, str] = field(default_factory=dict)  # parent -> what it gives
    title: str = ""  # what is shown instead of the name
    words: str = ""  # what is said of it where somebody points at it; by default name, state and parents


@record
class _Slot:
    """A place in a layer: a stage, or where an edge passes by on its way to `target`."""

    name: str
    passing: bool = False


Layers = list[list[_Slot]]
Links = list[tuple[str, str]]  # between slots of neighbouring layers


def chain_graph(nodes: Sequence[Node]) -> str:
    """Draws the graph for the page; parents that are no nodes are left out."""
    if not nodes:
        return ""
    drawn, width_px, height_px = _drawn(nodes, linked=True)
    words = safe("; ".join(_in_words(node) for node in nodes))
    return (
        f'<div class="wide"><svg class="chain" width="{width_px:.0f}" height="{height_px}" role="img" '
        f'style="min-width:{SMALLEST * width_px:.0f}px" viewBox="0 0 {width_px:.0f} {height_px}" '
        f'aria-label="{words}">{drawn}</svg></div>'
    )


def chain_picture(nodes: Sequence[Node], title: str) -> str:
    """Draws the graph as an SVG file of its own, which loads nothing and follows the reader's light or dark."""
    drawn, width_px, height_px = _drawn(nodes, linked=False)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chain" width="{width_px:.0f}" height="{height_px}" '
        f'viewBox="0 0 {width_px:.0f} {height_px}" role="img"><title>{safe(title)}</title><style>{CHAIN_STYLE}</style>'
        f'<rect class="paper" width="100%" height="100%"/>{drawn}</svg>\n'
    )


def _drawn(nodes: Sequence[Node], *, linked: bool) -> tuple[str, float, int]:
    """Draws nodes and edges; returns them with width and height in pixels."""
    layers, links = _layered(nodes)
    _untangle(layers, links)
    places = _places(layers)
    by_name = {node.name: node for node in nodes}
    width_px = max(x for x, _ in places.values()) + NODE_PX / 2 + MARGIN_PX
    height_px = (len(layers) - 1) * PITCH_PX + HEIGHT_PX + 2 * MARGIN_PX
    parts = [_edge(places[above], places[below], _role(by_name, above, below)) for above, below in links]
    slots = [slot for layer in layers for slot in layer]
    parts += [_stem(places[slot.name]) for slot in slots if slot.passing]
    parts += [_box(by_name[slot.name], places[slot.name], linked=linked) for slot in slots if not slot.passing]
    return "".join(parts), width_px, height_px


def _layered(nodes: Sequence[Node]) -> tuple[Layers, Links]:
    """Puts every stage one layer below its lowest parent, and a passing slot into every layer an edge crosses."""
    depth: dict[str, int] = {}
    known = {node.name for node in nodes}
    parents = {node.name: [name for name in node.parents if name in known] for node in nodes}
    for node in nodes:  # a run lists its stages in an order in which they can run
        depth[node.name] = 1 + max((depth.get(parent, -1) for parent in parents[node.name]), default=-1)
    layers: Layers = [[] for _ in range(max(depth.values()) + 1)]
    for node in nodes:
        layers[depth[node.name]].append(_Slot(name=node.name))
    crossed = sum(depth[node.name] - depth[parent] - 1 for node in nodes for parent in parents[node.name])
    links: dict[tuple[str, str], None] = {}  # in the order of the stages, each once
    for node in nodes:
        for parent in parents[node.name]:
            above = parent
            between = range(depth[parent] + 1, depth[node.name]) if crossed <= MOST_LANES else ()
            for level in between:
                lane = f"{parent}\n{level}"  # edges of one parent share a lane; no stage has a line break in its name
                if (above, lane) not in links:
                    layers[level].append(_Slot(name=lane, passing=True))
                links[above, lane] = None
                above = lane
            links[above, node.name] = None
    return layers, list(links)


def _untangle(layers: Layers, links: Links) -> None:
    """Orders each layer by where its neighbours stand, down and up again, so that few edges cross."""
    above: dict[str, list[str]] = {}
    below: dict[str, list[str]] = {}
    for upper, lower in links:
        above.setdefault(lower, []).append(upper)
        below.setdefault(upper, []).append(lower)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        order = range(1, len(layers)) if down else range(len(layers) - 2, -1, -1)
        for level in order:
            fixed = layers[level - 1 if down else level + 1]
            place = {slot.name: number / max(1, len(fixed) - 1) for number, slot in enumerate(fixed)}
            neighbours = above if down else below
            keys = {}
            for number, slot in enumerate(layers[level]):
                beside = [place[name] for name in neighbours.get(slot.name, ()) if name in place]
                keys[slot.name] = _mean(beside, number / len(layers[level]))
            layers[level].sort(key=lambda slot: keys[slot.name])


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _places(layers: Layers) -> dict[str, tuple[float, float]]:
    """Returns the centre of every slot, layers centred on each other."""
    extents = [sum(_extent(slot) for slot in layer) + GAP_PX * (len(layer) - 1) for layer in layers]
    widest = max(extents)
    places = {}
    for level, (layer, extent) in enumerate(zip(layers, extents, strict=True)):
        x = MARGIN_PX + (widest - extent) / 2
        y = MARGIN_PX + level * PITCH_PX + HEIGHT_PX / 2
        for slot in layer:
            places[slot.name] = (x + _extent(slot) / 2, y)
            x += _extent(slot) + GAP_PX
    return places


def _extent(slot: _Slot) -> int:
    return LANE_PX if slot.passing else NODE_PX


def _role(by_name: Mapping[str, Node], above: str, below: str) -> str | None:
    """Says what an edge hands over where it ends at a node; None where it only passes a layer."""
    node = by_name.get(below)
    return None if node is None else node.roles.get(above.partition("\n")[0], "")


def _edge(above: tuple[float, float], below: tuple[float, float], role: str | None) -> str:
    (x0, y0), (x1, y1) = above, below
    top, bottom = y0 + HEIGHT_PX / 2, y1 - HEIGHT_PX / 2 - (0 if role is None else 5)
    bend = (bottom - top) / 2
    curve = f"M{x0:.0f},{top:.0f} C{x0:.0f},{top + bend:.0f} {x1:.0f},{bottom - bend:.0f} {x1:.0f},{bottom:.0f}"
    line = f'<path class="edge" d="{curve}"/>'
    if role is None:
        return line
    title = f"<title>{safe(role)}</title>" if role else ""
    return f'<g>{title}{line}<path class="head" d="M{x1 - 4:.0f},{bottom:.0f} h8 l-4,6 z"/></g>'


def _stem(place: tuple[float, float]) -> str:
    x, y = place
    return f'<path class="edge" d="M{x:.0f},{y - HEIGHT_PX / 2:.0f} V{y + HEIGHT_PX / 2:.0f}"/>'


def _box(node: Node, place: tuple[float, float], *, linked: bool) -> str:
    x, y = place[0] - NODE_PX / 2, place[1] - HEIGHT_PX / 2
    symbol = SYMBOLS.get(node.state, "?")
    drawn = (
        f'<g class="node {safe(node.state)}"><title>{safe(_in_words(node))}</title>'
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{NODE_PX}" height="{HEIGHT_PX}" rx="7"/>'
        f'<text class="symbol" x="{x + 12:.0f}" y="{y + 21:.0f}">{symbol}</text>'
        f'<text class="title" x="{x + 30:.0f}" y="{y + 21:.0f}">{brief(node.title or node.name, LONGEST_NAME - 1)}'
        f'</text><text class="kind" x="{x + 12:.0f}" y="{y + 39:.0f}">{brief(node.key, LONGEST_NAME + 6)}</text></g>'
    )
    return f'<a href="#stage-{safe(node.name)}">{drawn}</a>' if linked and node.state != OUTSIDE else drawn


def _in_words(node: Node) -> str:
    if node.words:
        return node.words
    name = node.title or node.name
    return f"{name} ({node.key}): {node.state}" + (f", after {', '.join(node.parents)}" if node.parents else "")
