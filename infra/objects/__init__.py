"""Where media objects lie: one port, and a store for each shape of Backlot."""

from __future__ import annotations

from infra.objects.checksums import (
    Checksum,
    ChecksumUnreadable,
    ChecksumUnsupported,
    read_checksums,
)
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
    OpenUpload,
    Part,
    PartMismatch,
    PartRef,
    SignedUrl,
    StoredObject,
    disposition,
    safe_content_type,
)
from infra.objects.signing import BadSignature, UrlExpired, UrlRefused

__all__ = [
    "BadSignature",
    "Checksum",
    "ChecksumMismatch",
    "ChecksumUnreadable",
    "ChecksumUnsupported",
    "FolderStore",
    "InvalidKey",
    "NoSuchUpload",
    "ObjectFile",
    "ObjectStore",
    "ObjectStoreError",
    "ObjectStoreUnavailable",
    "OpenUpload",
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
    "disposition",
    "read_checksums",
    "safe_content_type",
]
