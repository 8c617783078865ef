"""Settings of what the program does: a group for each feature, and for the event log's parts."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from domain.person import VideosFate
from infra.settings.values import (
    AnchorPlaces,
    HttpUrl,
    Languages,
    Lower,
    Networks,
    Numbers,
    Pauses,
    PostgresUrl,
    Rated,
    RequestRate,
    SettingsGroup,
    Terms,
    TermsFile,
    UserPath,
    WatchedTerms,
    variables,
)

MIB = 1024 * 1024
# What object stores take: so many parts, of so many bytes at most.
MAX_PARTS = 10_000
MAX_PART_BYTES = 5 * 1024**3
# So many processes may share one replay.
MAX_REPLAY_WORKERS = 32
# So that no sum overflows.
MAX_WEIGHT = 1e6
# What a second variant of the recommendations may have otherwise, each from 0 to this.
BLEND = {
    "neighbour": 10.0,
    "similar": 10.0,
    "same_category": 10.0,
    "popular": 10.0,
    "trending": 10.0,
    "popularity_exponent": 1.0,
    "profile_exponent": 1.0,
    "profile_fade": 3.0,
}


class CommandSettings(SettingsGroup, alias_generator=variables("COMMAND_")):
    """The batches in which commands are executed."""

    batch_max: PositiveInt = 256
    queue_max: PositiveInt = 10_000
    retries: int = Field(default=20, ge=0)
    idempotency_ttl_hours: PositiveInt = Field(default=24, alias="IDEMPOTENCY_TTL_HOURS")


class ProjectionSettings(SettingsGroup, alias_generator=variables("PROJECTION_")):
    """How read models follow the event log."""

    batch_events: PositiveInt = 5000
    poll_seconds: PositiveFloat = 1.0
    auto_replay: bool = True


class SealSettings(SettingsGroup, alias_generator=variables("SEAL_")):
    """How the event log is sealed, signed and anchored outside."""

    block_events: int = Field(default=1000, ge=1, le=10_000)
    block_seconds: PositiveFloat = Field(default=5.0, alias="SEAL_SECONDS", le=3600)
    key_file: UserPath | None = None
    public_key_file: UserPath | None = None
    anchors: AnchorPlaces = Field(default=(), alias="SEAL_ANCHOR")
    anchor_seconds: PositiveFloat = Field(default=60.0, le=86_400)
    anchor_lock: Annotated[Literal["compliance", "governance"], Lower] = "compliance"
    anchor_retention_days: PositiveInt = Field(default=365, le=36_500)
    tsa_url: HttpUrl = None
    tsa_ca_file: UserPath | None = None
    tsa_seconds: PositiveFloat = Field(default=3600.0, le=30 * 86_400)

    @model_validator(mode="after")
    def _stamps_that_are_kept_and_checked(self) -> Self:
        if self.tsa_url is not None and self.tsa_ca_file is None:
            raise ValueError("SEAL_TSA_URL: set SEAL_TSA_CA_FILE too, the certificates to trust")
        if self.tsa_url is not None and not self.anchors:
            raise ValueError("SEAL_TSA_URL: set SEAL_ANCHOR too: time stamps lie with the anchors")
        return self


class UploadSettings(SettingsGroup, alias_generator=str.upper):
    """Sizes of uploads, how they are completed, and when they expire."""

    part_size_bytes: int = Field(default=8 * MIB, ge=1024, le=5 * 1024 * MIB)
    max_bytes: int = Field(
        default=64 * 1024 * MIB, alias="MAX_UPLOAD_BYTES", ge=1, le=MAX_PARTS * MAX_PART_BYTES
    )
    idle_days: PositiveFloat = Field(default=7.0, alias="UPLOAD_IDLE_DAYS", le=3650)
    longest_days: PositiveFloat = Field(default=30.0, alias="UPLOAD_LONGEST_DAYS", le=3650)
    expiry_interval_seconds: PositiveFloat = 3600.0
    finalize_lock_seconds: float = Field(default=60.0, ge=0.1, le=3600)
    finalize_wait_seconds: float = Field(default=2.0, ge=0, le=60)


class RateLimitSettings(SettingsGroup, alias_generator=variables("RATE_LIMIT_")):
    """How often a user, an address and anonymous callers may ask, by class of request."""

    switch: Annotated[Literal["on", "off"], Lower] = Field(default="on", alias="RATE_LIMITS")
    write: Rated = RequestRate(1800, 600)
    upload: Rated = RequestRate(1200, 600)
    watch: Rated = RequestRate(1200, 600)
    read: Rated = RequestRate(12_000, 6000)
    live: Rated = RequestRate(120, 60)
    admin: Rated = RequestRate(1200, 600)
    address_factor: float = Field(default=5.0, ge=1, le=1e6)
    anonymous: float = Field(default=0.5, alias="RATE_LIMIT_ANONYMOUS_FACTOR", gt=0, le=1e6)

    @property
    def on(self) -> bool:
        """Whether anything is limited; the quotas of users included."""
        return self.switch == "on"


class QuotaSettings(SettingsGroup, alias_generator=variables("QUOTA_")):
    """How much one user may have and do, whatever the rate of requests."""

    open_uploads: PositiveInt = 200
    bytes_per_day: PositiveInt = 1024 * 1024 * MIB
    comments_per_minute: PositiveInt = 120
    liked_videos_per_minute: PositiveInt = 240
    live_streams_per_user: PositiveInt = 50
    live_streams_per_address: PositiveInt = 500


class LikeSettings(SettingsGroup, alias_generator=variables("LIKE_")):
    """The like counters in Redis."""

    counter_ttl_seconds: PositiveInt = 3600
    reconcile_seconds: PositiveFloat = 300.0


class WatchSettings(SettingsGroup, alias_generator=str.upper):
    """What counts as one view, and whether views are taken without a token."""

    view_repeat_seconds: PositiveInt = 3600
    anonymous_viewers: bool = False

    @property
    def view_repeat(self) -> timedelta:
        """Within this time a viewer's views of a video are one."""
        return timedelta(seconds=self.view_repeat_seconds)


