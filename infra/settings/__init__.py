"""Everything that can be configured, read once from the environment: a group for each part.

A part gets its own group and no other. What differs between the embedded and the production shape
is decided from these values alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    Field,
    PositiveFloat,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from infra.errors import UsageError
from infra.settings import adapters, features
from infra.settings.values import CommaSet, HttpUrl, Networks, SettingsGroup, UserPath, variables

MIN_S3_PART_BYTES = 5 * features.MIB
MAY_HOLD_SECRETS = (
    "DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL", "REDLOCK_URLS", "JWT_SECRET",
    "JWT_PUBLIC_KEY", "S3_ENDPOINT_URL", "S3_PUBLIC_ENDPOINT_URL", "S3_SECRET_ACCESS_KEY",
    "TASK_BROKER_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL", "KAFKA_SASL_PASSWORD", "TIMESCALE_URL",
    "SEAL_TSA_URL", "KEY_ENCRYPTION_KEY", "VAULT_TOKEN", "VAULT_ADDR", "KMS_ENDPOINT_URL",
    "WEB_SESSION_SECRET",
    "OLD_KEY_ENCRYPTION_KEY", "OLD_VAULT_TOKEN", "OLD_VAULT_ADDR", "OLD_KMS_ENDPOINT_URL",
)  # fmt: skip
# What may come from a file beside every secret: it belongs to one, or has several lines.
ALSO_IN_FILES = frozenset({"S3_ACCESS_KEY_ID", "JWT_PUBLIC_KEY"})
MOST_SECRET_BYTES = 64 * 1024
EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - recognised, not bound
# PostgreSQL and the projections take cores too.
MOST_PROCESSES_BY_CORES = 4


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
    WEB = "web"


SERVING = frozenset({Role.COMMANDS, Role.QUERIES})
"""The roles that take requests with tokens."""


def _some_roles(value: frozenset[Role]) -> frozenset[Role]:
    if not value:
        raise ValueError(f"name at least one of {', '.join(Role)}")
    return value


class ServerSettings(SettingsGroup, alias_generator=variables("BACKLOT_")):
    """What this process runs, where it listens, and where it keeps its data."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    admin_port: int | None = Field(default=None, alias="ADMIN_PORT", ge=1, le=65535)
    configured_admin_host: str | None = Field(default=None, alias="ADMIN_HOST")
    data_dir: UserPath = Path(".backlot")
    configured_public_url: HttpUrl = Field(default=None, alias="BACKLOT_PUBLIC_URL")
    roles: Annotated[frozenset[Role], CommaSet, AfterValidator(_some_roles)] = frozenset(Role)
    body_limit_bytes: int = Field(default=features.MIB, alias="BODY_LIMIT_BYTES", ge=1024)
    trusted_proxies: Networks = Field(default=(), alias="TRUSTED_PROXIES")
    head_seconds: PositiveFloat = Field(default=20.0, alias="HEAD_TIMEOUT_SECONDS", le=3600)
    body_seconds: PositiveFloat = Field(default=60.0, alias="BODY_TIMEOUT_SECONDS", le=3600)
    max_connections: int = Field(default=10_000, alias="MAX_CONNECTIONS", ge=16, le=1_000_000)
    configured_processes: int | None = Field(default=None, alias="BACKLOT_PROCESSES", ge=1, le=64)

    @property
    def processes(self) -> int:
        """How many processes answer at `port`: by cores, where one program has every role."""
        if not self.roles & SERVING:
            return 1
        if self.configured_processes is not None:
            return self.configured_processes
        return _processes_by_cores() if self.roles == frozenset(Role) else 1

    @property
    def admin_host(self) -> str:
        """The address at which `admin_port` is listened to."""
        return self.configured_admin_host or self.host

    @model_validator(mode="after")
    def _ports_of_their_own(self) -> Self:
        if self.admin_port == self.port:
            raise ValueError(f"ADMIN_PORT: must be another one than BACKLOT_PORT ({self.port})")
        return self

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


def _processes_by_cores() -> int:
    # Elsewhere the kernel gives all connections of a port to one process.
    if sys.platform != "linux":
        return 1
    return min(MOST_PROCESSES_BY_CORES, len(os.sched_getaffinity(0)))


