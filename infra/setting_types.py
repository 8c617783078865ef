"""What the values of settings may look like: each check says what is wrong in a few words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, BeforeValidator, SecretStr

MIN_SECRET_BYTES = 32


def split_commas(value: object) -> object:
    if isinstance(value, str):
        return [part for part in (word.strip() for word in value.split(",")) if part]
    return value


def lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def postgres_url(value: SecretStr | None) -> SecretStr | None:
    if value is None:
        return None
    if not value.get_secret_value().startswith(("postgresql://", "postgres://")):
        raise ValueError("must start with postgresql:// or postgres://")
    try:
        conninfo_to_dict(value.get_secret_value())
    except ProgrammingError:
        # libpq's own message may repeat the password.
        raise ValueError("is not a PostgreSQL URL that libpq can read") from None
    return value


def redis_address(value: SecretStr | None) -> SecretStr | None:
    if value is not None:
        # Slow to import, and not needed where no Redis is configured.
        from infra.redis import check_redis_url

        check_redis_url(value.get_secret_value())
    return value


def lock_nodes(urls: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    from infra.redis import server_of

    for url in urls:
        redis_address(url)
    servers = [server_of(url.get_secret_value()) for url in urls]
    twice = sorted({server for server in servers if servers.count(server) > 1})
    if twice:
        raise ValueError(f"names {', '.join(twice)} twice: each node is a server of its own")
    return urls


def long_secret(value: SecretStr | None) -> SecretStr | None:
    if value is not None and len(value.get_secret_value().encode()) < MIN_SECRET_BYTES:
        raise ValueError(f"must be at least {MIN_SECRET_BYTES} bytes long (RFC 7518, section 3.2)")
    return value


def pem(value: str | None) -> str | None:
    # Environment files hold one line per variable, so line breaks arrive as a backslash and an n.
    if value is None:
        return None
    value = value.replace("\\n", "\n").strip() + "\n"
    if not value.startswith("-----BEGIN PUBLIC KEY-----"):
        raise ValueError("must be a PEM text that starts with -----BEGIN PUBLIC KEY-----")
    return value


def http_url(value: str | None) -> str | None:
    if value is None:
        return None
    if not value.startswith(("http://", "https://")):
        raise ValueError("must start with http:// or https://")
    return value.rstrip("/")


def bare_url(value: str | None) -> str | None:
    if value is None:
        return None
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError("must be http:// or https:// with a host, and a port if need be")
    if parts.username is not None or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("must hold no user, path or query; the bucket is S3_BUCKET")
    return value.rstrip("/")


def expanded(value: Path | None) -> Path | None:
    return value if value is None else value.expanduser()


def anchor_file(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not value.startswith("file:") or value == "file:":
        raise ValueError("must be file: and the path of the file, such as file:/mnt/seals.jsonl")
    return Path(value.removeprefix("file:")).expanduser()


CommaSet = BeforeValidator(split_commas)
BareUrl = Annotated[str | None, AfterValidator(bare_url)]
HttpUrl = Annotated[str | None, AfterValidator(http_url)]
