"""A webhook for tests: a real server, which answers as it is told to."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "s3cr3t-path"  # noqa: S105 - what must appear in no log


@dataclass
class Listener:
    """What a server has heard, and how it answers."""

    answers: list[int | float] = field(default_factory=list)  # a status, or seconds to sleep first; then always 200
    heard: list[dict[str, Any]] = field(default_factory=list)
    server: ThreadingHTTPServer | None = None

    @property
    def address(self) -> str:
        assert self.server is not None
        return f"http://127.0.0.1:{self.server.server_port}/{SECRET}"


@contextmanager
def listening() -> Iterator[Listener]:
    """Starts a server; the block ends it."""
    listener = Listener()

    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            listener.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            answer = listener.answers.pop(0) if listener.answers else 200
            if isinstance(answer, float):
                time.sleep(answer)
            self.send_response(200 if isinstance(answer, float) else answer)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    listener.server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    listener.server.daemon_threads = True
    threading.Thread(target=listener.server.serve_forever, daemon=True).start()
    try:
        yield listener
    finally:
        listener.server.shutdown()
        listener.server.server_close()
