"""How the object store's refusals look over HTTP: one table for both APIs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType

from infra.http import Problem
from infra.objects.parts import (
    ChecksumMismatch,
    PartCutOff,
    PartStalled,
    PartTooLarge,
    PartTooShort,
)
from infra.objects.port import (
    InvalidKey,
    NoSuchUpload,
    ObjectStoreError,
    ObjectStoreUnavailable,
    PartMismatch,
)
from infra.objects.signing import BadSignature, UrlExpired

RETRY_AFTER_SECONDS = 5

PROBLEMS: MappingProxyType[type[ObjectStoreError], tuple[int, str]] = MappingProxyType(
    {
        BadSignature: (403, "url-signature-wrong"),
        UrlExpired: (403, "url-expired"),
        InvalidKey: (422, "object-key-invalid"),
        NoSuchUpload: (404, "upload-not-under-way"),
        PartMismatch: (422, "parts-mismatch"),
        PartTooLarge: (413, "part-too-large"),
        PartTooShort: (422, "part-too-short"),
        PartCutOff: (400, "part-cut-off"),
        PartStalled: (408, "part-stalled"),
        ChecksumMismatch: (422, "checksum-mismatch"),
        ObjectStoreUnavailable: (503, "object-store-unavailable"),
    }
)


def object_problem(error: ObjectStoreError, headers: dict[str, str] | None = None) -> Problem:
    """The answer for a client; a mismatch names its parts in `missing` and `wrong`."""
    status, slug = PROBLEMS[type(error)]
    headers = dict(headers or {})
    if isinstance(error, ObjectStoreUnavailable):
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if isinstance(error, PartMismatch):
        return Problem(
            status, slug, str(error), headers=headers, missing=error.missing, wrong=error.wrong
        )
    return Problem(status, slug, str(error), headers=headers)


@contextmanager
def as_problems(headers: dict[str, str] | None = None) -> Iterator[None]:
    """Turn what the object store refuses into Problems, with these headers added."""
    try:
        yield
    except ObjectStoreError as error:
        raise object_problem(error, headers) from error
