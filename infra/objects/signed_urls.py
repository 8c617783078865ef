"""URLs that carry their own permission, so that bytes are moved without a JWT, as on S3."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from infra.objects.port import (
    ObjectStoreError,
    SignedUrl,
    check_key,
    check_part,
    safe_content_type,
    safe_filename,
)

MIN_SECRET_BYTES = 16


class UrlRefused(ObjectStoreError):
    """The URL gives no permission for this request."""


class BadSignature(UrlRefused):
    """Not signed by us, or not for this method, key and parameters."""

    def __init__(self) -> None:
        super().__init__("The URL's signature is wrong; ask for a new URL and use it unchanged.")


class UrlExpired(UrlRefused):
    """Signed by us, but its time is over."""

    def __init__(self) -> None:
        super().__init__("The URL has expired; ask for a new one.")


class UrlSigner:
    """HMAC-SHA256 over method, path and every parameter, each for `ttl` from now."""

    def __init__(self, secret: bytes, ttl: timedelta, clock: Callable[[], datetime]) -> None:
        if len(secret) < MIN_SECRET_BYTES:
            raise ValueError(f"the secret for URLs needs at least {MIN_SECRET_BYTES} bytes")
        self._secret, self._ttl, self._clock = secret, ttl, clock

    def part_url(
        self, key: str, upload_id: str, number: int, size: int, base_url: str
    ) -> SignedUrl:
        """Return a URL for one PUT of exactly `size` bytes; raise InvalidKey."""
        check_part(number, size)
        return self._url("PUT", key, _part_query(upload_id, number, size), base_url)

    def get_url(self, key: str, content_type: str, filename: str, base_url: str) -> SignedUrl:
        """Return a URL for GET and HEAD that fixes type and name, both made safe."""
        query = _get_query(safe_content_type(content_type), safe_filename(filename))
        return self._url("GET", key, query, base_url)

    def verify_part(
        self, key: str, upload_id: str, number: int, size: int, expires: int, signature: str
    ) -> None:
        """Raise BadSignature or UrlExpired unless `part_url` signed exactly this."""
        self._verify("PUT", key, _part_query(upload_id, number, size), expires, signature)

    def verify_get(
        self, key: str, content_type: str, filename: str, expires: int, signature: str
    ) -> None:
        """Raise BadSignature or UrlExpired unless `get_url` signed exactly this."""
        self._verify("GET", key, _get_query(content_type, filename), expires, signature)

    def _url(self, method: str, key: str, query: Mapping[str, str], base_url: str) -> SignedUrl:
        expires = math.ceil((self._clock() + self._ttl).timestamp())
        path = f"/objects/{check_key(key)}"
        signature = self._sign(method, path, query, expires)
        full = _encode({**query, "expires": str(expires), "signature": signature})
        url = f"{base_url.rstrip('/')}{path}?{full}"
        return SignedUrl(url, datetime.fromtimestamp(expires, UTC))

    def _verify(
        self, method: str, key: str, query: Mapping[str, str], expires: int, signature: str
    ) -> None:
        expected = self._sign(method, f"/objects/{key}", query, expires)
        if not hmac.compare_digest(expected.encode(), signature.encode(errors="replace")):
            raise BadSignature
        if self._clock().timestamp() >= expires:
            raise UrlExpired

    def _sign(self, method: str, path: str, query: Mapping[str, str], expires: int) -> str:
        # Encoded values hold no line break and no "&", so two requests never read the same.
        text = "\n".join((method, path, _encode({**query, "expires": str(expires)})))
        return hmac.new(self._secret, text.encode(errors="replace"), hashlib.sha256).hexdigest()


def _part_query(upload_id: str, number: int, size: int) -> dict[str, str]:
    return {"uploadId": upload_id, "partNumber": str(number), "size": str(size)}


def _get_query(content_type: str, filename: str) -> dict[str, str]:
    return {"contentType": content_type, "filename": filename}


def _encode(query: Mapping[str, str]) -> str:
    return urlencode(query, errors="replace")
