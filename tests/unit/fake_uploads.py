"""The upload calls of a Backlot in memory, and an object store on another host; both can fail."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import jwt

URL = "http://backlot.test"
STORE = "http://store.test"
SECRET = "signs the tokens of these tests only"
CONTENT = bytes(range(256)) * 40  # 10,240 bytes: eleven parts of 1,000
Fault = httpx.Response | Exception | Callable[[], object]


def problem(status: int, slug: str, detail: str = "as told", **members: Any) -> httpx.Response:
    headers = {"Retry-After": "0", "Content-Type": "application/problem+json"}
    return httpx.Response(status, json={"type": slug, "detail": detail, **members}, headers=headers)


@dataclass
class Kept:
    """One upload as the server sees it."""

    owner: str
    body: dict[str, Any]
    part_bytes: int
    status: str = "started"
    parts: dict[int, bytes] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return -(-int(self.body["sizeBytes"]) // self.part_bytes)

    def content(self) -> bytes:
        return b"".join(piece for _, piece in sorted(self.parts.items()))


@dataclass
class FakeUploads(httpx.AsyncBaseTransport):
    """`faults` hold, by call, what comes instead of the next answers; a function runs before one.

    `lost` says how many answers never reach the client; of a `crowd` of parts none is answered
    before all have come, or a second has passed. Calls are named `POST /uploads`, `GET`,
    `DELETE`, `part-urls`, `complete` and `PUT <number>`.
    """

    part_bytes: int = 1000
    first_urls: int = 3
    url_seconds: float = 3600
    faults: dict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    uploads: dict[str, Kept] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    requests: list[httpx.Request] = field(default_factory=list)
    asked: list[list[int]] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    largest_block: int = 0
    at_once: int = 0
    most_at_once: int = 0
    crowd: int = 0
    _all_came: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def only(self) -> Kept:
        (found,) = self.uploads.values()
        return found

    def sent(self) -> list[int]:
        """The parts that were tried, in order of number."""
        return sorted(int(call.split()[1]) for call in self.calls if call.startswith("PUT"))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        call = self._named(request)
        self.requests.append(request)
        self.calls.append(call)
        self.at_once += call.startswith("PUT")
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            content = await self._content(request)
            if call.startswith("PUT"):
                await self._gather()
        finally:
            self.at_once -= call.startswith("PUT")
        while self.faults[call]:
            fault = self.faults[call].popleft()
            if isinstance(fault, httpx.Response):
                return httpx.Response(fault.status_code, headers=fault.headers, text=fault.text)
            if isinstance(fault, Exception):
                raise fault
            fault()
        if call.startswith("PUT"):
            answer = self._store(request, content)
        else:
            answer = self._answer(request, call, json.loads(content) if content else {})
        if self.lost[call] > 0:
            self.lost[call] -= 1
            raise httpx.ReadError("lost")
        return answer

    async def _gather(self) -> None:
        if self.at_once >= self.crowd:
            self._all_came.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._all_came.wait(), 10)

    async def _content(self, request: httpx.Request) -> bytes:
        content = b""
        assert isinstance(request.stream, httpx.AsyncByteStream)
        async for block in request.stream:
            content += block
            if request.method == "PUT":
                self.largest_block = max(self.largest_block, len(block))
        return content

    def _named(self, request: httpx.Request) -> str:
        if request.url.host == "store.test":
            return f"PUT {request.url.params['partNumber']}"
        last = request.url.path.rpartition("/")[2]
        if last in ("part-urls", "complete"):
            return last
        return "POST /uploads" if request.method == "POST" else request.method

    def _answer(self, request: httpx.Request, call: str, body: dict[str, Any]) -> httpx.Response:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        try:
            user = str(jwt.decode(token, SECRET, ["HS256"])["sub"])
        except jwt.PyJWTError:
            return problem(401, "unauthenticated", "The token was refused: not readable.")
        if call == "POST /uploads":
            return self._start(user, request.headers["Idempotency-Key"], body)
        upload_id = re.split("/", request.url.path)[2]
        upload = self.uploads.get(upload_id)
        if upload is None:
            return problem(404, "not-found", "There is no such upload.")
        if upload.owner != user:
            return problem(403, "forbidden", "This belongs to another user.")
        return self._of(upload_id, upload, call, body)

    def _of(self, name: str, upload: Kept, call: str, body: dict[str, Any]) -> httpx.Response:
        ids = {"uploadId": name, "videoId": name}
        if call == "GET":
            return httpx.Response(200, json=ids | self._status(upload))
        if call == "DELETE":
            upload.status = "aborted"
            return httpx.Response(200, json={"status": "aborted"})
        if call == "part-urls" and upload.status == "started":
            self.asked.append(body["numbers"])
            return httpx.Response(200, json={"parts": self._urls(name, body["numbers"])})
        if call == "complete" and upload.status in ("started", "completed"):
            return self._complete(ids, upload, body["parts"])
        detail = f"The upload is {upload.status}."
        return problem(409, "conflict", detail, uploadStatus=upload.status)

    def _start(self, user: str, key: str, body: dict[str, Any]) -> httpx.Response:
        name = self.keys.setdefault(key, str(uuid4()))
        upload = self.uploads.setdefault(name, Kept(user, body, self.part_bytes))
        assert upload.body == body, "another request under the same key"
        told = {
            "uploadId": name,
            "videoId": name,
            "status": "started",
            "partSizeBytes": self.part_bytes,
            "partCount": upload.count,
            "parts": self._urls(name, range(1, min(upload.count, self.first_urls) + 1)),
        }
        return httpx.Response(201, json=told, headers={"Backlot-Position": "p1"})

    def _urls(self, name: str, numbers: Any) -> list[dict[str, Any]]:
        expires = datetime.now(UTC) + timedelta(seconds=self.url_seconds)
        query = f"expires={expires.timestamp()}&serial={uuid4()}"
        return [
            {
                "number": number,
                "url": f"{STORE}/{name}?partNumber={number}&{query}",
                "expiresAt": expires.isoformat(),
            }
            for number in numbers
        ]

    def _status(self, upload: Kept) -> dict[str, Any]:
        arrived = sorted(upload.parts.items()) if upload.status == "started" else []
        return {
            "status": upload.status,
            "sizeBytes": upload.body["sizeBytes"],
            "partSizeBytes": upload.part_bytes,
            "partCount": upload.count,
            "parts": [
                {"number": number, "etag": etag(piece), "sizeBytes": len(piece)}
                for number, piece in arrived
            ],
        }

    def _complete(
        self, ids: dict[str, str], upload: Kept, named: list[dict[str, Any]]
    ) -> httpx.Response:
        if upload.status == "started":
            wanted = {number: etag(piece) for number, piece in upload.parts.items()}
            given = {part["number"]: part["etag"].strip('"') for part in named}
            missing = [n for n in range(1, upload.count + 1) if n not in wanted]
            wrong = [number for number in wanted if wanted[number] != given.get(number)]
            if missing or wrong:
                return problem(422, "parts-mismatch", missing=missing, wrong=wrong)
        upload.status = "completed"
        size = upload.body["sizeBytes"]
        told = {**ids, "status": "completed", "sizeBytes": size, "etag": "whole"}
        return httpx.Response(200, json=told)

    def _store(self, request: httpx.Request, content: bytes) -> httpx.Response:
        upload = self.uploads[request.url.path.removeprefix("/")]
        if upload.status != "started":
            return xml(404, "NoSuchUpload", "The upload was aborted or completed.")
        if float(request.url.params["expires"]) < datetime.now(UTC).timestamp():
            return xml(403, "AccessDenied", "Request has expired")
        digest = hashlib.md5(content).digest()
        if base64.b64decode(request.headers["Content-MD5"]) != digest:
            return xml(400, "BadDigest", "The Content-MD5 you specified did not match.")
        upload.parts[int(request.url.params["partNumber"])] = content
        return httpx.Response(200, headers={"ETag": f'"{digest.hex()}"'})


def etag(piece: bytes) -> str:
    return hashlib.md5(piece).hexdigest()


def xml(status: int, code: str, message: str) -> httpx.Response:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return httpx.Response(status, text=body)
