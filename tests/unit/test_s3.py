"""What S3 needs no server for: signatures, ETags that are no MD5, and words for operators."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import md5
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from botocore import exceptions
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials, ReadOnlyCredentials
from pydantic import SecretStr

from infra.objects.port import Part, PartMismatch, PartRef
from infra.objects.s3 import (
    S3Misconfigured,
    S3Store,
    S3UrlSigner,
    is_made_of,
    refuse_mismatch,
    unavailable,
)
from infra.settings.adapters import ObjectSettings

NOW = datetime(2026, 11, 22, 12, 0, 0, 700_000, UTC)
KEY = "videos/0b0e5b3e-59a5-4c0b-8f0e-0d6f0f1b2c3d"
UPLOAD = "2~a/b+c=d.e_f-g"
PARTS = [PartRef(n, md5(b"%d" % n).hexdigest()) for n in (1, 2)]
HELD = [Part(part.number, part.etag, 6_000_000) for part in PARTS]
WHOLE = md5(b"".join(bytes.fromhex(part.etag) for part in PARTS)).hexdigest() + "-2"


def store(**place: Any) -> S3Store:
    secret = SecretStr("secret")
    given = {"bucket": "media", "access_key_id": "AKID", "secret_access_key": secret, **place}
    settings = ObjectSettings(URL_TTL_SECONDS=600)
    return S3Store(settings.model_copy(update=given), lambda: NOW)


def query_of(url: str) -> dict[str, str]:
    return {name: texts[0] for name, texts in parse_qs(urlsplit(url).query).items()}


@pytest.mark.parametrize("token", [None, "a session's token/+=="])
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_signature_is_the_one_that_botocore_makes(method: str, token: str | None) -> None:
    query = {"uploadId": UPLOAD, "partNumber": "7", "odd name": "inline; filename*=UTF-8''%C3%A9 ~"}
    headers = {"content-length": "6000000"}
    ours = S3UrlSigner("https://h:9000/media", "eu-west-3").sign(
        method,
        KEY,
        query,
        headers=headers,
        keys=ReadOnlyCredentials("AKID", "secret", token),
        at=NOW,
        ttl=timedelta(minutes=10),
    )
    theirs: Any = AWSRequest(method, f"https://h:9000/media/{KEY}", headers=headers, params=query)
    auth: Any = S3SigV4QueryAuth(
        Credentials("AKID", "secret", token), "s3", "eu-west-3", expires=600
    )
    theirs.context["timestamp"] = "20261122T120000Z"
    auth._modify_request_before_signing(theirs)
    text = auth.string_to_sign(theirs, auth.canonical_request(theirs))
    expected = f"{theirs.url}&X-Amz-Signature={auth.signature(text, theirs)}"
    assert query_of(ours) == query_of(expected)
    assert ours.partition("?")[0] == expected.partition("?")[0]


def test_a_part_url_names_all_that_it_allows() -> None:
    signed = store(endpoint_url="http://s3.internal:9000", region="eu-west-3").part_url(
        KEY, UPLOAD, 7, 6_000_000, "https://not.used"
    )
    assert signed.url.startswith(f"http://s3.internal:9000/media/{KEY}?")
    query = query_of(signed.url)
    assert len(query.pop("X-Amz-Signature")) == 64
    assert query == {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": "AKID/20261122/eu-west-3/s3/aws4_request",
        "X-Amz-Date": "20261122T120000Z",
        "X-Amz-Expires": "600",
        "X-Amz-SignedHeaders": "content-length;host",
        "partNumber": "7",
        "uploadId": UPLOAD,
    }
    assert signed.expires_at == datetime(2026, 11, 22, 12, 10, tzinfo=UTC)


def test_a_play_url_fixes_type_and_name() -> None:
    url = store().get_url(KEY, "video/mp4", 'a/é "x".mp4', "").url
    query = query_of(url)
    assert query["response-content-type"] == "video/mp4"
    assert query["response-content-disposition"] == "inline; filename*=UTF-8''%C3%A9%20%22x%22.mp4"
    odd = query_of(store().get_url(KEY, "text/html; charset=utf-8", "", "").url)
    assert odd["response-content-type"] == "application/octet-stream"
    assert odd["response-content-disposition"] == "attachment; filename*=UTF-8''video"


@pytest.mark.parametrize(
    ("place", "begins"),
    [
        ({"region": "eu-west-3"}, "https://media.s3.eu-west-3.amazonaws.com/videos/"),
        ({"bucket": "me.dia"}, "https://s3.amazonaws.com/me.dia/videos/"),
        ({"endpoint_url": "http://minio:9000"}, "http://minio:9000/media/videos/"),
        (
            {"endpoint_url": "http://minio:9000", "addressing_style": "virtual"},
            "http://media.minio:9000/videos/",
        ),
        (
            {"endpoint_url": "http://minio:9000", "public_endpoint_url": "https://Media.example"},
            "https://media.example/media/videos/",
        ),
        # Clients leave a usual port out of the Host header, and that header is signed.
        ({"endpoint_url": "https://minio:443"}, "https://minio/media/videos/"),
        ({"endpoint_url": "http://[::1]:9000"}, "http://[::1]:9000/media/videos/"),
    ],
)
def test_urls_lead_where_clients_reach_the_bucket(place: dict[str, Any], begins: str) -> None:
    assert store(**place).get_url(KEY, "video/mp4", "a.mp4", "").url.startswith(begins)


def test_without_credentials_nothing_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    nowhere = str(tmp_path_factory.mktemp("home") / "none")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", nowhere)
    monkeypatch.setenv("AWS_CONFIG_FILE", nowhere)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(S3Misconfigured, match="S3_ACCESS_KEY_ID"):
        store(access_key_id=None, secret_access_key=None)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(S3Misconfigured, match="nobody"):
        store()


@pytest.mark.parametrize(
    ("found", "named", "expected"),
    [
        ({"ETag": f'"{WHOLE}"'}, PARTS, True),
        ({"ETag": f'"{WHOLE}"', "ServerSideEncryption": "AES256"}, PARTS, True),
        ({"ETag": f'"{WHOLE}"'}, PARTS[:1], False),
        ({"ETag": f'"{"0" * 32}-2"'}, PARTS, False),
        ({"ETag": f'"{"0" * 32}-2"', "ServerSideEncryption": "AES256"}, PARTS, False),
        ({"ETag": f'"{"0" * 32}-2"', "ServerSideEncryption": "aws:kms"}, PARTS, True),
        ({"ETag": f'"{"0" * 32}-12"', "ServerSideEncryption": "aws:kms:dsse"}, PARTS, False),
        ({"ETag": f'"{"0" * 32}-2"', "SSECustomerAlgorithm": "AES256"}, PARTS, True),
        ({"ETag": '"anything-1"'}, [PartRef(1, "Opaque")], True),
    ],
)
def test_whether_an_object_is_made_of_these_parts(
    found: Any, named: list[PartRef], expected: bool
) -> None:
    assert is_made_of(found, named) is expected


def test_a_refusal_names_what_is_missing_wrong_or_too_small() -> None:
    refuse_mismatch(PARTS, HELD, "InternalError")
    named = [*PARTS, PartRef(3, "0" * 32)]
    with pytest.raises(PartMismatch) as caught:
        refuse_mismatch(named, [HELD[0], Part(2, "other", 6_000_000)], "InvalidPart")
    assert (caught.value.missing, caught.value.wrong) == ((3,), (2,))
    small = [Part(part.number, part.etag, 5) for part in HELD]
    refuse_mismatch(PARTS, small, "InvalidPart")
    with pytest.raises(PartMismatch) as caught:
        refuse_mismatch(PARTS, small, "EntityTooSmall")
    assert (caught.value.missing, caught.value.wrong) == ((), (1,))


def refused(code: str) -> exceptions.ClientError:
    return exceptions.ClientError({"Error": {"Code": code, "Message": "It\nbroke."}}, "HeadBucket")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (refused("404"), "S3_BUCKET"),
        (refused("403"), "credentials"),
        (refused("301"), "S3_REGION"),
        (refused("InvalidAccessKeyId"), "S3_ACCESS_KEY_ID"),
        (refused("SignatureDoesNotMatch"), "S3_SECRET_ACCESS_KEY"),
        (refused("RequestTimeTooSkewed"), "clock"),
        (refused("SlowDown"), "SlowDown"),
        (exceptions.NoCredentialsError(), "S3_ACCESS_KEY_ID"),
        (exceptions.EndpointConnectionError(endpoint_url="x"), "S3_ENDPOINT_URL"),
        (exceptions.ReadTimeoutError(endpoint_url="x"), "S3_ENDPOINT_URL"),
        (exceptions.SSLError(endpoint_url="x", error=OSError("self-signed")), "self-signed"),
    ],
)
def test_an_operator_is_told_what_to_do(error: Exception, told: str) -> None:
    failure = unavailable(error, "media", "http://minio:9000")
    assert failure.cause.startswith("The S3 bucket media at http://minio:9000 can't be used: ")
    assert told in failure.cause
    assert "\n" not in failure.cause
    assert "minio" not in str(failure)
