"""A real HTTP server on loopback that speaks the chat-completions API, and misbehaves as its script says."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What to do with one request: (status, headers, body, seconds to wait first).
Act = tuple[int, dict[str, str], bytes, float]
Script = Callable[[str, int], Act]


def completion(text: str | None, finish: str = "stop", **message: Any) -> bytes:
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "tester",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text} | message}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }
    return json.dumps(body).encode()


def says(text: str | None, finish: str = "stop", **message: Any) -> Act:
    return 200, {}, completion(text, finish, **message), 0.0


def sends(body: bytes) -> Act:
    return 200, {}, body, 0.0


def fails(status: int, message: str = "no", wait: float = 0.0, code: str | None = None, **headers: str) -> Act:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, named, json.dumps({"error": {"message": message, "code": code}}).encode(), wait


def hangs(seconds: float) -> Act:
    return 200, {}, completion("too late"), seconds


class ChatServer:
    """What the server was asked: `words` of each request, `times`, `keys`; `most` were under way at once."""

    def __init__(self, script: Script) -> None:
        self.script, self.url = script, ""
        self.words: list[str] = []
        self.times: list[float] = []
        self.keys: list[str] = []
        self.paths: list[str] = []
        self.now = self.most = 0
        self.lock = threading.Lock()

    def act(self, path: str, key: str, words: str) -> Act:
        with self.lock:
            place = len(self.words)
            self.words.append(words)
            self.times.append(time.monotonic())
            self.keys.append(key)
            self.paths.append(path)
            self.now += 1
            self.most = max(self.most, self.now)
        return self.script(words, place)

    def left(self) -> None:
        with self.lock:
            self.now -= 1


@contextmanager
def chat_server(script: Script | Sequence[Act]) -> Iterator[ChatServer]:
    """A server that acts by a function of (words, place), or by a list whose last act is done again and again."""
    server = ChatServer(script if callable(script) else lambda words, place: script[min(place, len(script) - 1)])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            key = self.headers.get("Authorization", "")
            status, headers, body, wait = server.act(self.path, key, asked["messages"][-1]["content"])
            time.sleep(wait)
            server.left()
            try:
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body))}.items():
                    if name not in headers:
                        self.send_header(name, value)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client gave up, as it should

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
