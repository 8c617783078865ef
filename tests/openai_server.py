"""An OpenAI-compatible server on loopback for tests of every tier: scripted, and with a journal.

Without a script it detects nothing and translates at once, keeping everything; and it embeds.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import threading
import time
from array import array
from base64 import b64encode
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

START_SECONDS = 60.0
PATH = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"


@dataclass(frozen=True)
class Call:
    """One request as it came in."""

    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def system(self) -> str:
        return str(self.body["messages"][0]["content"])

    @property
    def user(self) -> str:
        return str(self.body["messages"][-1]["content"])

    @property
    def texts(self) -> list[str]:
        """What is to be embedded; nothing in a question."""
        return list(self.body.get("input", ()))

    @property
    def data(self) -> dict[str, Any]:
        """The user's message, where it is an object in JSON."""
        try:
            found = json.loads(self.user)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def text(self) -> str:
        """What it is about: the comment, or the whole message."""
        return str(self.data.get("comment", self.user))

    @property
    def target(self) -> str:
        """The language that it wants a translation into; "" in another question."""
        found = re.search('ISO 639-1 code "([a-z]{2})"', self.system)
        return found[1] if found else ""

    @property
    def fields(self) -> dict[str, Any]:
        """The properties of the object that it asks for."""
        schema: dict[str, Any] = self.body["response_format"]["json_schema"]["schema"]
        properties: dict[str, Any] = schema["properties"]
        return properties


@dataclass(frozen=True)
class Answer:
    """What the server does with one call."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    hang_up: bool = False


Script = Callable[[Call], Answer]


def completion(
    content: str | None,
    *,
    refusal: str | None = None,
    finish_reason: str = "stop",
    tokens: tuple[int, int] | None = (10, 5),
) -> Answer:
    """A whole answer of the API with this content; `tokens` are those of input and output."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    body: dict[str, Any] = {
        "id": "chatcmpl-test",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "test",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
    }
    if tokens is not None:
        prompt, answered = tokens
        body["usage"] = {
            "prompt_tokens": prompt,
            "completion_tokens": answered,
            "total_tokens": prompt + answered,
        }
    return Answer(body=json.dumps(body).encode())


def answered(**fields: object) -> Answer:
    """An answer with these fields, as the caller's schema has them."""
    return completion(json.dumps(fields, ensure_ascii=False))


def translated(text: str, language: str = "und") -> Answer:
    """A translation."""
    return answered(source_language=language, translated_text=text)


def vector_of(text: str, dimensions: int) -> list[float]:
    """Where the server places a text: always the same for the same text; of any length."""
    chance = random.Random(text)
    return [chance.gauss(0, 1) for _ in range(dimensions)]


def embedded(call: Call, **changes: object) -> Answer:
    """The vectors of a call's texts, in the format that it asks for, the last text's first."""
    data: list[dict[str, Any]] = []
    for index, text in enumerate(call.texts):
        vector: Any = vector_of(text, call.body["dimensions"])
        if call.body.get("encoding_format") == "base64":
            vector = b64encode(array("f", vector).tobytes()).decode()
        data.insert(0, {"object": "embedding", "index": index, "embedding": vector})
    tokens = sum(map(len, call.texts))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    body = {"object": "list", "model": "test", "data": data, "usage": usage, **changes}
    return Answer(body=json.dumps(body).encode())


def refusal(text: str = "I can't help with that.") -> Answer:
    return completion(None, refusal=text)


def malformed() -> Answer:
    return completion('{"translated_text": ')


def truncated() -> Answer:
    return completion('{"translated_text": "Hel', finish_reason="length")


def filtered() -> Answer:
    return completion(None, finish_reason="content_filter")


def status(http: int, /, retry_after: str | None = None, **error: str) -> Answer:
    """An error as the API tells it."""
    headers = {} if retry_after is None else {"retry-after": retry_after}
    told = {"message": "scripted", "type": "scripted", "code": None, "param": None, **error}
    return Answer(http, json.dumps({"error": told}).encode(), headers)


def hang(seconds: float = 3600.0) -> Answer:
    return Answer(delay=seconds)


def hang_up() -> Answer:
    """The connection ends in the middle of the answer."""
    return Answer(hang_up=True, body=b'{"id"')


def by_default(call: Call) -> Answer:
    """Embeds, detects nothing, and translates to the same text with `[en] ` before it."""
    if call.texts:
        return embedded(call)
    fields: dict[str, object] = {}
    for name, schema in call.fields.items():
        if name == "translated_text":
            fields[name] = f"[en] {call.text}"
        elif schema.get("type") == "number":
            fields[name] = 0.0
        else:
            fields[name] = "und"
    return answered(**fields)


class OpenAIServer:
    """The running server. Its script is answered first, one call each; then `otherwise` decides."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.by_text: Counter[str] = Counter()
        self.otherwise: Script = by_default
        self.delay = 0.0
        self.busy = 0
        self.most_busy = 0
        self._script: deque[Answer] = deque()
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.port: int = self._socket.getsockname()[1]

    @property
    def url(self) -> str:
        """What OPENAI_BASE_URL has to be."""
        return f"http://127.0.0.1:{self.port}/v1"

    def script(self, *answers: Answer) -> None:
        """Give the next calls these answers, in this order."""
        self._script.extend(answers)

    def forget(self) -> None:
        """Begin anew: no calls, no script."""
        self.calls.clear()
        self.by_text.clear()
        self._script.clear()
        self.otherwise = by_default
        self.delay = 0.0
        self.most_busy = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        assert scope["type"] == "http"
        body = await _body(receive)
        if scope["path"] not in (PATH, EMBEDDINGS) or scope["method"] != "POST":
            await _send(send, status(404))
            return
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        call = Call(headers, json.loads(body))
        self.calls.append(call)
        self.by_text.update(call.texts or [call.text])
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            answer = self._script.popleft() if self._script else self.otherwise(call)
            await asyncio.sleep(self.delay + answer.delay)
            await _send(send, answer)
        finally:
            self.busy -= 1

    def serve(self, server: uvicorn.Server) -> None:
        server.run(sockets=[self._socket])


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(body)


async def _send(send: Send, answer: Answer) -> None:
    length = len(answer.body) + (1000 if answer.hang_up else 0)
    headers = {"content-type": "application/json", "content-length": str(length), **answer.headers}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": pairs})
    # One that hangs up promises more than it sends: the server then closes the connection.
    more = answer.hang_up
    await send({"type": "http.response.body", "body": answer.body, "more_body": more})


@contextmanager
def openai_server() -> Iterator[OpenAIServer]:
    """A server in a thread of this process, until the block ends."""
    app = OpenAIServer()
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
        # No client of a test may meet the end of a connection that it still uses.
        timeout_keep_alive=75,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=app.serve, args=(server,), name="openai", daemon=True)
    thread.start()
    deadline = time.monotonic() + START_SECONDS
    while not server.started:
        assert thread.is_alive(), "the server ended at its start"
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.005)
    try:
        yield app
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join()
