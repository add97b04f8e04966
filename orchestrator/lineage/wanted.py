"""What the words of a command line mean in the graph: an artifact, the outputs of a stage, or of a whole run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator import session
from orchestrator.errors import InputError
from orchestrator.history import STAGE
from orchestrator.lineage.graph import Graph, Way, stage_id
from orchestrator.lineage.papers import StagePapers, real
from orchestrator.lineage.register import Register
from orchestrator.records import record
from orchestrator.run import RECIPE, Run
from orchestrator.typed import suggestion

ALLOWED = "the folder of an artifact, of a stage or of a run, the name of a run, or RUN:STAGE.OUTPUT"


@record
class Lineage:
    """A graph, and where in it somebody wants to look."""

    graph: Graph
    starts: tuple[str, ...]  # ids of nodes
    ways: tuple[Way, ...]

    def document(self) -> dict[str, Any]:
        """Returns it as `orch lineage --json` shows it."""
        nodes: dict[str, None] = {}
        edges: dict[tuple[str, str, str], dict[str, Any]] = {}
        for way in self.ways:
            reached, found = self.graph.reached(self.starts, way)
            nodes |= dict.fromkeys(reached)
            for edge in found:
                note = {"note": edge.note} if edge.note else {}
                edges[edge.above, edge.below, edge.role] = {
                    "from": edge.above, "to": edge.below, "role": edge.role, **note,
                }  # fmt: skip
        shown = [self.graph.node(name) for name in nodes]
        return {
            "of": list(self.starts),
            "ways": list(self.ways),
            "nodes": [
                {
                    "id": node.id, "kind": node.kind, "name": node.name, "digest": node.digest,
                    "mlflow_id": node.mlflow_id, **node.details, "notes": list(node.notes),
                }
                for node in shown
            ],
            "edges": list(edges.values()),
        }  # fmt: skip


def find_lineage(words: str, runs: Sequence[Path], ways: tuple[Way, ...]) -> Lineage:
    """Reads the runs folders and finds what is meant; InputError says what is allowed where nothing is."""
    for folder in runs:
        if not folder.is_dir():
            raise InputError(f"--runs: {folder} is not a folder, needs one that holds runs")
    folders = list(runs) or [session.runs_folder()]
    register = Register()
    path, run, rest = _meant(words, folders)
    if run is not None:
        folders.append(run.parent)
    for folder in folders:
        register.add_runs(folder)
    if run is not None:
        register.add_run(run)
        stages = _stages_of(register, run, rest)
        return _of_stages(Graph(register), stages, rest.partition(".")[2], ways)
    register.at(path)  # may lead to a run of another folder
    return _of_path(register, path, words, ways)


def _meant(words: str, folders: Sequence[Path]) -> tuple[Path, Path | None, str]:
    """Returns the place, and if they mean a run, its folder and what of it: "", "STAGE" or "STAGE.OUTPUT"."""
    path = real(Path.cwd() / words)
    if path is None:
        raise InputError(f"{words!r} cannot be a path; allowed: {ALLOWED}")
    name, colon, rest = words.partition(":")
    named = [folder / name for folder in folders if "/" not in name and (folder / name / RECIPE).is_file()]
    if named and not (colon and path.exists()):  # as for all commands, the name of a run goes before a folder here
        return path, real(Path.cwd() / named[0]), rest
    if path.exists():
        run = path if (path / RECIPE).is_file() and not (path / STAGE).is_file() else None
        return path, run, ""
    if not colon and "/" in words:
        return path, None, ""  # nothing there, but somebody may have read it
    run = Run.find(name, folders[0]).directory  # or says which there are
    return path, real(Path.cwd() / run), rest


def _stages_of(register: Register, run: Path, rest: str) -> list[StagePapers]:
    """Returns the stages of a run that are meant, its archive left out."""
    of_run = [stage for stage in register.stages.values() if stage.run == run and not stage.archived]
    if not of_run:
        raise InputError(f"{run} has no stages yet: nothing was launched")
    name, dot, output = rest.partition(".")
    if not name:
        return of_run
    meant = [stage for stage in of_run if stage.name == name]
    if not meant:
        known = suggestion(name, [stage.name for stage in of_run])
        raise InputError(f"the run {run.name} has no stage {name!r}{known}")
    outputs = [one.name for one in meant[0].outputs]
    if dot and output not in outputs:
        raise InputError(f"the stage {name} has no output {output!r}{suggestion(output, outputs)}")
    return meant


def _of_stages(graph: Graph, stages: Sequence[StagePapers], output: str, ways: tuple[Way, ...]) -> Lineage:
    starts = [
        edge.below
        for stage in stages
        for edge in graph.edges(stage_id(stage), "down") or ()
        if output in ("", edge.role)
    ]
    return Lineage(graph=graph, starts=tuple(dict.fromkeys(starts or map(stage_id, stages))), ways=ways)


def _of_path(register: Register, path: Path, words: str, ways: tuple[Way, ...]) -> Lineage:
    """Finds the artifact at a place or around it: a file of an artifact means the artifact, a checkpoint its stage."""
    for place in (path, *path.parents) if path.exists() else (path,):
        if (place / STAGE).is_file():
            register.at(place / "any")  # its run may lie outside of every runs folder
            stage = register.stages.get(place)
            if stage is not None:
                return _of_stages(Graph(register), [stage], "", ways)
            break
        thing = register.at(place)
        if thing is not None and (thing.made is not None or thing.maker is not None):
            graph = Graph(register)
            graph.add(thing)
            return Lineage(graph=graph, starts=(thing.id,), ways=ways)
    graph = Graph(register)
    read = [name for name, thing in graph.things.items() if real(thing.path) == path]
    if not read:
        there = "holds no artifact" if path.exists() else "does not exist"
        raise InputError(f"{words!r} {there}, and no stage that is known has read it; allowed: {ALLOWED}")
    return Lineage(graph=graph, starts=tuple(read), ways=ways)
