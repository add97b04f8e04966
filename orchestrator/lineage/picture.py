"""Lineage as an SVG file: drawn by the report's own graph, nothing in it but what was escaped there."""

from collections.abc import Mapping

from orchestrator.lineage.graph import Graph
from orchestrator.lineage.lines import described, word
from orchestrator.lineage.wanted import Lineage
from orchestrator.report.chain import OUTSIDE, Node, chain_picture

DONE, MISSING = "done", "missing"
LONGEST_ROLE = 60
DIGITS = 6  # of a digest, to tell boxes of one name apart; all that people see of it is said where they point


def lineage_picture(lineage: Lineage) -> str:
    """Draws artifacts from top to bottom, what each is made of above it; stages stand in what is said of them."""
    graph = lineage.graph
    names: dict[str, None] = {}
    for way in lineage.ways:
        names |= dict.fromkeys(graph.reached(lineage.starts, way)[0])
    kept = [name for name in names if name in graph.things] or list(lineage.starts)
    parents = _in_order({name: _parents(graph, name, set(kept)) for name in kept})
    numbers = {name: f"n{number}" for number, name in enumerate(parents)}  # names from outside are no ids
    nodes = [
        _node(graph, name, numbers[name], {numbers[above]: role for above, role in given.items()})
        for name, given in parents.items()
    ]
    told = ", ".join(word(graph.node(name).name) for name in lineage.starts[:3])
    more = f" and {len(lineage.starts) - 3} more" if len(lineage.starts) > 3 else ""
    return chain_picture(nodes, f"Lineage of {told}{more}")


def _parents(graph: Graph, name: str, kept: set[str]) -> dict[str, str]:
    """Returns the artifacts that one is made of, past the stage that made it, each with its role."""
    found: dict[str, str] = {}
    for edge in graph.edges(name, "up"):
        for one in graph.edges(edge.above, "up") if edge.above in graph.stages else [edge]:
            if one.above in kept and one.above != name:
                role = word(one.role)[:LONGEST_ROLE]
                found[one.above] = f"{found[one.above]}, {role}" if one.above in found else role
    return found


def _in_order(parents: Mapping[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Puts parents before children. An edge that closes a cycle, which only a forged manifest has, is left out."""
    ordered: dict[str, dict[str, str]] = {}
    begun: set[str] = set()
    for start in parents:
        waiting: list[str] = [start]
        while waiting:
            name = waiting[-1]
            left = [above for above in parents[name] if above not in begun] if name not in ordered else []
            if name not in begun or left:
                begun.add(name)
                waiting += left
            if not left:
                waiting.pop()
                ordered.setdefault(name, parents[name])
    seen: set[str] = set()
    for name, given in ordered.items():
        ordered[name] = {above: role for above, role in given.items() if above in seen}
        seen.add(name)
    return ordered


def _node(graph: Graph, name: str, number: str, roles: Mapping[str, str]) -> Node:
    node = graph.node(name)
    details = node.details
    state = OUTSIDE if details.get("stage") is None else DONE
    state = state if details.get("there", True) else MISSING
    where = word(details["run"]).rpartition("/")[2] if details.get("run") else "from outside"
    title = f"{details['stage']}.{details['output']}" if details.get("stage") else node.name.rpartition("/")[2]
    known = f"{word(node.kind)} {word(node.digest)[:DIGITS]}".rstrip()
    told = described(graph, name) if node.kind != "stage" else iter(())
    return Node(
        name=number, key=f"{known}, {where}", state=state, parents=tuple(roles), roles=roles,
        title=word(title), words="\n".join([word(node.name), *told, *map(word, node.notes)]),
    )  # fmt: skip
