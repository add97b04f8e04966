"""Lineage as a tree of lines: what an artifact is made of, or what was made from it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from orchestrator.history import SHORT
from orchestrator.inventory import size_in_words, tars_in_words
from orchestrator.lineage.graph import Graph, Node, Way
from orchestrator.lineage.wanted import Lineage
from orchestrator.records import record
from orchestrator.report.text import plain, shown

DEEPEST = 10  # levels; below, a tree goes on at the margin: a chain of a thousand stages must stay readable
LONGEST = 160  # characters of one word from outside
MOST_SCORES = 4  # of one benchmark
TITLES: Mapping[Way, str] = {"up": "made of", "down": "made from it"}


@record
class Line:
    """One line: the branches of the tree, and its words."""

    branches: str
    words: str
    style: str = ""


@record
class _Place:
    """An artifact at a place in the tree."""

    name: str
    role: str
    note: str
    branches: str  # before its own lines
    below: str  # before the lines of what hangs below it
    level: int


def lineage_lines(lineage: Lineage, width: int) -> Iterator[Line]:
    """Yields the trees, one way after the other; everything from outside is harmless text."""
    for way in lineage.ways:
        if len(lineage.ways) > 1:
            yield Line(branches="", words=TITLES[way], style="bold underline")
        yield from _Tree(lineage.graph, way, width).lines(_ends(lineage, way))


def word(value: object) -> str:
    """Writes anything from outside as a word or a few: one line, no control characters, no secrets, not too long."""
    text = " ".join(plain(value).split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def described(graph: Graph, name: str) -> Iterator[str]:
    """Says what is known of an artifact: kind and content, then what made it, then its scores."""
    node = graph.node(name)
    yield ", ".join(_content(node))
    yield from (
        ", ".join(_making(graph.node(edge.above))) for edge in graph.edges(name, "up") if _is_stage(graph, edge.above)
    )
    details = node.details
    for scores in details.get("scores", ()):
        where = "" if node.kind == "report" else f" of {word(scores['report'])}{_archived(scores)}"
        verdict = {True: ", as wished", False: ", not as wished"}.get(scores["passed"], "")
        yield f"scores{where}: {'; '.join(_benchmarks(scores['scores']))}{verdict}"


class _Tree:
    """Draws each artifact once; where it comes again, it is only named."""

    def __init__(self, graph: Graph, way: Way, width: int) -> None:
        self._graph, self._way, self._width = graph, way, width
        self._drawn: set[str] = set()

    def lines(self, starts: Iterable[str]) -> Iterator[Line]:
        later = [_Place(name=name, role="", note="", branches="", below="", level=0) for name in starts]
        while later:
            root, again = later.pop(0), []
            waiting = [root]
            while waiting:
                place = waiting.pop()
                if place.level == DEEPEST and place.name not in self._drawn and self._neighbours(place.name):
                    again.append(_Place(name=place.name, role="", note="", branches="", below="", level=0))
                    yield self._head(place, "(goes on below)")
                    continue
                if place.name in self._drawn:
                    if place.level:
                        yield self._head(place, "(above)")
                    continue
                self._drawn.add(place.name)
                below = self._below(place)
                yield from self._entry(place, has_below=bool(below))
                waiting += reversed(below)
            later = again + later

    def _neighbours(self, name: str) -> list[tuple[str, str, str]]:
        """Returns the artifacts next to one, past the stage between: (id, role, note); a stage that has none itself."""
        found: dict[tuple[str, str], tuple[str, str, str]] = {}
        if self._way == "up":
            for edge in self._graph.edges(name, "up"):
                over = [edge] if not _is_stage(self._graph, edge.above) else self._graph.edges(edge.above, "up")
                for one in over:
                    if one.role != "code":
                        found[one.above, one.role] = (one.above, one.role, one.note)
        else:
            for edge in self._graph.edges(name, "down"):
                outputs = self._graph.edges(edge.below, "down") if _is_stage(self._graph, edge.below) else []
                for below in [one.below for one in outputs] or [edge.below]:
                    found[below, edge.role] = (below, edge.role, edge.note)
        return list(found.values())

    def _below(self, place: _Place) -> list[_Place]:
        around = self._neighbours(place.name)
        last = len(around) - 1
        return [
            _Place(
                name=name, role=role, note=note, level=place.level + 1,
                branches=place.below + ("└─ " if number == last else "├─ "),
                below=place.below + ("   " if number == last else "│  "),
            )
            for number, (name, role, note) in enumerate(around)
        ]  # fmt: skip

    def _entry(self, place: _Place, *, has_below: bool) -> Iterator[Line]:
        node = self._graph.node(place.name)
        yield self._head(place, "")
        branches = place.below + ("│  " if has_below else "   ")
        told = described(self._graph, place.name) if node.kind != "stage" else iter([", ".join(_making(node))])
        for text in told:
            yield from (
                Line(branches=branches, words=part, style="dim") for part in _cut(text, self._width - len(branches))
            )
        stages = [self._graph.node(edge.above) for edge in self._graph.edges(place.name, "up")]
        notes = [*([place.note] if place.note else []), *node.notes]
        notes += [note for stage in stages if stage.kind == "stage" for note in stage.notes]
        for note in notes:
            for part in _cut(f"! {word(note)}", self._width - len(branches)):
                yield Line(branches=branches, words=part, style="yellow")

    def _head(self, place: _Place, remark: str) -> Line:
        node = self._graph.node(place.name)
        role = f"{'as ' if self._way == 'down' else ''}{word(place.role)}: " if place.role else ""
        words = f"{role}{word(node.name)}{_archived(node.details)}"
        return Line(branches=place.branches, words=f"{words} {remark}".rstrip(), style="" if remark else "bold")


def _ends(lineage: Lineage, way: Way) -> Sequence[str]:
    """Returns the starts that the trees of the other ones do not show anyway; all of them if that leaves none."""
    if len(lineage.starts) == 1:
        return lineage.starts
    inner: set[str] = set()
    for start in lineage.starts:
        if start not in inner:
            reached, _ = lineage.graph.reached([start], way)
            inner |= set(reached) - {start}
    return [start for start in lineage.starts if start not in inner] or lineage.starts


def _is_stage(graph: Graph, name: str) -> bool:
    return name in graph.stages


def _archived(details: Mapping[str, object]) -> str:
    return " (archived)" if details.get("archived") else ""


def _content(node: Node) -> Iterator[str]:
    details = node.details
    yield f"{word(node.kind)} {word(node.digest[:SHORT])}".rstrip()
    for name in ("family", "source"):
        if details.get(name):
            yield word(details[name])
    if details.get("step") is not None:
        yield f"step {details['step']:,}"
    for name, count in details.get("counts", {}).items():
        if name != "shards":
            yield size_in_words(count) if name == "bytes" else f"{count:,} {word(name)}"
        elif node.kind == "shards":
            yield tars_in_words(count)
    if details.get("licence"):
        yield f"licence {word(details['licence'])}"
    if details.get("archived"):
        yield f"at {word(details['path'])}"


def _making(node: Node) -> Iterator[str]:
    details = node.details
    yield f"by {word(details['key']) or 'an unknown stage'} {word(details['fingerprint'][:SHORT])}".rstrip()
    if details["state"] != "done":
        yield word(details["state"])
    if details["steps"] is not None:
        yield f"{details['steps']:,} steps"
    if details["attempts"] > 1:
        yield f"{details['attempts']} attempts"
    commit = details["commit"]
    yield f"commit {word(commit[:SHORT])}{' with changes' if details['dirty'] else ''}" if commit else "commit unknown"


def _benchmarks(scores: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    for benchmark, named in scores.items():
        told = [f"{word(name)} {shown(value)}" for name, value in named.items()]
        more = f" and {len(told) - MOST_SCORES} more" if len(told) > MOST_SCORES else ""
        yield f"{word(benchmark)} {', '.join(told[:MOST_SCORES])}{more}"


def _cut(text: str, width: int) -> Iterator[str]:
    """Breaks a line between words, so that the branches of the tree stand beside every part of it."""
    line = ""
    for part in text.split(" "):
        if line and len(line) + 1 + len(part) > max(width, 30):
            yield line
            line = "  "
        line = f"{line} {part}" if line.strip() else f"{line}{part}"
    yield line
