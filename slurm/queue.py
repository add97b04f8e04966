"""What Slurm knows of our jobs, and what it is asked to do with them: no other file calls its commands.

Jobs are known by name: a submission's name is its own, while its id is unknown if a launch was killed at the wrong
moment. The controller (squeue, scontrol) knows what waits and runs, and what ended a few minutes ago; accounting
(sacct), where there is one, knows what ended before. Either may be away.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from typing import Literal

from orchestrator.records import record
from slurm.asking import SlurmAway, SlurmRefused, answer, ask
from slurm.hostlist import expand

FORGOTTEN = "FORGOTTEN"  # our own word: accounting has seen no end of a job that the controller does not know
TERMINAL = frozenset({
    FORGOTTEN, "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
    "REVOKED", "TIMEOUT",
})  # fmt: skip
SQUEUE_FIELDS = ("%i", "%j", "%T", "%S", "%e", "%V", "%N", "%r")
SACCT_FIELDS = ("JobIDRaw", "JobName", "State", "Start", "End", "Submit", "NodeList", "ExitCode", "Reason")
# without states, sacct leaves out what was cancelled before it could have begun
SACCT_STATES = "BF,CA,CD,DL,F,NF,OOM,PD,PR,R,RQ,RS,RV,S,TO"
TRIES = 2  # of a question: squeue itself tries for seconds, and whoever only looks is not to wait for minutes
NAMES_A_CALL = 500  # one argument of a command is at most 128 KiB long
DAY_S = 86_400.0  # clocks of clusters differ, and their time zones do
LOOK_BACK_S = 30 * DAY_S
SETTLING_S = 10.0  # a job that was just queued again is "completing" for a while, and cannot be changed meanwhile


@record
class JobFacts:
    """One job, as Slurm last told of it."""

    id: str
    name: str
    state: str  # Slurm's own word in its long form: PENDING, RUNNING, NODE_FAIL, ...
    reason: str = ""  # why it waits or ended, in Slurm's words; "by 1000" for a cancelled one where accounting says so
    nodes: tuple[str, ...] = ()
    submitted: float | None = None
    started: float | None = None  # seconds since 1970
    ended: float | None = None
    estimated_start: float | None = None  # of one that waits
    exit_code: int | None = None  # of the batch script, which is the keeper
    signal: int | None = None  # that ended it
    restarts: int | None = None
    steps: Mapping[str, str] = field(default_factory=dict)  # "batch", "0", ... -> its state
    source: Literal["squeue", "scontrol", "sacct"] = "squeue"

    def killed_by_dependency(self) -> bool:
        """Tells whether Slurm removed it because what it waited for had failed: nobody cancelled it."""
        return self.state == "CANCELLED" and self.reason.startswith("Dependency")

    def ended_for_good(self) -> bool:
        """Tells whether Slurm is through with it; one that was preempted or lost a node may be queued again."""
        return self.state in TERMINAL


@record
class Survey:
    """What is known of some names, and who was there to ask."""

    jobs: Mapping[str, tuple[JobFacts, ...]]  # per name, oldest first; a name nobody knows is not in it
    controller: bool  # squeue answered: what is not in `jobs` neither waits nor runs
    accounting: bool  # sacct answered: what is not in `jobs` was never accepted
    unaccounted: bool = False  # this cluster keeps no accounts: what left the queue is forgotten in minutes

    def latest(self, name: str) -> JobFacts | None:
        """Returns the job of a name: one that is alive, else the one that ended last."""
        jobs = self.jobs.get(name, ())
        alive = [job for job in jobs if not job.ended_for_good()]
        known = alive or list(jobs)
        return known[-1] if known else None


def look(names: Sequence[str]) -> dict[str, JobFacts]:
    """Returns what is known of the jobs with these names; raises SlurmAway only if nobody answers."""
    survey = find(names)
    found = {name: survey.latest(name) for name in names}
    return {name: facts for name, facts in found.items() if facts is not None}


def find(names: Sequence[str], *, since: float | None = None, uid: int | None = None) -> Survey:
    """Asks the controller for jobs of these names, and accounting for what it does not know or has seen the end of.

    `uid` says whose jobs: names are no secret, and a colleague's job may bear one of ours.
    """
    if not names:
        return Survey(jobs={}, controller=True, accounting=True)
    jobs: dict[str, dict[str, JobFacts]] = {name: {} for name in names}
    away: SlurmAway | None = None
    try:
        for facts in _queued(names, [] if uid is None else [f"--user={uid}"]):
            jobs[facts.name][facts.id] = facts
    except SlurmAway as error:
        away = error
    missing = [name for name in names if all(job.ended_for_good() for job in jobs[name].values())]
    accounting, unaccounted = True, False
    try:
        begin, whose = time.time() - LOOK_BACK_S if since is None else since, [] if uid is None else [f"--uid={uid}"]
        for facts in _accounted(missing, begin, whose):
            if facts.ended_for_good() or away is not None:
                jobs[facts.name][facts.id] = facts  # it knows more of an end than the queue
            else:  # it may also be late: then the queue knows the end
                jobs[facts.name].setdefault(facts.id, _forgotten(facts))
    except (SlurmAway, SlurmRefused) as error:  # not now, or not on this cluster
        accounting, unaccounted = False, isinstance(error, SlurmRefused)
        if away is not None:
            raise away from None
    if not accounting:
        jobs = {name: {job.id: _described(job) for job in found.values()} for name, found in jobs.items()}
    ordered = {name: tuple(sorted(found.values(), key=_age)) for name, found in jobs.items() if found}
    return Survey(jobs=ordered, controller=away is None, accounting=accounting, unaccounted=unaccounted)


def last_ending(facts: JobFacts) -> JobFacts:
    """Says how a job that waits again under its own id ended before; what is given where accounting does not know."""
    try:
        known = _accounted([facts.name], (facts.submitted or time.time()) - DAY_S, latest=False)
    except (SlurmAway, SlurmRefused):
        return facts
    ended = [job for job in known if job.id == facts.id and job.state not in {"PENDING", "RUNNING"}]
    return ended[-1] if ended else facts


def requeue(job_id: str) -> None:
    """Puts a job back into the queue under its own id; what runs of it is ended."""
    ask(["scontrol", "requeue", job_id])


def set_exclude(job_id: str, nodes: Iterable[str]) -> None:
    """Keeps a waiting job off some nodes. One that was just queued again is waited for."""
    _change(job_id, f"ExcNodeList={','.join(sorted(nodes))}")


def set_dependency(job_id: str, after: Iterable[str]) -> None:
    """Lets a waiting job wait for these ids to end well; for nothing if there are none."""
    ids = ":".join(after)
    _change(job_id, f"Dependency={f'afterok:{ids}' if ids else ''}")


def cancel(job_ids: Sequence[str], *, signal: str | None = None) -> None:
    """Ends jobs; with a signal (USR2, TERM) only sends it, to every process of their steps.

    Not to the batch step: srun, which runs there, would have its ranks killed before they could save. A job that has
    ended meanwhile is no mistake.
    """
    how = [f"--signal={signal}"] if signal else []
    for chunk in _chunks(list(job_ids)):
        try:
            ask(["scancel", *how, *chunk])
        except SlurmRefused as refusal:
            if not _is_late(str(refusal)):
                raise


@record
class Estimate:
    """What Slurm says of a job that was only described to it."""

    valid: bool
    start: float | None = None  # seconds since 1970
    message: str = ""  # Slurm's words


def test_only(script: str) -> Estimate:
    """Asks whether Slurm would take an sbatch script, and when it would start; nothing is submitted."""
    try:
        done = answer(["sbatch", "--test-only"], given=script)
    except SlurmRefused as refusal:
        return Estimate(valid=False, message=str(refusal).removeprefix("sbatch: "))
    words = " ".join((done.stderr + done.stdout).split())
    _, found, rest = words.partition(" to start at ")
    return Estimate(valid=True, start=_moment(rest.split(" ", 1)[0]) if found else None, message=words)


def settings() -> dict[str, str]:
    """Returns Slurm's own configuration (`scontrol show config`), as text."""
    lines = ask(["scontrol", "show", "config"]).splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _queued(names: Sequence[str], whose: Sequence[str]) -> list[JobFacts]:
    command = ["squeue", "--noheader", "--states=all", f"--format={'|'.join(SQUEUE_FIELDS)}", *whose]
    lines = [
        line
        for chunk in _chunks(names)
        for line in ask([*command, f"--name={','.join(chunk)}"], tries=TRIES).splitlines()
        if line.count("|") >= len(SQUEUE_FIELDS) - 1  # "CLUSTER: a" heads the jobs of one of several clusters
    ]
    return [_of_squeue(line.split("|", len(SQUEUE_FIELDS) - 1)) for line in lines]


