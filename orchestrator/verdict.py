"""Joins what all ranks, their parents and the launcher know of an ended attempt into one verdict.

What counts, first to last: what the cluster did to the job (it lost a node, it preempted it); what a rank says of
itself; a rank that was ended because it hung; a rank that died without a word; and ranks that only lost a peer. Ranks
that were told to leave are never the cause. A rank that was killed from outside, by none of us and not for want of
memory, is `unknown`: it may have been a human, a site's watchdog, or a failing node. It is tried again, and without the
node if it repeats there (retry.py).
"""

import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.causes import BAD_NODE_EXIT, PREEMPTED_EXIT, Cause, cause_in_log, cause_of_exit, signal_number
from orchestrator.exits import Exit, read_exit, read_plain
from orchestrator.records import record
from orchestrator.state import Ending

NO_SPACE_BYTES = 1 << 20  # a rank that leaves no record on a disk with less has failed for want of it
MOST_DETAIL = 2000
_CONSEQUENCES: frozenset[Cause] = frozenset({"communication"})  # and a hang that a collective's own timeout found
_TAIL_BYTES = 1 << 16
_MOST_LOGS = 32  # that are read: of thousands of ranks that fall together, the first ones know
_RECORD = re.compile(r"rank_(\d+)\.(?:exit|error)\.json")
_MOST_TOLD = 6  # ranks that the evidence speaks of one by one


@record
class Outside:
    """What the launcher knows of an attempt's end that the ranks cannot."""

    cause: Cause | None  # None: nothing that the ranks would not know better
    detail: str
    evidence: tuple[str, ...] = ()
    node: str | None = None
    asked: bool = False  # it has asked the ranks to leave


@record
class _Fault:
    """One rank that did not end well."""

    rank: int
    node: str | None
    cause: Cause
    message: str
    time: float
    told_to_leave: bool
    consequence: bool  # of another rank's fault, most likely
    ended: Exit | None
    how: str  # evidence


def verdict(
    folder: Path,
    *,
    size: int,
    outside: Outside | None = None,
    exits: Mapping[int, Exit] | None = None,
    nodes: Sequence[str] = (),
) -> Ending:
    """Says how an attempt ended and why, from the records in its log folder.

    `exits`, where given, stand for the files rank_R.exit.json. `nodes` names each rank's node, where known: so that
    ranks which went with their node without a record can be told. Without any fault the attempt is "done".
    """
    spoke = [rank for rank in _who_spoke(folder, exits or {}) if rank < size]
    faults = [fault for rank in spoke if (fault := _fault(folder, rank, exits, nodes)) is not None]
    faults = _with_logs(folder, faults)
    if not faults and (outside is None or outside.cause is None):
        return Ending(state="done")
    lost = _lost_nodes(faults, size, nodes)
    evidence = (*_evidence(faults, size), *lost[1], *(outside.evidence if outside else ()))
    own = [fault for fault in faults if not fault.told_to_leave and not fault.consequence]
    witnesses = [fault for fault in own if fault.cause not in {"preempted", "unknown", "hang", "node_failure"}]
    if outside is not None and outside.cause is not None and not witnesses:
        node = outside.node or lost[0]
        return _ending(outside.cause, outside.detail, evidence, None, node)
    if not own and lost[0] is not None:
        gone = f"every rank on {lost[0]} went without a word; the others lost their peers"
        return _ending("node_failure", gone, evidence, None, lost[0])
    hung = [fault for fault in faults if fault.ended is not None and fault.ended.hang]
    if hung and not witnesses:
        return _hang(hung, evidence, size)
    first = min(witnesses or faults, key=_blame)
    where = f"rank {first.rank}{f' ({first.node})' if first.node and len(set(nodes)) > 1 else ''}: " if size > 1 else ""
    node = first.node or (outside.node if outside else None)
    asked = any(fault.told_to_leave for fault in faults) or (outside is not None and outside.asked)
    if first.cause == "preempted" and not asked:  # a watchdog of the site: it would come again, and for ever
        strange = f"{where}{first.message}; yet it was neither orch nor the cluster that asked it to leave"
        return _ending("unknown", strange, evidence, first.rank, node)
    return _ending(first.cause, where + first.message, evidence, first.rank, node)


