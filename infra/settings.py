"""Everything that can be configured, read once from the environment.

What differs between the embedded and the production shape is decided from these values alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from infra.errors import UsageError
from infra.setting_types import (
    BareUrl,
    CommaSet,
    HttpUrl,
    anchor_file,
    expanded,
    lock_nodes,
    long_secret,
    lower,
    pem,
    postgres_url,
    redis_address,
)
from infra.settings_analytics import AnalyticsSettings
from infra.settings_recommendations import RecommendationSettings
from infra.settings_translation import TranslationSettings

MIB = 1024 * 1024
# What object stores take: so many parts, of so many bytes at most.
MAX_PARTS = 10_000
MAX_PART_BYTES = 5 * 1024**3
MIN_S3_PART_BYTES = 5 * MIB
MAX_S3_URL_SECONDS = 7 * 24 * 3600
# So many processes may share one replay.
MAX_REPLAY_WORKERS = 32
MAY_HOLD_SECRETS = (
    "DATABASE_URL", "REDIS_URL", "REDLOCK_URLS", "JWT_SECRET", "JWT_PUBLIC_KEY", "S3_ENDPOINT_URL",
    "S3_PUBLIC_ENDPOINT_URL", "TASK_BROKER_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL",
    "KAFKA_SASL_PASSWORD", "TIMESCALE_URL",
)  # fmt: skip
EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - recognised, not bound

JwtAlgorithm = Literal["HS256", "RS256", "ES256"]


class SettingsError(UsageError):
    """A setting that is present but wrong; the text names its environment variable."""


class Role(StrEnum):
    """A part of Backlot that a process can run."""

    COMMANDS = "commands"
    QUERIES = "queries"
    PROJECTIONS = "projections"
    WORKERS = "workers"
    RELAY = "relay"
    CONSUMERS = "consumers"
    TASKS = "tasks"


def _some_roles(value: frozenset[Role]) -> frozenset[Role]:
    if not value:
        raise ValueError(f"name at least one of {', '.join(Role)}")
    return value


class Settings(TranslationSettings, AnalyticsSettings, RecommendationSettings):
    """One process's configuration; ``.env.example`` documents each variable.

    An unset service means its embedded part: no ``DATABASE_URL`` starts PostgreSQL in the data
    folder, no ``JWT_*`` key makes a local secret there.
    """

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    host: str = Field(default="127.0.0.1", alias="BACKLOT_HOST")
    port: int = Field(default=8000, alias="BACKLOT_PORT", ge=1, le=65535)
    data_dir: Annotated[Path, AfterValidator(Path.expanduser)] = Field(
        default=Path(".backlot"), alias="BACKLOT_DATA_DIR"
    )
    configured_public_url: HttpUrl = Field(default=None, alias="BACKLOT_PUBLIC_URL")
    roles: Annotated[frozenset[Role], NoDecode, CommaSet, AfterValidator(_some_roles)] = Field(
        default=frozenset(Role), alias="BACKLOT_ROLES"
    )

    database_url: Annotated[SecretStr | None, AfterValidator(postgres_url)] = Field(
        default=None, alias="DATABASE_URL"
    )
    database_connect_seconds: int = Field(default=3, alias="DATABASE_CONNECT_SECONDS", ge=2, le=60)
    database_pool_seconds: PositiveFloat = Field(default=4.0, alias="DATABASE_POOL_SECONDS", le=60)
    database_statement_seconds: PositiveFloat = Field(
        default=3.0, alias="DATABASE_STATEMENT_SECONDS", le=300
    )
    redis_url: Annotated[SecretStr | None, AfterValidator(redis_address)] = Field(
        default=None, alias="REDIS_URL"
    )
    redlock_urls: Annotated[
        tuple[SecretStr, ...], NoDecode, CommaSet, AfterValidator(lock_nodes)
    ] = Field(default=(), alias="REDLOCK_URLS")

    s3_bucket: str | None = Field(
        default=None, alias="S3_BUCKET", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{1,254}$"
    )
    s3_endpoint_url: BareUrl = Field(default=None, alias="S3_ENDPOINT_URL")
    s3_public_endpoint_url: BareUrl = Field(default=None, alias="S3_PUBLIC_ENDPOINT_URL")
    s3_region: str | None = Field(default=None, alias="S3_REGION", pattern=r"^[a-z0-9-]{1,64}$")
    s3_access_key_id: str | None = Field(default=None, alias="S3_ACCESS_KEY_ID")
    s3_secret_access_key: SecretStr | None = Field(default=None, alias="S3_SECRET_ACCESS_KEY")
    s3_addressing_style: Annotated[Literal["auto", "path", "virtual"], BeforeValidator(lower)] = (
        Field(default="auto", alias="S3_ADDRESSING_STYLE")
    )

    jwt_secret: Annotated[SecretStr | None, AfterValidator(long_secret)] = Field(
        default=None, alias="JWT_SECRET"
    )
    jwt_public_key: Annotated[str | None, AfterValidator(pem)] = Field(
        default=None, alias="JWT_PUBLIC_KEY"
    )
    jwt_jwks_url: HttpUrl = Field(default=None, alias="JWT_JWKS_URL")
    jwt_issuer: str | None = Field(default=None, alias="JWT_ISSUER")
    jwt_audience: str | None = Field(default=None, alias="JWT_AUDIENCE")
    configured_jwt_algorithms: Annotated[frozenset[JwtAlgorithm], NoDecode, CommaSet] = Field(
        default=frozenset(), alias="JWT_ALGORITHMS"
    )

    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(lower)] = (
        Field(default="info", alias="LOG_LEVEL")
    )
    log_format: Annotated[Literal["auto", "json", "console"], BeforeValidator(lower)] = Field(
        default="auto", alias="LOG_FORMAT"
    )

    part_size_bytes: int = Field(
        default=8 * MIB, alias="PART_SIZE_BYTES", ge=1024, le=5 * 1024 * MIB
    )
    max_upload_bytes: int = Field(
        default=64 * 1024 * MIB, alias="MAX_UPLOAD_BYTES", ge=1, le=MAX_PARTS * MAX_PART_BYTES
    )
    body_limit_bytes: int = Field(default=MIB, alias="BODY_LIMIT_BYTES", ge=1024)
    url_ttl_seconds: PositiveInt = Field(default=3600, alias="URL_TTL_SECONDS")
    upload_idle_days: PositiveFloat = Field(default=7.0, alias="UPLOAD_IDLE_DAYS", le=3650)
    expiry_interval_seconds: PositiveFloat = Field(default=3600.0, alias="EXPIRY_INTERVAL_SECONDS")
    finalize_lock_seconds: float = Field(
        default=60.0, alias="FINALIZE_LOCK_SECONDS", ge=0.1, le=3600
    )
    finalize_wait_seconds: float = Field(default=2.0, alias="FINALIZE_WAIT_SECONDS", ge=0, le=60)

    like_counter_ttl_seconds: PositiveInt = Field(default=3600, alias="LIKE_COUNTER_TTL_SECONDS")
    like_reconcile_seconds: PositiveFloat = Field(default=300.0, alias="LIKE_RECONCILE_SECONDS")

    command_batch_max: PositiveInt = Field(default=256, alias="COMMAND_BATCH_MAX")
    command_queue_max: PositiveInt = Field(default=10_000, alias="COMMAND_QUEUE_MAX")
    command_retries: int = Field(default=5, alias="COMMAND_RETRIES", ge=0)
    idempotency_ttl_hours: PositiveInt = Field(default=24, alias="IDEMPOTENCY_TTL_HOURS")

    projection_batch_events: PositiveInt = Field(default=5000, alias="PROJECTION_BATCH_EVENTS")
    projection_poll_seconds: PositiveFloat = Field(default=1.0, alias="PROJECTION_POLL_SECONDS")
    projection_auto_replay: bool = Field(default=True, alias="PROJECTION_AUTO_REPLAY")

    seal_block_events: int = Field(default=1000, alias="SEAL_BLOCK_EVENTS", ge=1, le=10_000)
    seal_seconds: PositiveFloat = Field(default=5.0, alias="SEAL_SECONDS", le=3600)
    seal_key_file: Annotated[Path | None, AfterValidator(expanded)] = Field(
        default=None, alias="SEAL_KEY_FILE"
    )
    seal_public_key_file: Annotated[Path | None, AfterValidator(expanded)] = Field(
        default=None, alias="SEAL_PUBLIC_KEY_FILE"
    )
    seal_anchor: Annotated[Path | None, BeforeValidator(anchor_file)] = Field(
        default=None, alias="SEAL_ANCHOR"
    )

    @property
    def public_url(self) -> str:
        """Where clients reach Backlot, without a trailing slash; part URLs start with it."""
        if self.configured_public_url is not None:
            return self.configured_public_url
        return self.local_url

    @property
    def local_url(self) -> str:
        """Where this machine reaches Backlot, whatever proxy stands before it."""
        host = "127.0.0.1" if self.host in EVERY_ADDRESS else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def embedded_database(self) -> bool:
        """Whether Backlot starts its own PostgreSQL in the data folder."""
        return self.database_url is None

    @property
    def local_auth(self) -> bool:
        """Whether tokens are signed with a secret that Backlot keeps in the data folder."""
        return self.jwt_secret is None and self.jwt_public_key is None and self.jwt_jwks_url is None

    @property
    def jwt_algorithms(self) -> frozenset[JwtAlgorithm]:
        """What a token may be signed with; never a secret's and a key's algorithms together."""
        return self.configured_jwt_algorithms or self._possible_algorithms()

    def _possible_algorithms(self) -> frozenset[JwtAlgorithm]:
        if self.jwt_public_key is None and self.jwt_jwks_url is None:
            return frozenset({"HS256"})
        return frozenset({"RS256", "ES256"})

    @model_validator(mode="after")
    def _whole_sasl(self) -> Self:
        given = (self.kafka_sasl_username is None) + (self.kafka_sasl_password is None)
        if given == 1 or (given == 2 and self.kafka_security_protocol.startswith("SASL")):
            raise ValueError("KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD: set both for SASL")
        return self

    @model_validator(mode="after")
    def _whole_s3(self) -> Self:
        key, secret = self.s3_access_key_id, self.s3_secret_access_key
        if (key is None) != (secret is None):
            raise ValueError("S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY: set both or neither")
        urls = self.s3_endpoint_url, self.s3_public_endpoint_url
        if self.s3_bucket is None and any((key, *urls)):
            raise ValueError("S3_BUCKET: set it too when another S3_* variable is set")
        return self

    @model_validator(mode="after")
    def _within_limits_of_s3(self) -> Self:
        if self.s3_bucket is not None and self.part_size_bytes < MIN_S3_PART_BYTES:
            told = f"S3 takes parts of at least {MIN_S3_PART_BYTES} bytes"
            raise ValueError(f"PART_SIZE_BYTES: {told} (got {self.part_size_bytes})")
        if self.s3_bucket is not None and self.url_ttl_seconds > MAX_S3_URL_SECONDS:
            told = f"URLs of S3 work for at most {MAX_S3_URL_SECONDS} seconds"
            raise ValueError(f"URL_TTL_SECONDS: {told} (got {self.url_ttl_seconds})")
        return self

    @model_validator(mode="after")
    def _one_way_to_verify(self) -> Self:
        ways = {
            "JWT_SECRET": self.jwt_secret,
            "JWT_PUBLIC_KEY": self.jwt_public_key,
            "JWT_JWKS_URL": self.jwt_jwks_url,
        }
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: set only one of them")
        impossible = self.configured_jwt_algorithms - self._possible_algorithms()
        if impossible:
            how = given[0] if given else "the local secret"
            raise ValueError(
                f"JWT_ALGORITHMS: {', '.join(sorted(impossible))} needs another key than {how}"
            )
        return self


class _GivenSettings(Settings):
    """Settings from exactly the values given, whatever the process's environment holds."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def load_settings(env: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from ``env``, or from the environment and ``.env`` when it is None.

    Raises SettingsError with one line that names each wrong variable; secrets are not repeated.
    """
    try:
        if env is None:
            return Settings()
        given: dict[str, Any] = {name: value for name, value in env.items() if value != ""}
        return _GivenSettings(**given)
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(item) for item in error.errors())) from None


def _explain(item: ErrorDetails) -> str:
    message = item["msg"].removeprefix("Value error, ")
    if not item["loc"]:
        return message
    name = str(item["loc"][0])
    message = message[:1].lower() + message[1:]
    secret = name in MAY_HOLD_SECRETS
    return f"{name}: {message}" + ("" if secret else f" (got {item['input']!r})")