class ModerationSettings(SettingsGroup, alias_generator=str.upper):
    """What holds a comment for approval, wherever it stands."""

    watched_words: WatchedTerms = ()
    watched_words_file: TermsFile = None

    @property
    def words(self) -> tuple[str, ...]:
        """All words, and phrases, that are watched."""
        return (*self.watched_words, *(self.watched_words_file or ()))


class TranslationSettings(SettingsGroup, alias_generator=variables("TRANSLATION_")):
    """How the language of comments is found, and how they are translated."""

    model: str = Field(default="gpt-4o-mini", min_length=1)
    target_language: str = Field(default="en", pattern=r"^[a-z]{2}$")
    cache_ttl_seconds: PositiveInt = 86_400
    sweep_seconds: PositiveFloat = 60.0
    overdue_seconds: PositiveFloat = 300.0
    detector: Annotated[Literal["text", "llm", "whisper"], Lower] = Field(
        default="text", alias="LANGUAGE_DETECTOR"
    )
    min_confidence: float = Field(default=0.7, alias="LANGUAGE_MIN_CONFIDENCE", ge=0, le=1)
    target_confidence: float = Field(default=0.8, alias="LANGUAGE_TARGET_CONFIDENCE", ge=0, le=1)
    whisper_model: str = Field(default="base", alias="WHISPER_MODEL", min_length=1)
    targets: Languages = ()
    glossary: Terms = ()
    requests_per_day: PositiveInt = 10_000
    user_requests_per_day: PositiveInt = 500
    anonymous_requests_per_day: NonNegativeInt = 5_000
    calls_per_day: PositiveInt = 20_000
    user_calls_per_day: PositiveInt = 200
    edit_seconds: NonNegativeFloat = Field(default=10.0, le=3600)

    @property
    def on_demand(self) -> tuple[str, ...]:
        """Every language that readers may ask for; none where they have no choice."""
        languages = tuple(dict.fromkeys((self.target_language, *self.targets)))
        return languages if len(languages) > 1 else ()


class AnalyticsSettings(SettingsGroup, alias_generator=variables("ANALYTICS_")):
    """Where the analytics are kept, how they are taken in, and for how long."""

    timescale_url: PostgresUrl = Field(default=None, alias="TIMESCALE_URL")
    batch_events: PositiveInt = Field(default=100, le=100_000)
    flush_seconds: PositiveFloat = Field(default=5.0, le=3600)
    # Rankings and stats look at the hours of 30 days; what comes late is counted for 10 days less.
    retention_days: int = Field(default=730, ge=60, le=36_500)
    stats_public: bool = Field(default=False, alias="STATS_PUBLIC")

    def url(self, database_url: str) -> str:
        """Return where the analytics are kept: a database of their own, or that of all else."""
        return self.timescale_url.get_secret_value() if self.timescale_url else database_url


