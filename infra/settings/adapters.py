"""Settings of what the program stands on: databases, objects, tokens, logs, brokers, models."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr, model_validator

from infra.settings.values import (
    BareUrl,
    BrokerUrl,
    CommaSet,
    EncryptionKey,
    HttpUrl,
    HttpUrls,
    Listen,
    LockNodes,
    Lower,
    Origins,
    PostgresUrl,
    Prices,
    PublicKey,
    RedisUrl,
    Secret,
    Servers,
    SettingsGroup,
    UserPath,
    variables,
)

MAX_S3_URL_SECONDS = 7 * 24 * 3600
MAX_TOKEN_SECONDS = 366 * 24 * 3600

JwtAlgorithm = Literal["HS256", "RS256", "ES256"]


class DatabaseSettings(SettingsGroup, alias_generator=variables("DATABASE_")):
    """The PostgreSQL of the event log and the read models; without a URL it is embedded.

    `owner_url` is the same database for the user who makes the log's tables; without it, the user
    of `url` makes them. `listen` is where the embedded one listens beside its private socket.
    """

    url: PostgresUrl = None
    owner_url: PostgresUrl = None
    listen: Listen = None
    connect_seconds: int = Field(default=3, ge=2, le=60)
    pool_seconds: PositiveFloat = Field(default=4.0, le=60)
    statement_seconds: PositiveFloat = Field(default=3.0, le=300)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.owner_url is not None and self.url is None:
            raise ValueError("DATABASE_URL: set it too when DATABASE_OWNER_URL is set")
        if self.listen is not None and self.url is not None:
            raise ValueError("DATABASE_LISTEN: the database of DATABASE_URL listens by itself")
        return self

    @property
    def embedded(self) -> bool:
        """Whether Backlot starts its own PostgreSQL in the data folder."""
        return self.url is None


class RedisTrust(SettingsGroup, alias_generator=variables("REDIS_")):
    """Who vouches for every Redis at a `rediss://` URL, and as whom this program shows itself."""

    ca_file: UserPath | None = None
    cert_file: UserPath | None = None
    key_file: UserPath | None = None

    @model_validator(mode="after")
    def _whole_certificate(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("REDIS_CERT_FILE and REDIS_KEY_FILE: set both or neither")
        return self

    def trusting(self, url: SecretStr) -> SecretStr:
        """Return the URL with these files in it, as redis-py reads them; its own words stand."""
        text = url.get_secret_value()
        if not text.startswith("rediss://"):
            return url
        files = {
            "ssl_ca_certs": self.ca_file,
            "ssl_certfile": self.cert_file,
            "ssl_keyfile": self.key_file,
        }
        parts = urlsplit(text)
        said = parse_qsl(parts.query, keep_blank_values=True)
        told = {name: str(path) for name, path in files.items() if path is not None}
        return SecretStr(urlunsplit(parts._replace(query=urlencode({**told, **dict(said)}))))


class RedisSettings(RedisTrust):
    """The Redis that processes share, and the servers that keep locks."""

    configured_url: RedisUrl = Field(default=None, alias="REDIS_URL")
    configured_lock_urls: LockNodes = Field(default=(), alias="REDLOCK_URLS")

    @property
    def url(self) -> SecretStr | None:
        """The server; None for the one inside this process."""
        return None if self.configured_url is None else self.trusting(self.configured_url)

    @property
    def lock_urls(self) -> tuple[SecretStr, ...]:
        """The servers that keep locks; none where the shared one does."""
        return tuple(map(self.trusting, self.configured_lock_urls))


class ObjectSettings(SettingsGroup, alias_generator=variables("S3_")):
    """The bucket of media objects; without one they lie in the data folder."""

    bucket: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{1,254}$")
    endpoint_url: BareUrl = None
    public_endpoint_url: BareUrl = None
    region: str | None = Field(default=None, pattern=r"^[a-z0-9-]{1,64}$")
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None
    addressing_style: Annotated[Literal["auto", "path", "virtual"], Lower] = "auto"
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
        if self.bucket is not None and self.url_ttl_seconds > MAX_S3_URL_SECONDS:
            told = f"URLs of S3 work for at most {MAX_S3_URL_SECONDS} seconds"
            raise ValueError(f"URL_TTL_SECONDS: {told} (got {self.url_ttl_seconds})")
        return self


class KeySettings(SettingsGroup, alias_generator=str.upper):
    """What wraps the keys of persons: a key, one in Vault, or one in KMS.

    Without any of them, a key that Backlot keeps in the data folder. Vault's other variables belong
    to every program that speaks with it, so that these alone choose nothing.
    """

    key_encryption_key: EncryptionKey = None
    vault_transit_key: str | None = Field(default=None, pattern=r"^[\w.-]+(/[\w.-]+)*$")
    vault_addr: HttpUrl = None
    vault_token: SecretStr | None = None
    vault_namespace: str | None = None
    vault_cacert: UserPath | None = None
    kms_key_id: str | None = Field(default=None, min_length=1, max_length=2048)
    kms_region: str | None = Field(default=None, pattern=r"^[a-z0-9-]{1,64}$")
    kms_endpoint_url: HttpUrl = None

    @classmethod
    def variable(cls, field: str) -> str:
        """Return how a field is called in the environment."""
        return str(cls.model_fields[field].alias)

    @property
    def chosen(self) -> bool:
        """Whether there is another key than the one in the data folder."""
        return bool(self._ways())

    def _ways(self) -> list[str]:
        ways = ("key_encryption_key", "vault_transit_key", "kms_key_id")
        return [self.variable(way) for way in ways if getattr(self, way) is not None]

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if len(ways := self._ways()) > 1:
            raise ValueError(f"{' and '.join(ways)}: set only one of them")
        address, token = self.variable("vault_addr"), self.variable("vault_token")
        if self.vault_transit_key is not None and None in (self.vault_addr, self.vault_token):
            transit = self.variable("vault_transit_key")
            raise ValueError(f"{address} and {token}: set both too when {transit} is set")
        if self.kms_key_id is None and (self.kms_region or self.kms_endpoint_url):
            key, region = self.variable("kms_key_id"), self.variable("kms_region")
            raise ValueError(f"{key}: set it too when {region} or its endpoint's URL is set")
        return self


class FormerKeySettings(KeySettings, alias_generator=variables("OLD_")):
    """What wrapped them before, for `backlot keys rewrap` alone."""


class AuthSettings(SettingsGroup, alias_generator=variables("JWT_")):
    """What verifies tokens; without any key, a secret that Backlot keeps in the data folder."""

    secret: Secret = None
    public_key: PublicKey = None
    jwks_url: HttpUrl = None
    issuer: str | None = None
    audience: str | None = None
    configured_algorithms: Annotated[frozenset[JwtAlgorithm], CommaSet] = Field(
        default=frozenset(), alias="JWT_ALGORITHMS"
    )
    max_lifetime_seconds: int = Field(default=604_800, ge=60, le=MAX_TOKEN_SECONDS)

    @property
    def max_lifetime(self) -> timedelta:
        """For how long a token may be valid; revocations are kept for as long."""
        return timedelta(seconds=self.max_lifetime_seconds)

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
        if self.jwks_url is not None and self.audience is None:
            raise ValueError(
                "JWT_AUDIENCE: set it too with JWT_JWKS_URL, to what your identity provider puts "
                "into `aud` for Backlot; without it, tokens for any other program would be taken"
            )
        impossible = self.configured_algorithms - self._possible_algorithms()
        if impossible:
            how = given[0] if given else "the local secret"
            raise ValueError(
                f"JWT_ALGORITHMS: {', '.join(sorted(impossible))} needs another key than {how}"
            )
        return self


class CorsSettings(SettingsGroup, alias_generator=variables("CORS_")):
    """The pages of other origins that may use the APIs in a browser; by default none."""

    origins: Origins = frozenset()
    allows_credentials: Annotated[Literal["on", "off"], Lower] = Field(
        default="off", alias="CORS_CREDENTIALS"
    )

    @property
    def credentials(self) -> bool:
        """Whether browsers send cookies and the like, for a proxy that asks for them."""
        return self.allows_credentials == "on"

    @model_validator(mode="after")
    def _credentials_for_known_origins(self) -> Self:
        if self.credentials and "*" in self.origins:
            raise ValueError("CORS_CREDENTIALS: name the origins in CORS_ORIGINS, * takes none")
        return self


class LogSettings(SettingsGroup, alias_generator=variables("LOG_")):
    """Which lines are logged, and in what form."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Lower] = "info"
    format: Annotated[Literal["auto", "json", "console"], Lower] = "auto"


