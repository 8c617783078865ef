"""Settings of what the program stands on: databases, objects, tokens, logs, brokers, models."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr, model_validator

from infra.settings.values import (
    BareUrl,
    BrokerUrl,
    CommaSet,
    HttpUrl,
    LockNodes,
    Lower,
    PostgresUrl,
    Prices,
    PublicKey,
    RedisUrl,
    Secret,
    Servers,
    SettingsGroup,
)

MAX_S3_URL_SECONDS = 7 * 24 * 3600

JwtAlgorithm = Literal["HS256", "RS256", "ES256"]


class DatabaseSettings(SettingsGroup):
    """The PostgreSQL of the event log and the read models; without a URL it is embedded."""

    url: PostgresUrl = Field(default=None, alias="DATABASE_URL")
    connect_seconds: int = Field(default=3, alias="DATABASE_CONNECT_SECONDS", ge=2, le=60)
    pool_seconds: PositiveFloat = Field(default=4.0, alias="DATABASE_POOL_SECONDS", le=60)
    statement_seconds: PositiveFloat = Field(
        default=3.0, alias="DATABASE_STATEMENT_SECONDS", le=300
    )

    @property
    def embedded(self) -> bool:
        """Whether Backlot starts its own PostgreSQL in the data folder."""
        return self.url is None


class RedisSettings(SettingsGroup):
    """The Redis that processes share, and the servers that keep locks."""

    url: RedisUrl = Field(default=None, alias="REDIS_URL")
    lock_urls: LockNodes = Field(default=(), alias="REDLOCK_URLS")


class ObjectSettings(SettingsGroup):
    """The bucket of media objects; without one they lie in the data folder."""

    bucket: str | None = Field(
        default=None, alias="S3_BUCKET", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{1,254}$"
    )
    endpoint_url: BareUrl = Field(default=None, alias="S3_ENDPOINT_URL")
    public_endpoint_url: BareUrl = Field(default=None, alias="S3_PUBLIC_ENDPOINT_URL")
    region: str | None = Field(default=None, alias="S3_REGION", pattern=r"^[a-z0-9-]{1,64}$")
    access_key_id: str | None = Field(default=None, alias="S3_ACCESS_KEY_ID")
    secret_access_key: SecretStr | None = Field(default=None, alias="S3_SECRET_ACCESS_KEY")
    addressing_style: Annotated[Literal["auto", "path", "virtual"], Lower] = Field(
        default="auto", alias="S3_ADDRESSING_STYLE"
    )
    url_ttl_seconds: PositiveInt = Field(default=3600, alias="URL_TTL_SECONDS")

    @property
    def url_ttl(self) -> timedelta:
        """How long a signed URL works."""
        return timedelta(seconds=self.url_ttl_seconds)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        key, secret = self.access_key_id, self.secret_access_key
        if (key is None) != (secret is None):
            raise ValueError("S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY: set both or neither")
        if self.bucket is None and any((key, self.endpoint_url, self.public_endpoint_url)):
            raise ValueError("S3_BUCKET: set it too when another S3_* variable is set")
        return self

    @model_validator(mode="after")
    def _within_limits_of_s3(self) -> Self:
        if self.bucket is not None and self.url_ttl_seconds > MAX_S3_URL_SECONDS:
            told = f"URLs of S3 work for at most {MAX_S3_URL_SECONDS} seconds"
            raise ValueError(f"URL_TTL_SECONDS: {told} (got {self.url_ttl_seconds})")
        return self


class AuthSettings(SettingsGroup):
    """What verifies tokens; without any key, a secret that Backlot keeps in the data folder."""

    secret: Secret = Field(default=None, alias="JWT_SECRET")
    public_key: PublicKey = Field(default=None, alias="JWT_PUBLIC_KEY")
    jwks_url: HttpUrl = Field(default=None, alias="JWT_JWKS_URL")
    issuer: str | None = Field(default=None, alias="JWT_ISSUER")
    audience: str | None = Field(default=None, alias="JWT_AUDIENCE")
    configured_algorithms: Annotated[frozenset[JwtAlgorithm], CommaSet] = Field(
        default=frozenset(), alias="JWT_ALGORITHMS"
    )

    @property
    def local(self) -> bool:
        """Whether tokens are signed with a secret that Backlot keeps in the data folder."""
        return self.secret is None and self.public_key is None and self.jwks_url is None

    @property
    def algorithms(self) -> frozenset[JwtAlgorithm]:
        """What a token may be signed with; never a secret's and a key's algorithms together."""
        return self.configured_algorithms or self._possible_algorithms()

    def _possible_algorithms(self) -> frozenset[JwtAlgorithm]:
        if self.public_key is None and self.jwks_url is None:
            return frozenset({"HS256"})
        return frozenset({"RS256", "ES256"})

    @model_validator(mode="after")
    def _one_way_to_verify(self) -> Self:
        ways = {
            "JWT_SECRET": self.secret,
            "JWT_PUBLIC_KEY": self.public_key,
            "JWT_JWKS_URL": self.jwks_url,
        }
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: set only one of them")
        impossible = self.configured_algorithms - self._possible_algorithms()
        if impossible:
            how = given[0] if given else "the local secret"
            raise ValueError(
                f"JWT_ALGORITHMS: {', '.join(sorted(impossible))} needs another key than {how}"
            )
        return self


class LogSettings(SettingsGroup):
    """Which lines are logged, and in what form."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Lower] = Field(
        default="info", alias="LOG_LEVEL"
    )
    format: Annotated[Literal["auto", "json", "console"], Lower] = Field(
        default="auto", alias="LOG_FORMAT"
    )


