"""Calls without TLS and proxies: loading certificates would take longer than most of them."""

from __future__ import annotations

import ssl
from typing import Any

import httpx

_NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_PATIENCE = httpx.Timeout(30.0)


def client(**options: Any) -> httpx.Client:
    """A client for the programs of these tests; whoever makes it closes it."""
    return httpx.Client(verify=_NO_CERTIFICATES, trust_env=False, timeout=_PATIENCE, **options)


def get(url: str, **options: Any) -> httpx.Response:
    with client() as once:
        return once.get(url, **options)


def put(url: str, **options: Any) -> httpx.Response:
    with client() as once:
        return once.put(url, **options)
