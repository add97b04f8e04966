"""Damage for tests: bytes of one sample turned over, where they lie in their tar."""

import tarfile
from pathlib import Path


def flip(tar: Path, name: str) -> None:
    """Turns over the first byte of a file inside a tar."""
    with tarfile.open(tar) as archive:
        offset = archive.getmember(name).offset_data
    with tar.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))