def _who_spoke(folder: Path, exits: Mapping[int, Exit]) -> list[int]:
    """Lists the ranks that left a record: of thousands, most have none, and to look for each takes seconds."""
    try:
        found = (_RECORD.fullmatch(path.name) for path in folder.iterdir())
        return sorted({*exits, *(int(match[1]) for match in found if match)})
    except OSError:
        return sorted(exits)


def _ending(cause: Cause, detail: str, evidence: Iterable[str], rank: int | None, node: str | None) -> Ending:
    return Ending(
        state="failed", cause=cause, detail=detail[:MOST_DETAIL], evidence=tuple(evidence), rank=rank, node=node
    )


def _fault(folder: Path, rank: int, exits: Mapping[int, Exit] | None, nodes: Sequence[str]) -> _Fault | None:
    ended = read_exit(folder, rank) if exits is None else exits.get(rank)
    said = read_plain(folder / f"rank_{rank}.error.json")
    if ended is None and not said:
        return None
    node = (ended.node if ended else said.get("node")) or (nodes[rank] if rank < len(nodes) else None)
    told = ended is not None and ended.told_to_leave
    time = min(float(entry) for entry in (said.get("time"), ended.time if ended else None) if entry is not None)
    common: dict[str, Any] = {"rank": rank, "node": node, "time": time, "told_to_leave": told, "ended": ended}
    where = f"rank {rank}{f' ({node})' if node else ''}"
    if ended is not None and ended.hang:
        return _Fault(**common, cause="hang", message=ended.hang, consequence=False, how=f"{where} {_stood(ended)}")
    if said:
        cause: Cause = said.get("cause", "unknown")
        kind = f"{said['class']}: " if said.get("class") else ""
        message = f"{kind}{said.get('message', '')}"
        at = f" at step {said['step']} ({said.get('phase')})" if said.get("step") is not None else ""
        how = f"{where} ended{at} with {message[:300]} -> {cause}"
        return _Fault(**common, cause=cause, message=message, consequence=cause in {"communication", "hang"}, how=how)
    assert ended is not None  # noqa: S101 - one of both is there
    cause, message = _unrecorded(folder, ended)
    status = ended.signal or f"exit code {ended.exit}"
    asked = ", after it was told to leave" if told else ""
    how = f"{where} ended by {status} at step {ended.step} ({ended.phase}){asked}, without a record"
    return _Fault(**common, cause=cause, message=message, consequence=False, how=how)


def _unrecorded(folder: Path, ended: Exit) -> tuple[Cause, str]:
    """Guesses why a rank ended that could not say so itself."""
    if ended.exit == BAD_NODE_EXIT:
        found = read_plain(folder / f"node_{ended.node}.json").get("faults", [])
        return "node_failure", f"{ended.node} is not fit for work: {'; '.join(map(str, found))}"
    status = ended.exit if ended.exit is not None else -signal_number(ended.signal or "")
    full = ended.exit is not None and ended.exit not in {0, PREEMPTED_EXIT} and is_full(folder)
    if full:
        return "disk", f"there is no space left on the disk of {folder}"
    if ended.told_to_leave and status == -signal.SIGTERM:  # a worker that runs answers it
        return "preempted", "it was told to leave while it had not begun: there was nothing to save"
    return cause_of_exit(status, oom_kills=ended.oom_kills)


def _with_logs(folder: Path, faults: Sequence[_Fault]) -> list[_Fault]:
    """Looks into the logs of ranks whose own records cannot be the first cause."""
    doubtful = [fault for fault in faults if (fault.consequence or fault.cause == "unknown" or _aborted(fault))]
    chosen = {fault.rank for fault in sorted(doubtful, key=_blame)[:_MOST_LOGS] if not _hangs(fault)}
    return [_as_logged(folder, fault) if fault.rank in chosen else fault for fault in faults]


def _as_logged(folder: Path, fault: _Fault) -> _Fault:
    found = cause_in_log(_tail(folder / f"rank_{fault.rank}.log"))
    if found is None or (fault.consequence and found[0] != "node_failure"):
        return fault
    cause, line = found
    return _Fault(
        rank=fault.rank, node=fault.node, cause=cause, message=line, time=fault.time, ended=fault.ended,
        told_to_leave=fault.told_to_leave, consequence=cause in {"communication", "hang"},
        how=f"{fault.how}; its log says: {line}",
    )  # fmt: skip


