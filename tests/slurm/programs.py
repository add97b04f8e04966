"""Programs of our own where Slurm's would be."""

from pathlib import Path


class Programs:
    """A folder with shell scripts; each notes with what it was called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def path(self) -> str:
        """Returns a PATH in which they come before those of the system."""
        return f"{self.folder}:/usr/bin:/bin"

    def does(self, name: str, script: str) -> None:
        """Lets a program run this script."""
        path = self.folder / name
        path.write_text(f'#!/bin/sh\necho "$@" >> "{self._log(name)}"\n{script}\n', encoding="utf-8")
        path.chmod(0o755)

    def say(self, name: str, *lines: str) -> None:
        """Lets a program print these lines, without the empty ones."""
        said = self.folder / f"{name}.out"
        said.write_text("".join(f"{line}\n" for line in lines if line), encoding="utf-8")
        self.does(name, f"cat '{said}'")

    def calls(self, name: str) -> list[str]:
        """Returns the arguments of each call so far."""
        log = self._log(name)
        return log.read_text(encoding="utf-8").splitlines() if log.exists() else []

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"
