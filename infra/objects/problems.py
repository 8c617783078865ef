"""The HTTP problems of the folder store's errors: one table for sending and fetching bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from infra.http.problems import Problem
from infra.objects.disk import ChecksumMismatch, PartCutOff, PartStalled, PartTooLarge, PartTooShort
from infra.objects.port import (
    ChecksumUnreadable,
    ChecksumUnsupported,
    NoSuchUpload,
    ObjectStoreError,
    ObjectStoreUnavailable,
)
from infra.objects.signed_urls import BadSignature, UrlExpired

RETRY_SOON = {"Retry-After": "5"}

PROBLEMS: Mapping[type[ObjectStoreError], tuple[int, str]] = MappingProxyType(
    {
        PartCutOff: (400, "part-cut-off"),
        PartStalled: (400, "part-stalled"),
        ChecksumUnreadable: (400, "checksum-unreadable"),
        ChecksumUnsupported: (400, "checksum-unsupported"),
        BadSignature: (403, "url-signature-wrong"),
        UrlExpired: (403, "url-expired"),
        NoSuchUpload: (404, "upload-gone"),
        PartTooLarge: (413, "part-too-large"),
        PartTooShort: (422, "part-too-short"),
        ChecksumMismatch: (422, "checksum-mismatch"),
        ObjectStoreUnavailable: (503, "object-store-unavailable"),
    }
)


@contextmanager
def as_problems(headers: Mapping[str, str] | None = None) -> Iterator[None]:
    """Turn what the store refuses into Problems with these headers; other errors pass."""
    try:
        yield
    except ObjectStoreError as error:
        if type(error) not in PROBLEMS:
            raise
        status, slug = PROBLEMS[type(error)]
        retry = RETRY_SOON if isinstance(error, ObjectStoreUnavailable) else {}
        raise Problem(status, slug, str(error), headers={**retry, **(headers or {})}) from error
