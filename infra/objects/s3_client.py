"""The way to a bucket: whose credentials, which address, how much patience."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

from infra.errors import OperatorError
from infra.objects.s3_answers import S3Error
from infra.objects.s3_signing import AccessKeys

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

THREADS = 32
DEFAULT_REGION = "us-east-1"
USUAL_PORTS = {"http": 80, "https": 443}


class S3Misconfigured(OperatorError):
    """The settings name nothing that boto3 could use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Place:
    """A bucket and the way to it; None leaves the choice to boto3's own configuration."""

    bucket: str
    endpoint_url: str | None = None
    public_endpoint_url: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    addressing_style: Literal["auto", "path", "virtual"] = "auto"


class S3Session:
    """Makes the clients of one place; they all share its credentials."""

    def __init__(self, place: S3Place) -> None:
        """Raises S3Misconfigured when there are no credentials or no readable configuration."""
        self._place = place
        try:
            self._session = boto3.session.Session(
                aws_access_key_id=place.access_key_id,
                aws_secret_access_key=place.secret_access_key,
            )
            self.region = place.region or self._session.region_name or DEFAULT_REGION
            found = self._session.get_credentials()
        except S3Error as error:
            raise S3Misconfigured(f"boto3's configuration is of no use: {error}") from error
        if found is None:
            raise S3Misconfigured(
                "S3_BUCKET is set, but there are no credentials for it: "
                "set S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY"
            )
        self._credentials = found

    def keys(self) -> AccessKeys:
        """What to sign with now; temporary credentials are renewed by botocore when due."""
        now = self._credentials.get_frozen_credentials()
        return AccessKeys(now.access_key or "", now.secret_key or "", now.token)

    def client(self, *, connect: float = 3, read: float = 30, attempts: int = 3) -> S3Client:
        """A client with these timeouts in seconds for each of its attempts."""
        return self._client(self._place.endpoint_url, connect, read, attempts)

    def public_bucket_url(self) -> str:
        """The bucket as clients reach it: botocore's own choice of host and path.

        The host is written as clients send it, since it is signed: small, without a usual port.
        """
        endpoint = self._place.public_endpoint_url or self._place.endpoint_url
        client = self._client(endpoint, 1, 1, 1)
        parameters = {"Bucket": self._place.bucket, "Key": "key"}
        url: str = client.generate_presigned_url("get_object", Params=parameters)
        parts = urlsplit(url)
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        if parts.port not in (None, USUAL_PORTS[parts.scheme]):
            host = f"{host}:{parts.port}"
        return f"{parts.scheme}://{host}{parts.path.removesuffix('/key')}"

    def _addressing_style(self, endpoint_url: str | None) -> Literal["path", "virtual"]:
        """Decided here: left to botocore, URLs of AWS would lead past the bucket's region."""
        if self._place.addressing_style != "auto":
            return self._place.addressing_style
        # A dot in the name would not fit AWS's certificate.
        return "virtual" if endpoint_url is None and "." not in self._place.bucket else "path"

    def _client(
        self, endpoint_url: str | None, connect: float, read: float, attempts: int
    ) -> S3Client:
        config = Config(
            signature_version="s3v4",
            s3={"addressing_style": self._addressing_style(endpoint_url)},
            connect_timeout=connect,
            read_timeout=read,
            retries={"mode": "standard", "total_max_attempts": attempts},
            max_pool_connections=THREADS,
            # The checksums that newer SDKs add are refused by many stores other than AWS.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return self._session.client(
            "s3", region_name=self.region, endpoint_url=endpoint_url, config=config
        )
