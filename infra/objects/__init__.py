"""Where media objects lie: one port, and a store for each shape of Backlot."""

from __future__ import annotations

from infra.objects.folder import FolderStore, ObjectFile
from infra.objects.parts import (
    ChecksumMismatch,
    PartCutOff,
    PartRefused,
    PartStalled,
    PartTooLarge,
    PartTooShort,
)
from infra.objects.port import (
    InvalidKey,
    NoSuchUpload,
    ObjectStore,
    ObjectStoreError,
    ObjectStoreUnavailable,
    Part,
    PartMismatch,
    PartRef,
    SignedUrl,
    StoredObject,
)
from infra.objects.signing import BadSignature, UrlExpired, UrlRefused

__all__ = [
    "BadSignature",
    "ChecksumMismatch",
    "FolderStore",
    "InvalidKey",
    "NoSuchUpload",
    "ObjectFile",
    "ObjectStore",
    "ObjectStoreError",
    "ObjectStoreUnavailable",
    "Part",
    "PartCutOff",
    "PartMismatch",
    "PartRef",
    "PartRefused",
    "PartStalled",
    "PartTooLarge",
    "PartTooShort",
    "SignedUrl",
    "StoredObject",
    "UrlExpired",
    "UrlRefused",
]