class Settings(SettingsGroup):
    """One process's configuration; ``.env.example`` documents each variable.

    An unset service means its embedded part: no ``DATABASE_URL`` starts PostgreSQL in the data
    folder, no ``JWT_*`` key makes a local secret there.
    """

    server: ServerSettings
    cors: adapters.CorsSettings
    database: adapters.DatabaseSettings
    redis: adapters.RedisSettings
    objects: adapters.ObjectSettings
    auth: adapters.AuthSettings
    keys: adapters.KeySettings
    former_keys: adapters.FormerKeySettings
    logs: adapters.LogSettings
    uploads: features.UploadSettings
    rate_limits: features.RateLimitSettings
    quotas: features.QuotaSettings
    likes: features.LikeSettings
    commands: features.CommandSettings
    projections: features.ProjectionSettings
    seals: features.SealSettings
    kafka: adapters.KafkaSettings
    tasks: adapters.TaskSettings
    llm: adapters.LanguageModelSettings
    moderation: features.ModerationSettings
    translation: features.TranslationSettings
    speech: adapters.SpeechSettings
    watch: features.WatchSettings
    analytics: features.AnalyticsSettings
    trending: features.TrendingSettings
    recommendations: features.RecommendationSettings
    embeddings: adapters.EmbeddingSettings
    privacy: features.PrivacySettings
    webhooks: features.WebhookSettings
    web: adapters.WebSettings

    @model_validator(mode="after")
    def _parts_that_s3_takes(self) -> Self:
        size = self.uploads.part_size_bytes
        if self.objects.bucket is not None and size < MIN_S3_PART_BYTES:
            told = f"S3 takes parts of at least {MIN_S3_PART_BYTES} bytes"
            raise ValueError(f"PART_SIZE_BYTES: {told} (got {size})")
        return self

    @model_validator(mode="after")
    def _telemetry_for_what_is_made_from_it(self) -> Self:
        days, least = self.privacy.telemetry_retention_days, self.analytics.retention_days
        if days is not None and days <= least:
            told = f"must be more than ANALYTICS_RETENTION_DAYS ({least})"
            raise ValueError(f"TELEMETRY_RETENTION_DAYS: {told} (got {days})")
        return self

    @property
    def telemetry_retention(self) -> timedelta:
        """How long telemetry is kept: longer than what is counted from it."""
        days = self.privacy.telemetry_retention_days
        return timedelta(days=days or self.analytics.retention_days + 30)

    @classmethod
    def variables(cls) -> set[str]:
        """Return every environment variable that is a setting."""
        groups: list[Any] = [field.annotation for field in cls.model_fields.values()]
        return {str(field.alias) for group in groups for field in group.model_fields.values()}

    @classmethod
    def files(cls) -> dict[str, str]:
        """Return the settings that may lie in a file, by the variable that names the file."""
        groups: list[Any] = [field.annotation for field in cls.model_fields.values()]
        secret = {
            str(field.alias)
            for group in groups
            for field in group.model_fields.values()
            if _is_secret(field.annotation)
        }
        return {f"{name}_FILE": name for name in secret | ALSO_IN_FILES}

    def values(self) -> dict[str, Any]:
        """Return every setting by its environment variable."""
        groups: list[SettingsGroup] = [getattr(self, name) for name in type(self).model_fields]
        return {
            str(field.alias): getattr(group, name)
            for group in groups
            for name, field in type(group).model_fields.items()
        }

    def given(self) -> set[str]:
        """Return the environment variables that are set."""
        groups: list[SettingsGroup] = [getattr(self, name) for name in type(self).model_fields]
        return {
            str(type(group).model_fields[field].alias)
            for group in groups
            for field in group.model_fields_set
        }


def _is_secret(annotation: Any) -> bool:
    return annotation is SecretStr or any(map(_is_secret, get_args(annotation)))


def load_settings(env: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from ``env``, or from the environment and ``.env`` when it is None.

    A secret may lie in a file that ``<its name>_FILE`` names. Raise SettingsError with one line
    that names each wrong variable; secrets are not repeated.
    """
    given = _environment() if env is None else env
    present = {name: value for name, value in given.items() if value}
    present |= _from_files(present)
    try:
        return Settings.model_validate(dict.fromkeys(Settings.model_fields, present))
    except ValidationError as error:
        # Groups that read the same variable find the same fault in it.
        faults = dict.fromkeys(_explain(item) for item in error.errors())
        raise SettingsError("; ".join(faults)) from None


def _from_files(present: Mapping[str, str]) -> dict[str, str]:
    """Return what the files hold that are named there; raise SettingsError."""
    found, faults = {}, []
    for variable, name in sorted(Settings.files().items()):
        if variable not in present:
            continue
        if name in present:
            faults.append(f"{name} and {variable}: set only one of them")
            continue
        try:
            found[name] = _read_secret(Path(present[variable]).expanduser())
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            faults.append(f"{variable}: {present[variable]} can't be used: {reason}")
    if faults:
        raise SettingsError("; ".join(faults))
    return found


def _read_secret(path: Path) -> str:
    """Return the text of a file without white space around it. Raise OSError and ValueError."""
    with path.open("rb") as file:
        content = file.read(MOST_SECRET_BYTES + 1)
    if len(content) > MOST_SECRET_BYTES:
        raise ValueError(f"it has more than {MOST_SECRET_BYTES} bytes")
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        raise ValueError("it is no text in UTF-8") from None
    if not text:
        raise ValueError("it is empty")
    return text


def _environment() -> dict[str, str]:
    """Return the variables of ``.env`` and of the process, which win; names in any case."""
    sources = (dotenv_values(".env"), os.environ)
    return {name.upper(): value for source in sources for name, value in source.items() if value}


def _explain(item: ErrorDetails) -> str:
    message = item["msg"].removeprefix("Value error, ")
    # The group's name, then the variable's; a check of several variables names them itself.
    if len(item["loc"]) < 2:
        return message
    name = str(item["loc"][1])
    message = message[:1].lower() + message[1:]
    secret = name in MAY_HOLD_SECRETS
    return f"{name}: {message}" + ("" if secret else f" (got {item['input']!r})")