class TrendingSettings(SettingsGroup, alias_generator=variables("TRENDING_")):
    """What makes a video trend, and how long a ranking is kept."""

    view_weight: NonNegativeFloat = Field(default=1.0, le=MAX_WEIGHT)
    like_weight: NonNegativeFloat = Field(default=5.0, le=MAX_WEIGHT)
    comment_weight: NonNegativeFloat = Field(default=3.0, le=MAX_WEIGHT)
    watch_minute_weight: NonNegativeFloat = Field(default=0.1, le=MAX_WEIGHT)
    recent_hours: PositiveInt = Field(default=6, le=168)
    recent_boost: float = Field(default=2.0, ge=1, le=MAX_WEIGHT)
    half_life_hours: PositiveFloat = Field(default=24.0, allow_inf_nan=False)
    # Without one, the site's own views tell it.
    age_floor: float | None = Field(default=None, ge=0, le=1)
    viewer_comments: PositiveInt = Field(default=3, le=1_000_000)
    viewer_watch_minutes: PositiveFloat = Field(default=300.0, le=1_000_000)
    cache_ttl_seconds: PositiveInt = Field(default=300, le=86_400)
    invalidate_seconds: PositiveFloat = Field(default=5.0, le=3600)
    # Sums are used for an hour after theirs at most.
    settle_seconds: PositiveFloat = Field(default=300.0, le=1800)


def within_blend(given: dict[str, float]) -> dict[str, float]:
    for name, value in given.items():
        if name not in BLEND:
            raise ValueError(f"knows {', '.join(BLEND)}; not {name!r}")
        if not 0 <= value <= BLEND[name]:
            raise ValueError(f"{name} must be from 0 to {BLEND[name]:g}")
    return given


class RecommendationSettings(SettingsGroup, alias_generator=variables("RECOMMENDATIONS_")):
    """Who orders recommendations, what that may cost, and how long they are kept."""

    model: str = Field(default="gpt-4o-mini", min_length=1)
    use_llm: bool = Field(default=True, alias="RECOMMENDATIONS_LLM")
    timeout_seconds: PositiveFloat = Field(default=5.0, le=60)
    cache_ttl_seconds: PositiveInt = Field(default=3600, le=86_400)
    invalidate_seconds: PositiveFloat = Field(default=10.0, le=3600)
    user_calls_per_day: PositiveInt = 24
    calls_per_day: PositiveInt = 10_000
    precompute_seconds: float = Field(default=0.0, ge=0, le=86_400)
    half_life_days: PositiveFloat = Field(default=30.0, le=3650)
    new_share: float = Field(default=0.0, ge=0, le=0.5)
    variant_b: Annotated[Numbers, AfterValidator(within_blend)] = Field(default={})


class WebhookSettings(SettingsGroup, alias_generator=variables("WEBHOOK_")):
    """Whether and where webhooks may be sent, and how long one that fails is tried again.

    `retry_seconds` are the pauses behind each attempt that failed; after the last one a webhook is
    disabled.
    """

    switch: Annotated[Literal["on", "off"], Lower] = Field(default="on", alias="WEBHOOKS")
    allow_http: bool = False
    allowed_networks: Networks = ()
    ca_file: UserPath | None = None
    timeout_seconds: PositiveFloat = Field(default=15.0, le=60)
    at_once: int = Field(default=8, ge=1, le=100)
    retry_seconds: Pauses = (
        *(5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0),
        *(50_400.0, 72_000.0, 86_400.0, 86_400.0, 86_400.0),
    )
    keep_days: PositiveInt = Field(default=7, le=365)

    @property
    def on(self) -> bool:
        """Whether any process here sends."""
        return self.switch == "on"


class PrivacySettings(SettingsGroup, alias_generator=str.upper):
    """Who may export personal data, what forgetting does to videos, and how long what names persons
    is kept.

    Without `telemetry_retention_days` telemetry is kept 30 days longer than the analytics.
    """

    privacy_self_service: bool = False
    forget_videos: VideosFate = VideosFate.DELETE
    telemetry_retention_days: int | None = Field(default=None, ge=61, le=36_600)
    engagement_retention_days: int = Field(default=730, ge=60, le=36_500)
    dead_letter_retention_days: PositiveInt = Field(default=90, le=36_500)
