"""An S3 in a process of its own: moto behind a doorman who is as strict as S3.

moto itself takes URLs that were changed or have expired, breaks on uploads that are gone, and says
of every upload that it was begun in 2010.
"""

from __future__ import annotations

import atexit
import re
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import boto3
import httpx
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from infra.objects.s3 import S3Store
from infra.settings.adapters import ObjectSettings
from tests.e2e import plain
from tests.support import PROJECT

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from types_boto3_s3 import S3Client

REGION = "eu-central-1"
KEY_ID, SECRET = "AKIDEXAMPLEEXAMPLE00", "a secret that signs in tests only"
BUCKET = "media"
# An answer that begins one upload, and each upload of a list.
UPLOAD = re.compile(b"<InitiateMultipartUploadResult.+?</Init|<Upload>.+?</Upload>", re.DOTALL)
_idle: list[S3Server] = []


@dataclass(frozen=True)
class S3Server:
    """The running server, with one empty bucket; `process` is the one that answers at `url`."""

    url: str
    process: subprocess.Popen[str]

    def place(self, **changes: str) -> ObjectSettings:
        return ObjectSettings.model_validate(self.settings()).model_copy(update=changes)

    def settings(self) -> dict[str, str]:
        """What makes Backlot use it."""
        return {
            "S3_BUCKET": BUCKET,
            "S3_ENDPOINT_URL": self.url,
            "S3_REGION": REGION,
            "S3_ACCESS_KEY_ID": KEY_ID,
            "S3_SECRET_ACCESS_KEY": SECRET,
        }

    def client(self) -> S3Client:
        """An operator's own look into the store."""
        return _client(self.url)


@cache
def _client(url: str) -> S3Client:
    # Made once for each server: that takes a fifth of a second.
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=KEY_ID,
        aws_secret_access_key=SECRET,
        config=Config(retries={"total_max_attempts": 1}, proxies={}),
    )


def s3_store(place: ObjectSettings, at: datetime | None = None) -> S3Store:
    """A store for one test, which closes it; `at` stops its clock."""
    return S3Store(place, lambda: at or datetime.now(UTC))


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server that nobody else uses meanwhile. It is used again: a start takes two seconds."""
    server = _rested() or _start()
    try:
        location = {"LocationConstraint": REGION}
        server.client().create_bucket(Bucket=BUCKET, CreateBucketConfiguration=location)  # type: ignore[arg-type]
        yield server
    finally:
        if server.process.poll() is None and _forgets(server):
            _idle.append(server)
        else:
            _end(server)


def _rested() -> S3Server | None:
    while _idle:
        if (server := _idle.pop()).process.poll() is None:
            return server
    return None


def _start() -> S3Server:
    """Start a process, on a port that the process itself took."""
    command = [sys.executable, "-m", "tests.integration.s3_server"]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    server = S3Server(f"http://127.0.0.1:{int(process.stdout.readline())}", process)
    atexit.register(_end, server)
    return server


def _forgets(server: S3Server) -> bool:
    """Whether nothing is left in it."""
    with suppress(httpx.TransportError), plain.client() as client:
        return client.post(f"{server.url}/moto-api/reset").is_success
    return False


def _end(server: S3Server) -> None:
    server.process.kill()
    server.process.wait()
    if server.process.stdout is not None:
        server.process.stdout.close()


class Doorman:
    """Checks presigned requests by botocore's signature, and knows when uploads were begun."""

    def __init__(self, store: WSGIApplication) -> None:
        self._store = store
        # In S3 a completion is one moment; in moto others can look in between.
        self._one_at_a_time = Lock()
        self._begun: dict[bytes, bytes] = {}

    def __call__(self, request: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        query = dict(parse_qsl(request.get("QUERY_STRING", ""), keep_blank_values=True))
        # A browser that asks before it sends signs nothing.
        if "X-Amz-Signature" in query and request["REQUEST_METHOD"] != "OPTIONS":
            refusal = _refusal(request, query)
            if refusal is not None:
                return _refuse(start, "403 Forbidden", refusal)
            # moto takes a presigned request for a key that is not there for a forged one.
            request["HTTP_AUTHORIZATION"] = f"AWS4-HMAC-SHA256 {query['X-Amz-Credential']}"
        with self._one_at_a_time:
            try:
                answer = b"".join(self._store(request, start))
            except KeyError:
                return _refuse(start, "404 Not Found", "NoSuchUpload")
            if "uploads" in query:
                answer = UPLOAD.sub(self._with_time, answer)
            return [answer]

    def _with_time(self, upload: re.Match[bytes]) -> bytes:
        """Return the upload with the time when it was first seen; that is as long as moto's."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z").encode()
        (upload_id,) = re.findall(b"<UploadId>(.+?)</UploadId>", upload[0])
        begun = self._begun.setdefault(upload_id, now)
        return re.sub(b"<Initiated>.+?<", b"<Initiated>" + begun + b"<", upload[0])


def _refuse(start: StartResponse, status: str, code: str) -> list[bytes]:
    start(status, [("Content-Type", "application/xml")])
    return [f"<Error><Code>{code}</Code></Error>".encode()]


def _refusal(request: WSGIEnvironment, query: dict[str, str]) -> str | None:
    signature, signed_at = query.pop("X-Amz-Signature"), query["X-Amz-Date"]
    begun = datetime.strptime(signed_at, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    if datetime.now(UTC) > begun + timedelta(seconds=int(query["X-Amz-Expires"])):
        return "AccessDenied"
    named = query["X-Amz-SignedHeaders"].split(";")
    headers = {name: _header(request, name) for name in named}
    url = f"http://{request['HTTP_HOST']}{request['PATH_INFO']}"
    plain = AWSRequest(request["REQUEST_METHOD"], url, headers=headers, params=query)
    plain.context["timestamp"] = signed_at
    auth = S3SigV4QueryAuth(Credentials(KEY_ID, SECRET), "s3", REGION)
    text = auth.string_to_sign(plain, auth.canonical_request(plain))
    return None if auth.signature(text, plain) == signature else "SignatureDoesNotMatch"


def _header(request: WSGIEnvironment, name: str) -> str:
    key = name.upper().replace("-", "_")
    return str(request.get(key if key == "CONTENT_LENGTH" else f"HTTP_{key}", ""))


def _main() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, *_: object) -> None:
            pass

    moto = Doorman(DomainDispatcherApplication(create_backend_app))
    listening = socket.create_server(("127.0.0.1", 0))
    port: int = listening.getsockname()[1]
    server = make_server(
        "127.0.0.1", port, moto, threaded=True, request_handler=Quiet, fd=listening.fileno()
    )
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    _main()
