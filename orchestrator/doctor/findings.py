"""One thing that was looked at: how it stands, and what to do about it."""

from typing import Literal

from orchestrator.records import record


@record
class Finding:
    """What is true of one thing that runs depend on."""

    about: str  # "Python", "run folder", "Slurm"
    level: Literal["ok", "warning", "fault"]  # a fault stops runs, a warning will cost somebody something
    message: str
    remedy: str = ""  # what to do; empty if nothing need be done


def fine(about: str, message: str) -> Finding:
    """Says that something is as it should be."""
    return Finding(about=about, level="ok", message=message)


def doubtful(about: str, message: str, remedy: str) -> Finding:
    """Says that runs will work, and what they or their owner will miss."""
    return Finding(about=about, level="warning", message=message, remedy=remedy)


def unfit(about: str, message: str, remedy: str) -> Finding:
    """Says that runs cannot work before something is done."""
    return Finding(about=about, level="fault", message=message, remedy=remedy)