class KafkaSettings(SettingsGroup, alias_generator=variables("KAFKA_")):
    """The brokers, how many events are published at once, and how long texts stay in topics."""

    bootstrap_servers: Servers = ()
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_ca_file: UserPath | None = None
    ssl_cert_file: UserPath | None = None
    ssl_key_file: UserPath | None = None
    ssl_key_password: SecretStr | None = None
    relay_batch_events: PositiveInt = Field(default=1000, alias="RELAY_BATCH_EVENTS")
    text_retention_days: PositiveInt = Field(default=7, le=36_500)

    @model_validator(mode="after")
    def _whole_sasl(self) -> Self:
        given = (self.sasl_username is None) + (self.sasl_password is None)
        if given == 1 or (given == 2 and self.security_protocol.startswith("SASL")):
            raise ValueError("KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD: set both for SASL")
        return self

    @model_validator(mode="after")
    def _whole_tls(self) -> Self:
        if (self.ssl_cert_file is None) != (self.ssl_key_file is None):
            raise ValueError("KAFKA_SSL_CERT_FILE and KAFKA_SSL_KEY_FILE: set both or neither")
        if self.ssl_key_password is not None and self.ssl_key_file is None:
            raise ValueError("KAFKA_SSL_KEY_FILE: set it too when KAFKA_SSL_KEY_PASSWORD is set")
        if any((self.ssl_ca_file, self.ssl_cert_file)) and not self.encrypted:
            raise ValueError("KAFKA_SECURITY_PROTOCOL: SSL or SASL_SSL, for KAFKA_SSL_* to be used")
        return self

    @property
    def encrypted(self) -> bool:
        """Whether brokers are spoken to over TLS."""
        return self.security_protocol.endswith("SSL")

    @property
    def text_retention(self) -> timedelta:
        """How long topics keep texts, and a day more at most."""
        return timedelta(days=self.text_retention_days)

    @property
    def configured(self) -> bool:
        """Whether there is a Kafka."""
        return bool(self.bootstrap_servers)


