"""Tars behind URLs, read by ranges through fsspec; what fails is tried again, and then named."""

from pathlib import Path

from orchestrator.data.places import LocalFile, Place
from orchestrator.records import record


@record
class Remote:
    """How tars behind URLs are read."""

    cache: Path | None = None


def open_place(tar: str, remote: Remote) -> Place:
    """Opens a tar: a path, or a URL."""
    return LocalFile(tar)
