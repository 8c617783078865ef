"""Which pages of other origins may use the API in a browser (CORS, in the Fetch standard).

The edge asks here, since every answer passes it: refusals, hot routes, streams and the URLs of
objects as well.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.responses import Response
from starlette.types import Scope

from infra.http.requests import HEADERS

RawHeaders = list[tuple[bytes, bytes]]

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
ALLOWED = (
    "Accept-Language",
    "Authorization",
    "Backlot-Min-Position",
    "Backlot-Timeout-Ms",
    "Content-MD5",
    "Content-Type",
    "Idempotency-Key",
    "If-None-Match",
    "If-Range",
    "Last-Event-ID",
    "Range",
    "Tus-Resumable",
    "Upload-Checksum",
    "Upload-Length",
    "Upload-Metadata",
    "Upload-Offset",
    "X-Amz-Checksum-Crc32",
    "X-Amz-Checksum-Sha1",
    "X-Amz-Checksum-Sha256",
    "X-HTTP-Method-Override",
    "X-Request-Id",
)
"""What a page may send beside what every page may: all that a call reads."""
EXPOSED = (
    "Accept-Ranges",
    "Allow",
    "Backlot-Position",
    "Backlot-Stale-Position",
    "Content-Disposition",
    "Content-Range",
    "ETag",
    "Idempotency-Replayed",
    "Location",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "Tus-Checksum-Algorithm",
    "Tus-Extension",
    "Tus-Max-Size",
    "Tus-Resumable",
    "Tus-Version",
    "Upload-Expires",
    "Upload-Length",
    "Upload-Metadata",
    "Upload-Offset",
    "WWW-Authenticate",
    "X-Request-Id",
)
"""What a page may read of an answer beside what every page may."""
# The longest that a browser keeps the answer to a preflight (Chromium's limit).
MAX_AGE_SECONDS = 7200
ANY = "*"


class CrossOrigin:
    """The origins whose pages may use the API, and what their browsers are told of that."""

    def __init__(self, origins: Collection[str], *, credentials: bool = False) -> None:
        """`origins` are as browsers write them, or `*` alone, which excludes `credentials`."""
        self._origins = {origin.encode() for origin in origins}
        self._any = ANY in origins
        told: RawHeaders = [
            (b"access-control-expose-headers", ", ".join(EXPOSED).encode()),
        ]
        if credentials:
            told.append((b"access-control-allow-credentials", b"true"))
        self._told = told
        self._preflight = {
            "Access-Control-Allow-Methods": ", ".join(METHODS),
            "Access-Control-Allow-Headers": ", ".join(ALLOWED),
            "Access-Control-Max-Age": str(MAX_AGE_SECONDS),
        }

    def preflight(self, scope: Scope) -> Response | None:
        """Return the answer to a browser that asks before it sends a request; None for others.

        Of an origin that may not, it is empty: the browser then sends nothing.
        """
        sent = scope[HEADERS]
        asks = scope["method"] == "OPTIONS" and b"access-control-request-method" in sent
        if not asks or b"origin" not in sent:
            return None
        return Response(None, 204, self._preflight if self._admits(sent[b"origin"]) else None)

    def stamped(self, scope: Scope, headers: RawHeaders) -> RawHeaders:
        """Return the headers of an answer with what the browser is to know.

        Where it depends on the origin, each answer says so, also to whoever sends none: a shared
        cache would give it to pages otherwise.
        """
        origin: bytes | None = scope[HEADERS].get(b"origin")
        if self._any:
            return [*headers, (b"access-control-allow-origin", b"*"), *self._told]
        headers = _varying(headers)
        if origin is None or not self._admits(origin):
            return headers
        return [*headers, (b"access-control-allow-origin", origin), *self._told]

    def _admits(self, origin: bytes) -> bool:
        return self._any or origin in self._origins


def _varying(headers: RawHeaders) -> RawHeaders:
    """Return headers in which `Vary` has the origin too, in one line as caches like it best."""
    told = [value for name, value in headers if name == b"vary"]
    others = [pair for pair in headers if pair[0] != b"vary"]
    return [*others, (b"vary", b", ".join((*told, b"Origin")))]
