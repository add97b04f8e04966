"""Slurm's words for why a job waits, in plain ones; its own stay in brackets, for whoever asks an administrator."""

from collections.abc import Sequence

WORDS = {
    "BeginTime": "it was queued again a moment ago, or is to wait before it is tried again",
    "Cleaning": "its nodes are being cleaned up",
    "Licenses": "it waits for licences",
    "NodeDown": "a node that it needs is down",
    "PartitionDown": "the partition is closed",
    "PartitionInactive": "the partition is closed",
    "PartitionNodeLimit": "it asks for more nodes than the partition gives to a job",
    "PartitionTimeLimit": "it asks for more hours than the partition gives to a job",
    "Priority": "other jobs are before it",
    "ReqNodeNotAvail": "nodes that it needs are down or reserved",
    "Reservation": "its reservation has not begun",
    "Resources": "it waits for free nodes",
}
LIMITS = ("Assoc", "QOS", "MaxCpu", "MaxGRES", "MaxJobs", "MaxMem", "MaxNode")
HOLDERS = {  # what Slurm says of a job that it will never begin by itself -> who wanted that
    "JobHeldAdmin": "an administrator holds it, and can let it go",
    "JobHeldUser": "somebody holds it",
    "launch failed requeued held": "its node could not start it, so Slurm queued it again and holds it",
    "job requeued in held state": "somebody queued it again and holds it",
}


def in_words(reason: str, after: Sequence[str], *, job_id: str, run: str) -> str:
    """Says why a job waits, and what to type if it waits for a human; `after` are the stages that it waits for."""
    if reason in {"", "None"}:
        return "Slurm has not looked at it yet"
    if reason == "Dependency":
        return f"it waits for {', '.join(after)}" if after else "it waits for another job"
    held = _held(reason)
    if held:
        return f"held: {held} ({reason}); let it go with: scontrol release {job_id}, or end it with: orch cancel {run}"
    first = reason.partition(",")[0].partition(" ")[0]
    if first.startswith(LIMITS):
        return f"a limit of the account is reached ({reason})"
    return f"{WORDS[first]} ({reason})" if first in WORDS else reason


def _held(reason: str) -> str:
    plain = reason.replace("_", " ")  # some of Slurm's commands write it so
    return HOLDERS.get(plain) or ("Slurm holds it" if plain.endswith("held") or plain.startswith("JobHeld") else "")
