"""Time stamps of a server that speaks RFC 3161: asked for over HTTP, and checked offline."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import httpx
from cryptography.x509 import Certificate, load_pem_x509_certificates
from rfc3161_client import (
    TimestampRequestBuilder,
    VerificationError,
    VerifierBuilder,
    decode_timestamp_response,
)

from infra.errors import OperatorError

SECONDS = 10.0
MOST_BYTES = 64 * 1024
QUERY = {"Content-Type": "application/timestamp-query", "Accept": "application/timestamp-reply"}


class TimestampInvalid(OperatorError):
    """What should be a time stamp is none over these bytes by a trusted server."""


class TimestampUnavailable(OperatorError):
    """The server gave no time stamp."""


class CertificatesUnusable(OperatorError):
    """The file of trusted certificates can't be read."""


class TimestampTrust:
    """The certificates whose time stamps count."""

    def __init__(self, certificates: Sequence[Certificate]) -> None:
        """At least one, each a root, or the one that signs."""
        self._certificates = list(certificates)

    def time(self, token: bytes, message: bytes, nonce: int | None = None) -> datetime:
        """Return when the message existed, as the time stamp says (UTC). Raise TimestampInvalid.

        `token` is a whole TimeStampResp in DER; where a nonce is given, it has to answer that one.
        The certificates have to be valid at the time that it says.
        """
        verifier = VerifierBuilder(roots=list(self._certificates), nonce=nonce).build()
        try:
            found = decode_timestamp_response(token)
            verifier.verify_message(found, message)
        except (VerificationError, ValueError) as error:
            raise TimestampInvalid(f"it is no time stamp that counts: {error}") from error
        return found.tst_info.gen_time

    def fault(self, token: bytes, message: bytes) -> str | None:
        """Return why a time stamp proves nothing, None when it is right."""
        try:
            self.time(token, message)
        except TimestampInvalid as error:
            return str(error)
        return None


class TimestampServer:
    """A time-stamp server at a URL, which answers for the certificates that are trusted."""

    def __init__(self, url: str, trust: TimestampTrust) -> None:
        self.url, self._trust = url, trust

    def stamp(self, message: bytes) -> bytes:
        """Return a checked time stamp over the message: a TimeStampResp in DER.

        Raise TimestampUnavailable, and TimestampInvalid for an answer that is none.
        """
        request = TimestampRequestBuilder().data(message).build()
        try:
            answer = httpx.post(
                self.url, content=request.as_bytes(), headers=QUERY, timeout=SECONDS
            )
            answer.raise_for_status()
        except httpx.HTTPError as error:
            told = str(error) or type(error).__name__
            raise TimestampUnavailable(f"{self.url} gives no time stamp: {told}") from error
        if len(answer.content) > MOST_BYTES:
            raise TimestampInvalid(f"{self.url} answers more than a time stamp")
        self._trust.time(answer.content, message, request.nonce)
        return answer.content


def read_trust(path: Path) -> TimestampTrust:
    """Return the certificates in a PEM file. Raise CertificatesUnusable."""
    try:
        return TimestampTrust(load_pem_x509_certificates(path.read_bytes()))
    except OSError as error:
        raise CertificatesUnusable(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise CertificatesUnusable(f"{path} holds no certificate in PEM") from error