def _hang(hung: Sequence[_Fault], evidence: Iterable[str], size: int) -> Ending:
    """Names the rank that the others wait for."""
    exits = {fault.rank: fault.ended for fault in hung if fault.ended is not None}
    places = Counter(ended.stands for ended in exits.values())
    usual = places.most_common(1)[0][0] if len(exits) > 2 else None
    culprit = min(exits.values(), key=lambda ended: _suspicion(ended, usual))
    waiting = Counter(ended.waits_in for ended in exits.values() if ended.rank != culprit.rank and ended.waits_in)
    reasons = [culprit.hang]
    if culprit.halted:
        reasons.append(culprit.halted)
    if culprit.stands:
        reasons.append(f"it stands in {culprit.stands}")
    if culprit.waits_in and size > 1:
        reasons.append(f"like every rank it waits for others, in {culprit.waits_in}; of all it is least far")
    if waiting and not culprit.waits_in:
        reasons.append(f"{waiting.total()} {_plural('rank', waiting.total())} for it in {' and '.join(waiting)}")
    who = f"rank {culprit.rank} ({culprit.node})" if size > 1 else "the process"
    detail = f"{who} {reasons[0]}" + (f": {'; '.join(reasons[1:])}" if reasons[1:] else "")
    return _ending("hang", detail, evidence, culprit.rank, culprit.node)


def _suspicion(ended: Exit, usual: str | None) -> tuple[bool, bool, bool, int, int]:
    """Orders hung ranks: one that cannot run, one that waits for nobody, one that stands apart, the least far."""
    return not ended.halted, bool(ended.waits_in), ended.stands == usual, ended.step, ended.rank


def _stood(ended: Exit) -> str:
    parts = [f"{ended.hang}, in step {ended.step + 1} ({ended.phase})", ended.halted]
    parts.append(f"it waits for its peers in {ended.waits_in}" if ended.waits_in else "")
    parts.append(f"it stands in {ended.stands}" if ended.stands else "")
    return "; ".join(filter(None, parts)) + f"; see rank_{ended.rank}.stacks.txt"


def _blame(fault: _Fault) -> tuple[bool, bool, bool, float]:
    return fault.told_to_leave, fault.cause == "preempted", fault.consequence, fault.time


def _evidence(faults: Sequence[_Fault], size: int) -> tuple[str, ...]:
    """Tells of the first ranks one by one, and counts the others."""
    ordered = sorted(faults, key=_blame)
    told = [fault.how for fault in ordered[:_MOST_TOLD]]
    rest = Counter(fault.cause for fault in ordered[_MOST_TOLD:])
    counted = ", ".join(f"{count} x {cause}" for cause, count in rest.most_common())
    if counted:
        told.append(f"{rest.total()} more of {size} ranks: {counted}")
    return tuple(told)


def _lost_nodes(faults: Sequence[_Fault], size: int, nodes: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """Finds the one node of which no rank left a word, while all others did and some say that they lost their peers."""
    if len(nodes) != size or not any(fault.consequence for fault in faults):
        return None, ()
    spoke = {nodes[fault.rank] for fault in faults}
    silent = sorted(set(nodes) - spoke)
    if len(silent) != 1 or len(faults) + nodes.count(silent[0]) != size:
        return None, ()
    ranks = ", ".join(str(rank) for rank in range(size) if nodes[rank] == silent[0])
    return silent[0], (f"rank {ranks} on {silent[0]} left no record at all",)


def _aborted(fault: _Fault) -> bool:
    return fault.ended is not None and fault.ended.signal == "SIGABRT" and fault.cause == "code_error"


def _hangs(fault: _Fault) -> bool:
    return fault.ended is not None and bool(fault.ended.hang)


def is_full(folder: Path) -> bool:
    """Tells whether the disk of a folder has no room, not even for a word of why a rank ended."""
    try:
        return shutil.disk_usage(folder).free < NO_SPACE_BYTES
    except OSError:
        return False


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _plural(noun: str, count: int) -> str:
    return f"{noun} waits" if count == 1 else f"{noun}s wait"
