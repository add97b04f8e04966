"""Who read what from whom: artifacts, stages and code as nodes, what was handed over as edges, walked up and down."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from orchestrator.lineage.papers import StagePapers, mapping_of, read_mapping, text_of, whole_of
from orchestrator.lineage.register import Register, Thing
from orchestrator.records import record
from orchestrator.snapshot import CODE, COMMIT
from orchestrator.state import STATE, TRACKING

Way = Literal["up", "down"]

COPY = "copy"
MODELS = ("checkpoint", "export")  # what an evaluation is about
OTHER_CONTENT = "lost:"
LARGEST_SCORE = 1e100  # beyond, and for what is no number, somebody jokes


@record
class Edge:
    """What one node gives to another."""

    above: str
    below: str
    role: str  # the input or the output; "code"; "copy" between two artifacts
    note: str = ""


@record
class Node:
    """An artifact, a stage or a commit."""

    id: str
    kind: str  # of an artifact; "stage", "code"
    name: str
    digest: str
    mlflow_id: str | None
    details: Mapping[str, Any]
    notes: tuple[str, ...] = ()


class Graph:
    """The lineage of everything that a register knows or leads to."""

    def __init__(self, register: Register) -> None:
        """Joins what every stage of the register read and wrote."""
        self.things: dict[str, Thing] = {}
        self.stages: dict[str, StagePapers] = {}
        self._above: dict[str, list[Edge]] = {}
        self._below: dict[str, list[Edge]] = {}
        self._nodes: dict[str, Node] = {}
        self._register = register
        drawn: set[str] = set()
        while len(drawn) < len(register.stages):  # an input may lead to a run that was not read yet
            for stage in list(register.stages.values()):
                if stage_id(stage) not in drawn:
                    drawn.add(stage_id(stage))
                    self._add_stage(stage)

    def add(self, thing: Thing) -> None:
        """Adds an artifact, and the one it is a copy of."""
        if thing.id in self.things:
            return
        self.things[thing.id] = thing
        if thing.maker is None and thing.made is not None:
            originals = [other for other in self._register.alike(thing.digest) if other.maker is not None]
            if originals:
                self.add(originals[0])
                self._link(Edge(above=originals[0].id, below=thing.id, role=COPY))
        elif thing.maker is not None and thing.id.startswith(OTHER_CONTENT):
            self._link(Edge(above=stage_id(thing.maker), below=thing.id, role=thing.output))

    def edges(self, name: str, way: Way) -> list[Edge]:
        """Returns what a node was given (up) or gives (down); in the order of the stage's inputs, else of names."""
        return self._above.get(name, []) if way == "up" else sorted(self._below.get(name, []), key=_order)

    def reached(self, starts: Iterable[str], way: Way) -> tuple[list[str], list[Edge]]:
        """Returns the nodes that can be reached from some, those first, and the edges between. Cycles do no harm."""
        seen: dict[str, None] = dict.fromkeys(starts)
        waiting, found = list(seen), []
        while waiting:
            name = waiting.pop()
            for edge in self.edges(name, way):
                found.append(edge)
                other = edge.above if way == "up" else edge.below
                if other not in seen:
                    seen[other] = None
                    waiting.append(other)
        return list(seen), found

    def node(self, name: str) -> Node:
        """Describes a node; its files are read when somebody asks."""
        if name not in self._nodes:
            if name in self.things:
                self._nodes[name] = self._thing_node(self.things[name])
            elif name in self.stages:
                self._nodes[name] = _stage_node(self.stages[name])
            else:
                commit = name.removeprefix("code:")
                self._nodes[name] = Node(
                    id=name, kind="code", name=commit[:12], digest=commit, mlflow_id=None, details={"commit": commit}
                )
        return self._nodes[name]

    def _add_stage(self, stage: StagePapers) -> None:
        name = stage_id(stage)
        self.stages[name] = stage
        for read in stage.inputs:
            thing, note = self._register.resolve(read, stage)
            self.add(thing)
            self._link(Edge(above=thing.id, below=name, role=read.role, note=note))
        for path, digest in stage.raw.items():
            known = self._register.at(path)
            thing = known or Thing(id=path, path=path, kind="raw", digest=digest, made=None, maker=None)
            self.add(thing)
            self._link(Edge(above=thing.id, below=name, role="outside"))
        if commit := _commit(stage):
            self._link(Edge(above=f"code:{commit}", below=name, role="code"))
        for output in stage.outputs:
            made = self._register.at(output.path)
            if made is not None:
                self.add(made)
                self._link(Edge(above=name, below=made.id, role=output.name))

    def _link(self, edge: Edge) -> None:
        self._above.setdefault(edge.below, []).append(edge)
        self._below.setdefault(edge.above, []).append(edge)

    def _thing_node(self, thing: Thing) -> Node:
        stage, facts = thing.maker, {} if thing.made is None else thing.made.facts
        mlflow: str | None = None
        if stage is not None and thing.digest:
            model = mapping_of(mapping_of(read_mapping(stage.folder / TRACKING), "models"), thing.output)
            mlflow = text_of(model, "id") or None if text_of(model, "digest") == thing.digest else None
        details = {
            "path": thing.path,
            "run": None if stage is None else str(stage.run),
            "stage": None if stage is None else stage.name,
            "output": thing.output or None,
            "archived": stage is not None and stage.archived,
            "fingerprint": _fingerprint(thing),
            "there": thing.made is not None or (thing.maker is None and not thing.id.startswith(OTHER_CONTENT)),
            "step": whole_of(facts, "step"),
            "family": text_of(facts, "family") or None,
            "source": text_of(facts, "source") or None,
            "licence": text_of(facts, "licence") or None,
            "counts": _counts(facts),
            "scores": self._scores(thing),
        }
        kind = thing.kind or (thing.made.kind if thing.made is not None else "") or "artifact"
        return Node(
            id=thing.id, kind=kind, name=name_of(thing), digest=thing.digest, mlflow_id=mlflow, details=details,
            notes=tuple(_notes(thing)),
        )  # fmt: skip

    def _scores(self, thing: Thing) -> list[dict[str, Any]]:
        """Returns what evaluations say that read this model, or what this report itself says."""
        if thing.kind == "report" and thing.made is not None:
            return _scores_of(thing)
        found = []
        for edge in self.edges(thing.id, "down") if thing.kind in MODELS else ():
            for made in self.edges(edge.below, "down") if edge.below in self.stages else ():
                report = self.things.get(made.below)
                if report is not None and report.kind == "report" and report.made is not None:
                    found += _scores_of(report)
        return found


