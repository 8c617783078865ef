"""Settings of the recommendations: what is remembered, who ranks them, what that may cost."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt
from pydantic_settings import BaseSettings


class RecommendationSettings(BaseSettings):
    """What `Settings` has of them; ``.env.example`` documents each variable."""

    recommendations_model: str = Field(
        default="gpt-4o-mini", alias="RECOMMENDATIONS_MODEL", min_length=1
    )
    recommendations_llm: bool = Field(default=True, alias="RECOMMENDATIONS_LLM")
    recommendations_timeout_seconds: PositiveFloat = Field(
        default=5.0, alias="RECOMMENDATIONS_TIMEOUT_SECONDS", le=60
    )
    recommendations_cache_ttl_seconds: PositiveInt = Field(
        default=3600, alias="RECOMMENDATIONS_CACHE_TTL_SECONDS", le=86_400
    )
    recommendations_invalidate_seconds: PositiveFloat = Field(
        default=10.0, alias="RECOMMENDATIONS_INVALIDATE_SECONDS", le=3600
    )
    recommendations_user_calls_per_day: PositiveInt = Field(
        default=24, alias="RECOMMENDATIONS_USER_CALLS_PER_DAY"
    )
    recommendations_calls_per_day: PositiveInt = Field(
        default=10_000, alias="RECOMMENDATIONS_CALLS_PER_DAY"
    )
    recommendations_precompute_seconds: float = Field(
        default=0.0, alias="RECOMMENDATIONS_PRECOMPUTE_SECONDS", ge=0, le=86_400
    )
    recommendations_half_life_days: PositiveFloat = Field(
        default=30.0, alias="RECOMMENDATIONS_HALF_LIFE_DAYS", le=3650
    )
    embedding_model: str | None = Field(default=None, alias="EMBEDDING_MODEL", min_length=1)
    embedding_dimensions: PositiveInt = Field(default=512, alias="EMBEDDING_DIMENSIONS", le=2000)
