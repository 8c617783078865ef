"""Settings of what leaves this program: Kafka, tasks, language models, translation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, PositiveInt, SecretStr
from pydantic_settings import BaseSettings, NoDecode

from infra.setting_types import CommaSet, HttpUrl, lower

BROKERS = ("redis://", "rediss://", "amqp://", "amqps://")

Lower = BeforeValidator(lower)


def _broker_url(value: SecretStr | None) -> SecretStr | None:
    if value is None:
        return None
    url = value.get_secret_value()
    if not url.startswith(BROKERS):
        raise ValueError(f"must start with one of {', '.join(BROKERS)}")
    if url.startswith("redis"):
        # Slow to import, and not needed where no Redis is configured.
        from infra.redis import check_redis_url

        check_redis_url(url)
    return value


def _servers(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        host, _, port = value.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"must be host:port, or several of them with commas; not {value!r}")
    return values


def _prices(value: object) -> object:
    """`model=input/output,…` in US dollars per million tokens."""
    if not isinstance(value, str):
        return value
    prices = {}
    for item in filter(None, (word.strip() for word in value.split(","))):
        model, _, both = item.rpartition("=")
        dear, _, dearer = both.partition("/")
        try:
            prices[model] = (float(dear), float(dearer))
        except ValueError:
            model = ""
        if not model:
            raise ValueError("must read model=input/output,… in dollars per million tokens")
    return prices


class TranslationSettings(BaseSettings):
    """What `Settings` has of them; ``.env.example`` documents each variable."""

    kafka_bootstrap_servers: Annotated[
        tuple[str, ...], NoDecode, CommaSet, AfterValidator(_servers)
    ] = Field(default=(), alias="KAFKA_BOOTSTRAP_SERVERS")
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", alias="KAFKA_SECURITY_PROTOCOL"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="PLAIN", alias="KAFKA_SASL_MECHANISM"
    )
    kafka_sasl_username: str | None = Field(default=None, alias="KAFKA_SASL_USERNAME")
    kafka_sasl_password: SecretStr | None = Field(default=None, alias="KAFKA_SASL_PASSWORD")
    relay_batch_events: PositiveInt = Field(default=1000, alias="RELAY_BATCH_EVENTS")

    task_broker_url: Annotated[SecretStr | None, AfterValidator(_broker_url)] = Field(
        default=None, alias="TASK_BROKER_URL"
    )
    task_threads: PositiveInt = Field(default=8, alias="TASK_THREADS", le=1000)
    task_max_retries: int = Field(default=5, alias="TASK_MAX_RETRIES", ge=0)
    task_min_backoff_seconds: PositiveFloat = Field(default=1.0, alias="TASK_MIN_BACKOFF_SECONDS")
    task_max_backoff_seconds: PositiveFloat = Field(default=300.0, alias="TASK_MAX_BACKOFF_SECONDS")
    task_time_limit_seconds: PositiveFloat = Field(default=120.0, alias="TASK_TIME_LIMIT_SECONDS")
    task_stop_seconds: PositiveFloat = Field(default=20.0, alias="TASK_STOP_SECONDS")
    task_heartbeat_seconds: PositiveFloat = Field(
        default=60.0, alias="TASK_HEARTBEAT_SECONDS", ge=2
    )

    openai_api_key: SecretStr | None = Field(default=None, alias="OPENAI_API_KEY")
    openai_base_url: HttpUrl = Field(default=None, alias="OPENAI_BASE_URL")
    llm_timeout_seconds: PositiveFloat = Field(default=30.0, alias="LLM_TIMEOUT_SECONDS")
    llm_calls_per_minute: PositiveInt = Field(default=600, alias="LLM_CALLS_PER_MINUTE")
    llm_breaker_failures: PositiveInt = Field(default=5, alias="LLM_BREAKER_FAILURES")
    llm_breaker_seconds: PositiveFloat = Field(default=30.0, alias="LLM_BREAKER_SECONDS")
    llm_prices: Annotated[dict[str, tuple[float, float]], NoDecode, BeforeValidator(_prices)] = (
        Field(default={}, alias="LLM_PRICES")
    )

    translation_model: str = Field(default="gpt-4o-mini", alias="TRANSLATION_MODEL", min_length=1)
    translation_target_language: str = Field(
        default="en", alias="TRANSLATION_TARGET_LANGUAGE", pattern=r"^[a-z]{2}$"
    )
    translation_cache_ttl_seconds: PositiveInt = Field(
        default=86_400, alias="TRANSLATION_CACHE_TTL_SECONDS"
    )
    translation_sweep_seconds: PositiveFloat = Field(
        default=60.0, alias="TRANSLATION_SWEEP_SECONDS"
    )
    translation_overdue_seconds: PositiveFloat = Field(
        default=300.0, alias="TRANSLATION_OVERDUE_SECONDS"
    )
    language_detector: Annotated[Literal["text", "llm", "whisper"], Lower] = Field(
        default="text", alias="LANGUAGE_DETECTOR"
    )
    language_min_confidence: float = Field(default=0.7, alias="LANGUAGE_MIN_CONFIDENCE", ge=0, le=1)
    language_target_confidence: float = Field(
        default=0.75, alias="LANGUAGE_TARGET_CONFIDENCE", ge=0, le=1
    )
    whisper_model: str = Field(default="base", alias="WHISPER_MODEL", min_length=1)
    speech_transcription: Annotated[Literal["auto", "on", "off"], Lower] = Field(
        default="auto", alias="SPEECH_TRANSCRIPTION"
    )

    @property
    def has_llm(self) -> bool:
        """Whether a language model can be called: a key, or a server that may need none."""
        return self.openai_api_key is not None or self.openai_base_url is not None