def stage_id(stage: StagePapers) -> str:
    """Returns the id of a stage's node."""
    return f"stage:{stage.folder}"


def name_of(thing: Thing) -> str:
    """Returns what people call an artifact: RUN:STAGE.OUTPUT, or its path where no stage is known."""
    stage = thing.maker
    if stage is None or any(output.path == stage.folder for output in stage.outputs):
        return thing.path or "(place unknown)"
    return f"{stage.run.name}:{stage.name}.{thing.output}"


def _stage_node(stage: StagePapers) -> Node:
    state = read_mapping(stage.folder / STATE)
    attempts = state.get("attempts")
    commit = _commit(stage)
    code = read_mapping(stage.run / CODE / COMMIT)
    details = {
        "run": str(stage.run),
        "stage": stage.name,
        "key": stage.key,
        "archived": stage.archived,
        "fingerprint": stage.fingerprint,
        "state": _state(stage, text_of(state, "state")),
        "attempts": len(attempts) if isinstance(attempts, list) else 0,
        "steps": stage.steps,
        "commit": commit or None,
        "dirty": bool(code.get("dirty")) if commit and text_of(code, "commit") == commit else None,
    }
    mlflow = text_of(read_mapping(stage.folder / TRACKING), "mlflow_run_id") or None
    notes = [f"was moved here from {stage.moved_from}"] if stage.moved_from else []
    if not (stage.folder / "stage.json").is_file():
        notes.append("its folder is not known; told from the artifact's own manifest")
    return Node(
        id=stage_id(stage), kind="stage", name=f"{stage.run.name}:{stage.name}", digest=stage.code, mlflow_id=mlflow,
        details=details, notes=tuple(notes),
    )  # fmt: skip


def _state(stage: StagePapers, told: str) -> str:
    """Returns the state of a stage; what an earlier launch finished has its outputs, whatever state.json says."""
    if stage.outputs and all(output.made is not None for output in stage.outputs):
        return "done"
    return told or "waiting"


def _commit(stage: StagePapers) -> str:
    """Returns the commit of the code that ran; the snapshot in the run's folder may be that of a later launch."""
    told = (text_of(output.made.facts, "commit") for output in stage.outputs if output.made is not None)
    return next((commit for commit in told if commit), "")


def _fingerprint(thing: Thing) -> str | None:
    if thing.made is not None:
        return thing.made.fingerprint
    return None if thing.maker is None else thing.maker.fingerprint


def _notes(thing: Thing) -> Iterable[str]:
    stage = thing.maker
    if thing.id.startswith(OTHER_CONTENT):
        yield "not found: moved out of the runs folders, overwritten or removed"
    elif thing.made is None and stage is not None:
        state = _state(stage, text_of(read_mapping(stage.folder / STATE), "state"))
        yield "was made and is gone" if state == "done" else f"not made: its stage is {state}"
    elif thing.made is None and not thing.digest:
        yield "has no manifest: known by its path only"


def _counts(facts: Mapping[str, Any]) -> dict[str, int]:
    """Returns how much of what is in an artifact: samples, shards, regions, parameters."""
    names = ("samples", "shards", "bytes", "tokens", "parameters")
    found = {name: count for name in names if (count := whole_of(facts, name)) is not None}
    inner = mapping_of(facts, "counts")
    return found | {name: count for name in inner if (count := whole_of(inner, name)) and name not in found}


def _scores_of(report: Thing) -> list[dict[str, Any]]:
    facts = {} if report.made is None else report.made.facts
    scores = {}
    for benchmark in mapping_of(facts, "scores"):
        named = mapping_of(mapping_of(facts, "scores"), benchmark)
        kept = {name: float(value) for name, value in named.items() if _is_score(value)}
        if kept:
            scores[benchmark] = kept
    passed = facts.get("passed")
    told = {"report": name_of(report), "archived": report.maker is not None and report.maker.archived}
    return [{**told, "passed": passed if isinstance(passed, bool) else None, "scores": scores}] if scores else []


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_SCORE


def _order(edge: Edge) -> tuple[str, str]:
    return edge.below, edge.role