class KafkaSettings(SettingsGroup):
    """The brokers, and how many events the relay publishes at once."""

    bootstrap_servers: Servers = Field(default=(), alias="KAFKA_BOOTSTRAP_SERVERS")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", alias="KAFKA_SECURITY_PROTOCOL"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="PLAIN", alias="KAFKA_SASL_MECHANISM"
    )
    sasl_username: str | None = Field(default=None, alias="KAFKA_SASL_USERNAME")
    sasl_password: SecretStr | None = Field(default=None, alias="KAFKA_SASL_PASSWORD")
    relay_batch_events: PositiveInt = Field(default=1000, alias="RELAY_BATCH_EVENTS")

    @model_validator(mode="after")
    def _whole_sasl(self) -> Self:
        given = (self.sasl_username is None) + (self.sasl_password is None)
        if given == 1 or (given == 2 and self.security_protocol.startswith("SASL")):
            raise ValueError("KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD: set both for SASL")
        return self

    @property
    def configured(self) -> bool:
        """Whether there is a Kafka."""
        return bool(self.bootstrap_servers)


class TaskSettings(SettingsGroup):
    """The broker of background tasks, and how they are run and tried again."""

    own_broker_url: BrokerUrl = Field(default=None, alias="TASK_BROKER_URL")
    redis_url: RedisUrl = Field(default=None, alias="REDIS_URL")
    threads: PositiveInt = Field(default=8, alias="TASK_THREADS", le=1000)
    max_retries: int = Field(default=5, alias="TASK_MAX_RETRIES", ge=0)
    min_backoff_seconds: PositiveFloat = Field(default=1.0, alias="TASK_MIN_BACKOFF_SECONDS")
    max_backoff_seconds: PositiveFloat = Field(default=300.0, alias="TASK_MAX_BACKOFF_SECONDS")
    time_limit_seconds: PositiveFloat = Field(default=120.0, alias="TASK_TIME_LIMIT_SECONDS")
    stop_seconds: PositiveFloat = Field(default=20.0, alias="TASK_STOP_SECONDS")
    heartbeat_seconds: PositiveFloat = Field(default=60.0, alias="TASK_HEARTBEAT_SECONDS", ge=2)

    @property
    def broker_url(self) -> SecretStr | None:
        """The broker's server; None for the one inside this process."""
        return self.own_broker_url or self.redis_url


class LanguageModelSettings(SettingsGroup):
    """The provider of language models, and how often and how long it is asked."""

    api_key: SecretStr | None = Field(default=None, alias="OPENAI_API_KEY")
    base_url: HttpUrl = Field(default=None, alias="OPENAI_BASE_URL")
    timeout_seconds: PositiveFloat = Field(default=30.0, alias="LLM_TIMEOUT_SECONDS")
    calls_per_minute: PositiveInt = Field(default=600, alias="LLM_CALLS_PER_MINUTE")
    breaker_failures: PositiveInt = Field(default=5, alias="LLM_BREAKER_FAILURES")
    breaker_seconds: PositiveFloat = Field(default=30.0, alias="LLM_BREAKER_SECONDS")
    prices: Prices = Field(default={}, alias="LLM_PRICES")

    @property
    def configured(self) -> bool:
        """Whether a language model can be called: a key, or a server that may need none."""
        return self.api_key is not None or self.base_url is not None


class EmbeddingSettings(SettingsGroup):
    """The model that places texts of videos by their meaning."""

    model: str | None = Field(default=None, alias="EMBEDDING_MODEL", min_length=1)
    dimensions: PositiveInt = Field(default=512, alias="EMBEDDING_DIMENSIONS", le=2000)


class SpeechSettings(SettingsGroup):
    """Whether speech is transcribed, and by which model."""

    transcription: Annotated[Literal["auto", "on", "off"], Lower] = Field(
        default="auto", alias="SPEECH_TRANSCRIPTION"
    )
    whisper_model: str = Field(default="base", alias="WHISPER_MODEL", min_length=1)
