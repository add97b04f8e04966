"""What a paid service has answered, on disk before anybody goes on: asked again, it is not paid for again."""

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.evaluate.chat import Reply


class Ledger:
    """A file with a reply a line, by what was asked; lines that a killed process cut short count as not there."""

    def __init__(self, path: Path) -> None:
        """Reads what stands in the file, if there is one."""
        self._replies: dict[str, Reply] = {}
        self._lock = threading.Lock()
        content = path.read_bytes() if path.is_file() else b""
        for line in content.splitlines():
            try:
                plain = json.loads(line)
                asked = plain.pop("asked")
                self._replies[asked] = Reply(**plain)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
        self._file = path.open("ab")
        if content and not content.endswith(b"\n"):
            self._file.write(b"\n")

    def __len__(self) -> int:
        """Counts the replies."""
        return len(self._replies)

    def get(self, asked: str) -> Reply | None:
        """Returns the reply to what was asked before."""
        return self._replies.get(asked)

    def add(self, asked: str, reply: Reply) -> None:
        """Keeps a reply; once this returns it survives a crash. Any number of threads may call it."""
        line = json.dumps({"asked": asked, **asdict(reply)}, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._replies[asked] = reply

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def name_of(body: Mapping[str, Any], run: int) -> str:
    """Names a request by all that it says, and by the run that it belongs to."""
    text = json.dumps({"body": body, "run": run}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
