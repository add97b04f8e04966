"""Slurm's words for why a job waits, in plain ones; its own stay in brackets, for whoever asks an administrator."""

from collections.abc import Sequence

WORDS = {
    "BeginTime": "it was queued again a moment ago, or is to wait before it is tried again",
    "Cleaning": "its nodes are being cleaned up",
    "JobHeldAdmin": "an administrator holds it",
    "JobHeldUser": "somebody holds it: scontrol release",
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


def in_words(reason: str, after: Sequence[str]) -> str:
    """Says why a job waits; `after` are the stages that it waits for."""
    if reason in {"", "None"}:
        return "Slurm has not looked at it yet"
    if reason == "Dependency":
        return f"it waits for {', '.join(after)}" if after else "it waits for another job"
    first = reason.partition(",")[0].partition(" ")[0]
    if first.startswith(LIMITS):
        return f"a limit of the account is reached ({reason})"
    return f"{WORDS[first]} ({reason})" if first in WORDS else reason
