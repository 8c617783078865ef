"""The S3 store of the settings, for whichever process needs it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from infra.settings.adapters import ObjectSettings

if TYPE_CHECKING:
    from infra.objects.s3 import S3Store


def make_s3(settings: ObjectSettings, *, for_clients: bool = True) -> S3Store:
    """The store of the S3_* settings; calls nobody yet. Raises OperatorError without credentials.

    Its URLs are for clients, or else for this program itself, which may reach the store elsewhere.
    `close` it.
    """
    # boto3 takes a quarter of a second to import.
    from infra.objects.s3 import S3Store
    from infra.objects.s3_client import S3Place

    secret = settings.secret_access_key
    place = S3Place(
        bucket=settings.bucket or "",
        endpoint_url=settings.endpoint_url,
        public_endpoint_url=settings.public_endpoint_url if for_clients else None,
        region=settings.region,
        access_key_id=settings.access_key_id,
        secret_access_key=secret.get_secret_value() if secret else None,
        addressing_style=settings.addressing_style,
    )
    return S3Store(place, settings.url_ttl, now)


def now() -> datetime:
    """The clock of the stores, in UTC."""
    return datetime.now(UTC)