class TaskSettings(RedisTrust, alias_generator=variables("TASK_")):
    """The broker of background tasks, and how they are run and tried again."""

    own_broker_url: BrokerUrl = Field(default=None, alias="TASK_BROKER_URL")
    redis_url: RedisUrl = Field(default=None, alias="REDIS_URL")
    ca_file: UserPath | None = Field(default=None, alias="REDIS_CA_FILE")
    cert_file: UserPath | None = Field(default=None, alias="REDIS_CERT_FILE")
    key_file: UserPath | None = Field(default=None, alias="REDIS_KEY_FILE")
    threads: PositiveInt = Field(default=8, le=1000)
    max_retries: int = Field(default=5, ge=0)
    min_backoff_seconds: PositiveFloat = 1.0
    max_backoff_seconds: PositiveFloat = 300.0
    time_limit_seconds: PositiveFloat = 120.0
    stop_seconds: PositiveFloat = 20.0
    heartbeat_seconds: PositiveFloat = Field(default=60.0, ge=2)

    @property
    def broker_url(self) -> SecretStr | None:
        """The broker's server; None for the one inside this process."""
        url = self.own_broker_url or self.redis_url
        return None if url is None else self.trusting(url)


class LanguageModelSettings(SettingsGroup, alias_generator=variables("LLM_")):
    """The provider of language models, and how often and how long it is asked."""

    api_key: SecretStr | None = Field(default=None, alias="OPENAI_API_KEY")
    base_url: HttpUrl = Field(default=None, alias="OPENAI_BASE_URL")
    timeout_seconds: PositiveFloat = 30.0
    calls_per_minute: PositiveInt = 600
    breaker_failures: PositiveInt = 5
    breaker_seconds: PositiveFloat = 30.0
    prices: Prices = Field(default={})

    @property
    def configured(self) -> bool:
        """Whether a language model can be called: a key, or a server that may need none."""
        return self.api_key is not None or self.base_url is not None


class EmbeddingSettings(SettingsGroup, alias_generator=variables("EMBEDDING_")):
    """The model that places texts of videos by their meaning."""

    model: str | None = Field(default=None, min_length=1)
    dimensions: PositiveInt = Field(default=512, le=2000)


class SpeechSettings(SettingsGroup, alias_generator=variables("SPEECH_")):
    """Whether speech is transcribed, and by which model."""

    transcription: Annotated[Literal["auto", "on", "off"], Lower] = "auto"
    whisper_model: str = Field(default="base", alias="WHISPER_MODEL", min_length=1)


class WebSettings(SettingsGroup, alias_generator=variables("WEB_")):
    """The pages: what they show, and, in a process without the APIs, where those are."""

    site: Annotated[Literal["on", "off"], Lower] = "on"
    read_only: bool = False
    api_urls: HttpUrls = ()
    session_secret: Secret = None
    oidc_issuer: HttpUrl = None
    oidc_client_id: str | None = None
    oidc_client_secret: SecretStr | None = None
    oidc_scopes: str = "openid"
    oidc_token: Literal["access_token", "id_token"] = "access_token"  # noqa: S105 - a name

    @model_validator(mode="after")
    def _who_asks_the_provider(self) -> Self:
        if (self.oidc_issuer is None) != (self.oidc_client_id is None):
            raise ValueError("WEB_OIDC_ISSUER and WEB_OIDC_CLIENT_ID: set both or neither")
        if "openid" not in self.oidc_scopes.split():
            raise ValueError("WEB_OIDC_SCOPES: must have `openid` in it")
        return self