def _of_squeue(values: Sequence[str]) -> JobFacts:
    number, name, state, start, end, submit, nodes, reason = values
    waits = state == "PENDING"
    return JobFacts(
        id=number, name=name, state=state, reason="" if reason == "None" else reason, nodes=expand(nodes),
        submitted=_moment(submit), started=None if waits else _moment(start),
        ended=_moment(end) if state in TERMINAL else None, estimated_start=_moment(start) if waits else None,
    )  # fmt: skip


def _accounted(names: Sequence[str], since: float, whose: Sequence[str] = (), *, latest: bool = True) -> list[JobFacts]:
    """Asks accounting for every job of these names; of one that was queued again, for its last time or for each."""
    begin, end = (time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(at)) for at in (since - DAY_S, time.time() + DAY_S))
    command = ["sacct", "--noheader", "--parsable2", "--duplicates", f"--starttime={begin}", f"--endtime={end}"]
    command += [f"--state={SACCT_STATES}", f"--format={','.join(SACCT_FIELDS)}", *whose]
    jobs: dict[str, list[JobFacts]] = {}
    for chunk in _chunks(names):
        for line in ask([*command, f"--name={','.join(chunk)}"], tries=TRIES).splitlines():
            values = line.split("|", len(SACCT_FIELDS) - 1)
            number, _, step = values[0].partition(".")
            times = jobs.setdefault(number, [])
            if not step:
                times.append(replace(_of_sacct(values), restarts=len(times)))
            elif times:
                steps = {**times[-1].steps, step: values[2].split(" ", 1)[0].rstrip("+")}
                times[-1] = replace(times[-1], steps=steps)
    return [facts for times in jobs.values() for facts in (times[-1:] if latest else times)]


