"""Whether pages of other origins may use the bucket's signed URLs, and the rule that lets them.

The store answers there itself, so that CORS_ORIGINS alone does not reach it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import structlog

from infra.http.cors import ANY, MAX_AGE_SECONDS
from infra.objects.s3 import S3Error, S3Session, code_of, unavailable
from infra.settings.adapters import ObjectSettings

if TYPE_CHECKING:
    from types_boto3_s3.type_defs import CORSRuleOutputTypeDef

log = structlog.get_logger(__name__)

METHODS, TAG, SENT = ("GET", "HEAD", "PUT"), "ETag", "content-type"
# In place of any: of a name that nobody can have (RFC 2606).
SOME_ORIGIN = "https://some.invalid"
SECONDS = 2.0


class BucketCors(NamedTuple):
    """Whether pages may use the bucket, None where that is not known; what an operator is told."""

    admits: bool | None
    detail: str


def look_at_cors(settings: ObjectSettings, origins: Collection[str]) -> BucketCors:
    """Ask the bucket for its rules, and where these don't do, ask as a browser would.

    The latter since a proxy may answer in place of the store. Raise S3Misconfigured.
    """
    session = S3Session(settings)
    client = session.client(settings.endpoint_url, connect=SECONDS, read=SECONDS, attempts=1)
    unknown = None
    rules: Sequence[CORSRuleOutputTypeDef] = ()
    try:
        rules = client.get_bucket_cors(Bucket=session.bucket)["CORSRules"]
    except S3Error as error:
        if code_of(error) != "NoSuchCORSConfiguration":
            unknown = unavailable(error, session.bucket, client.meta.endpoint_url).cause
    lacking = sorted(origin for origin in origins if not _is_let(origin, rules))
    if not lacking:
        return BucketCors(True, "pages of CORS_ORIGINS may use the bucket")
    url = f"{session.bucket_url(public=True)}/videos/some"
    if all(_is_answered(url, origin) for origin in lacking):
        return BucketCors(True, "what stands before the bucket answers pages of CORS_ORIGINS")
    told = f"pages of {', '.join(lacking)} can't use the bucket; give it this rule: {rule(origins)}"
    return (
        BucketCors(False, told) if unknown is None else BucketCors(None, f"{unknown} Else {told}")
    )


def warn_of_cors(settings: ObjectSettings, origins: Collection[str]) -> None:
    """Warn where pages of other origins may use the APIs, and not the bucket."""
    found = look_at_cors(settings, origins)
    if not found.admits:
        log.warning("s3_cors_lacking", detail=found.detail)


def rule(origins: Collection[str]) -> str:
    """Return the configuration that a bucket needs, as `aws s3api put-bucket-cors` takes it."""
    fields = {
        "AllowedOrigins": sorted(origins),
        "AllowedMethods": METHODS,
        "AllowedHeaders": ["*"],
        "ExposeHeaders": [TAG, "Accept-Ranges", "Content-Range"],
        "MaxAgeSeconds": MAX_AGE_SECONDS,
    }
    return json.dumps({"CORSRules": [fields]})


def _is_let(origin: str, rules: Sequence[CORSRuleOutputTypeDef]) -> bool:
    """Return whether a page may send parts and read their ETags, and play."""
    fitting = [each for each in rules if _matches(origin, each["AllowedOrigins"])]
    reads = any("GET" in each["AllowedMethods"] for each in fitting)
    return reads and any(_takes_parts(each) for each in fitting)


def _takes_parts(given: CORSRuleOutputTypeDef) -> bool:
    exposed = {name.lower() for name in given.get("ExposeHeaders", ())}
    sends = _matches(SENT, given.get("AllowedHeaders", ()))
    return "PUT" in given["AllowedMethods"] and TAG.lower() in exposed and sends


def _matches(text: str, patterns: Sequence[str]) -> bool:
    """Return whether one of the patterns of S3 fits, in which `*` stands for anything."""
    fits = (re.escape(pattern).replace(r"\*", ".*") for pattern in patterns)
    return any(re.fullmatch(each, text, re.IGNORECASE) for each in fits)


def _is_answered(url: str, origin: str) -> bool:
    """Return whether a browser that asks before it sends a part is told that it may."""
    asked = SOME_ORIGIN if origin == ANY else origin
    wanted = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": SENT}
    options: dict[str, Any] = {"timeout": SECONDS, "trust_env": False}
    try:
        answer = httpx.options(url, headers={"Origin": asked, **wanted}, **options)
    except httpx.HTTPError:
        return False
    methods = answer.headers.get("access-control-allow-methods", "").split(",")
    admitted = answer.headers.get("access-control-allow-origin") in (ANY, asked)
    return answer.is_success and admitted and "PUT" in map(str.strip, methods)
