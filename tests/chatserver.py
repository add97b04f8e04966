"""A chat endpoint for tests: a real server on this machine, which answers as it is told to."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "grader-key-0123456789"  # what it takes, and what must be written nowhere


@dataclass
class Answer:
    """What a server sends; as it is, where `body` is bytes. `hold`: it waits for that first, and then says nothing."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None


def completion(text: Any, *, tokens: tuple[int, int] = (100, 2)) -> Answer:
    """Says something as a model would."""
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return Answer(body={"model": "grader-1", "choices": [{"message": {"content": text}}], "usage": usage})


@dataclass
class ChatServer:
    """What a server has heard, and what it answers: what is in `first`, in order, then what `reply` says."""

    reply: Callable[[dict[str, Any]], Answer] = lambda _: completion("1.0")
    first: list[Answer] = field(default_factory=list)
    heard: list[dict[str, Any]] = field(default_factory=list)  # bodies of requests with the right key
    paths: list[str] = field(default_factory=list)
    most_at_once: int = 0
    port: int = 0
    _under_way: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def answer(self, body: dict[str, Any], key: str | None, path: str) -> Answer:
        """Chooses an answer."""
        with self._lock:
            self.paths.append(path)
            if key != f"Bearer {KEY}":
                return Answer(status=401, body={"error": {"message": f"Incorrect API key provided: {key}"}})
            self.heard.append(body)
            return self.first.pop(0) if self.first else self.reply(body)

    def count(self, step: int) -> None:
        """Notes that a request comes or goes."""
        with self._lock:
            self._under_way += step
            self.most_at_once = max(self.most_at_once, self._under_way)


@contextmanager
def chatting(reply: Callable[[dict[str, Any]], Answer] | None = None) -> Iterator[ChatServer]:
    """Starts a server; the block ends it."""
    chat = ChatServer() if reply is None else ChatServer(reply=reply)

    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            chat.count(1)
            try:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._send(chat.answer(body, self.headers["Authorization"], self.path))
            finally:
                chat.count(-1)

        def _send(self, answer: Answer) -> None:
            if answer.hold is not None:
                answer.hold.wait()
                return
            content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.daemon_threads = True
    chat.port = server.server_port
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()
