"""A judge's endpoint that answers whatever it is told to: no chat completion, no JSON, no HTTP, or nothing at all."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from hypothesis import strategies as st

from tests.verifiers.wild import JSON, WILD

DRIP_SECONDS = 0.05  # between two bytes; less than what a request may wait for one


@dataclass(frozen=True)
class Reply:
    """`body` as it is. `silent`: nothing until the client goes; `drip`: byte by byte, without end; `short`: less than the
    length that it tells; `gone`: the connection is closed at once."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    manner: Literal["whole", "silent", "drip", "short", "gone"] = "whole"


def grade(text: Any, finish_reason: Any = "stop") -> Reply:
    """A chat completion whose message is `text`."""
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return Reply(json.dumps({"choices": [choice]}).encode())


GRADE = grade('{"reason": "fine", "score": 7}')

_SCORES = st.integers() | st.floats() | st.floats(0, 10) | JSON
_GRADES = st.one_of(
    st.builds(lambda score, reason: json.dumps({"reason": reason, "score": score}), _SCORES, WILD | JSON),
    st.builds(lambda score: f'```json\n{{"score": {score}}}\n```', st.floats(0, 10)),
    JSON.map(json.dumps),
    WILD,
)
_HEADERS = st.sampled_from(
    [
        {},
        {"Retry-After": "0"},
        {"Retry-After": "9" * 400},
        {"Retry-After": "²"},
        {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"},
        {"Location": "http://["},
        {"Location": "/v1/elsewhere"},
        {"Content-Encoding": "gzip"},
        {"Content-Type": "text/html; charset=no-such"},
        {"Set-Cookie": "a=\x01; Expires=never"},
    ]
)
_STATUSES = st.sampled_from([200, 201, 204, 301, 302, 400, 401, 404, 408, 429, 500, 503, 529, 599, 999])
_BODIES = (
    st.binary()
    | JSON.map(lambda value: json.dumps(value).encode())
    | WILD.map(lambda text: text.encode("utf-8", "replace"))
)
_HUGE = st.sampled_from([b"[" * (2 << 20), b" " * (2 << 20), json.dumps({"choices": ["x" * (2 << 20)]}).encode()])
REPLIES = st.one_of(
    st.builds(grade, _GRADES),
    st.builds(grade, _GRADES | JSON, JSON),
    st.builds(Reply, _BODIES | _HUGE, _STATUSES, _HEADERS),
    st.builds(Reply, _BODIES, manner=st.sampled_from(["silent", "drip", "short", "gone"])),
)


class WildJudge:
    """On loopback, with the address in `url`. Requests that it keeps waiting end with `let_go`."""

    def __init__(self) -> None:
        self.url = ""
        self.reply = GRADE
        self.asked = 0
        self._released = threading.Event()

    def answer(self, reply: Reply) -> None:
        """To every request from now on."""
        self._released = threading.Event()
        self.reply = reply

    def let_go(self) -> None:
        self._released.set()

    def send(self, handler: BaseHTTPRequestHandler) -> None:
        """The reply to one request."""
        self.asked += 1
        reply, released = self.reply, self._released
        if reply.manner == "gone":
            return
        if reply.manner == "silent":
            released.wait()
            return
        body = reply.body
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body) if reply.manner == "whole" else len(body) + (1 << 20)))
        handler.end_headers()
        if reply.manner == "drip":
            while not released.wait(DRIP_SECONDS):
                handler.wfile.write(b" ")
                handler.wfile.flush()
            return
        handler.wfile.write(body)


@contextlib.contextmanager
def wild_judge() -> Iterator[WildJudge]:
    judge = WildJudge()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            with contextlib.suppress(OSError):  # the client may have hung up
                judge.send(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield judge
    finally:
        judge.let_go()
        server.shutdown()
        thread.join()
        server.server_close()
