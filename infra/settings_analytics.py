"""Settings of the analytics: where they are kept, how they are taken in, what counts."""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SecretStr,
)
from pydantic_settings import BaseSettings

from infra.setting_types import postgres_url

# So that no sum overflows.
MAX_WEIGHT = 1e6


class AnalyticsSettings(BaseSettings):
    """What `Settings` has of them; ``.env.example`` documents each variable."""

    timescale_url: Annotated[SecretStr | None, AfterValidator(postgres_url)] = Field(
        default=None, alias="TIMESCALE_URL"
    )
    analytics_batch_events: PositiveInt = Field(
        default=100, alias="ANALYTICS_BATCH_EVENTS", le=100_000
    )
    analytics_flush_seconds: PositiveFloat = Field(
        default=5.0, alias="ANALYTICS_FLUSH_SECONDS", le=3600
    )
    view_repeat_seconds: PositiveInt = Field(default=3600, alias="VIEW_REPEAT_SECONDS")
    anonymous_viewers: bool = Field(default=False, alias="ANONYMOUS_VIEWERS")
    # Rankings and stats look at the hours of 30 days; what comes late is counted for 10 days less.
    analytics_retention_days: int = Field(
        default=730, alias="ANALYTICS_RETENTION_DAYS", ge=60, le=36_500
    )

    trending_view_weight: NonNegativeFloat = Field(
        default=1.0, alias="TRENDING_VIEW_WEIGHT", le=MAX_WEIGHT
    )
    trending_like_weight: NonNegativeFloat = Field(
        default=5.0, alias="TRENDING_LIKE_WEIGHT", le=MAX_WEIGHT
    )
    trending_comment_weight: NonNegativeFloat = Field(
        default=3.0, alias="TRENDING_COMMENT_WEIGHT", le=MAX_WEIGHT
    )
    trending_watch_minute_weight: NonNegativeFloat = Field(
        default=0.1, alias="TRENDING_WATCH_MINUTE_WEIGHT", le=MAX_WEIGHT
    )
    trending_recent_hours: PositiveInt = Field(default=24, alias="TRENDING_RECENT_HOURS", le=168)
    trending_recent_boost: float = Field(
        default=2.0, alias="TRENDING_RECENT_BOOST", ge=1, le=MAX_WEIGHT
    )
    trending_half_life_hours: PositiveFloat = Field(
        default=168.0, alias="TRENDING_HALF_LIFE_HOURS", allow_inf_nan=False
    )
    trending_cache_ttl_seconds: PositiveInt = Field(
        default=300, alias="TRENDING_CACHE_TTL_SECONDS", le=86_400
    )
    trending_invalidate_seconds: PositiveFloat = Field(
        default=5.0, alias="TRENDING_INVALIDATE_SECONDS", le=3600
    )
    # Sums are used for an hour after theirs at most.
    trending_settle_seconds: PositiveFloat = Field(
        default=300.0, alias="TRENDING_SETTLE_SECONDS", le=1800
    )

    def analytics_url(self, database_url: str) -> str:
        """Where the analytics are kept: a database of their own, or the one of everything else."""
        return self.timescale_url.get_secret_value() if self.timescale_url else database_url
