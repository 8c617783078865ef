"""What a browser keeps and brings back, sealed: nobody reads it on the way, or makes one up."""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from secrets import token_bytes
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

NONCE_BYTES = 12


class Box:
    """Seals JSON objects with AES-256-GCM, each for one purpose and until a time.

    The key comes from a secret of the installation by HKDF (RFC 5869), so that every process that
    has the secret opens what another one sealed.
    """

    def __init__(self, secret: str, clock: Callable[[], float] = time.time) -> None:
        derive = HKDF(SHA256(), length=32, salt=None, info=b"backlot web")
        self._cipher = AESGCM(derive.derive(secret.encode()))
        self._clock = clock

    def seal(self, purpose: str, value: Mapping[str, Any], seconds: float) -> str:
        """Return `value` as text that is valid for so many seconds."""
        nonce = token_bytes(NONCE_BYTES)
        plain = json.dumps([self._clock() + seconds, value], separators=(",", ":")).encode()
        sealed = nonce + self._cipher.encrypt(nonce, plain, purpose.encode())
        return urlsafe_b64encode(sealed).decode().rstrip("=")

    def open(self, purpose: str, text: str) -> dict[str, Any] | None:
        """Return what was sealed for this purpose; None for anything else, and once it is over."""
        try:
            sealed = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
            nonce, rest = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
            until, value = json.loads(self._cipher.decrypt(nonce, rest, purpose.encode()))
        except (ValueError, InvalidTag):
            return None
        return value if self._clock() < until else None
