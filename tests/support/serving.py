"""A command that serves, as a real process, and requests to it over HTTP."""

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

MAIN = "from milonga.cli.main import main; main()"


@contextmanager
def serving(*words: str, program: tuple[str, ...] = ("-c", MAIN)) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`milonga WORDS`, or another program, and the address that it printed; killed with -9 at the end."""
    # A suite that runs in the background inherits SIGINT ignored, and would hand that on.
    process = subprocess.Popen(
        [sys.executable, *program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"}, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    link = process.stdout.readline().strip()
    assert link.startswith("http://127.0.0.1:"), process.stderr.read()
    try:
        yield process, link
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def ask(
    base: str, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, Any, Any]:
    """(status, headers, body) of one request; the body is JSON where the answer says so."""
    parts = urlsplit(base)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    kind = {} if body is None else {"Content-Type": "application/json"}
    connection.request(method, path, data, kind | (headers or {}))
    answered = connection.getresponse()
    text = answered.read()
    connection.close()
    told = json.loads(text) if answered.getheader("Content-Type", "").startswith("application/json") else text
    return answered.status, answered.headers, told