def _of_sacct(values: Sequence[str]) -> JobFacts:
    number, name, states, start, end, submit, nodes, exit_code, reason = values
    word, _, by = states.partition(" ")  # "CANCELLED by 1000"
    state = word.rstrip("+")
    code, _, number_of_signal = exit_code.partition(":")
    return JobFacts(
        id=number, name=name, state=state, reason=by or ("" if reason == "None" else reason), nodes=expand(nodes),
        submitted=_moment(submit), started=_moment(start), ended=_moment(end) if state in TERMINAL else None,
        exit_code=_count(code), signal=_count(number_of_signal) or None, source="sacct",
    )  # fmt: skip


def _described(facts: JobFacts) -> JobFacts:
    """Adds what only `scontrol show job` tells where there is no accounting: how it ended, how often it restarted."""
    if not facts.ended_for_good():
        return facts
    try:
        words = ask(["scontrol", "show", "job", "--oneliner", facts.id], tries=1).split()
    except (SlurmAway, SlurmRefused):  # forgotten meanwhile
        return facts
    told = dict(word.split("=", 1) for word in words if "=" in word)
    code, _, number_of_signal = told.get("ExitCode", "").partition(":")
    return replace(
        facts, exit_code=_count(code), signal=_count(number_of_signal) or None,
        restarts=_count(told.get("Restarts", "")), source="scontrol",
    )  # fmt: skip


def _forgotten(facts: JobFacts) -> JobFacts:
    """A controller that restarted may have lost a job, whose end accounting then waits for in vain."""
    return replace(facts, state=FORGOTTEN, reason=f"the controller does not know it; accounting says {facts.state}")


def _change(job_id: str, change: str) -> None:
    deadline = time.monotonic() + SETTLING_S
    while True:
        try:
            ask(["scontrol", "update", f"JobId={job_id}", change])
        except SlurmRefused as refusal:
            if "pending" not in str(refusal).lower() or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def _is_late(words: str) -> bool:
    return any(word in words.lower() for word in ("invalid job id", "already completing", "already completed"))


def _age(facts: JobFacts) -> tuple[float, int]:
    number = facts.id.partition("_")[0]
    return facts.submitted or 0.0, int(number) if number.isdigit() else 0


def _moment(text: str) -> float | None:
    """Reads seconds since 1970, or the ISO form of commands that know no other; None for "N/A", "Unknown"."""
    if text.isdigit():
        return float(text)
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def _count(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _chunks(items: Sequence[str]) -> Iterable[Sequence[str]]:
    return (items[start : start + NAMES_A_CALL] for start in range(0, len(items), NAMES_A_CALL))
