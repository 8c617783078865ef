"""The features of Backlot, each declared once: the program is made by going over `FEATURES`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter

import commands.catalog
import commands.comment_likes
import commands.comments
import commands.dead_letters
import commands.dismissals
import commands.endpoint
import commands.erasure
import commands.feedback
import commands.likes
import commands.live
import commands.moderation
import commands.operations
import commands.revocations
import commands.s3_uploads
import commands.translation
import commands.tus
import commands.uploads
import commands.watch
import commands.webhooks
import engine.dead_letters
import engine.erasures
import engine.event_store
import engine.inspection.persons
import engine.persons
import engine.replay.records
import engine.reservations
import engine.telemetry
import projections.analytics.privacy
import projections.catalog
import projections.comment_tables
import projections.dismissals
import projections.feedback.reports
import projections.like_counters
import projections.likes
import projections.moderation
import projections.operations
import projections.recommendations.retention
import projections.translation
import projections.webhooks
import readapi.analytics
import readapi.audience
import readapi.audit.routes
import readapi.audit.seals
import readapi.callers
import readapi.catalog
import readapi.comments
import readapi.dead_letters
import readapi.erasure
import readapi.events
import readapi.explanations
import readapi.failed_translations
import readapi.feedback
import readapi.likes
import readapi.live
import readapi.moderation
import readapi.operations
import readapi.operator_actions
import readapi.privacy
import readapi.recommendations
import readapi.replays
import readapi.revocations
import readapi.spending
import readapi.stats
import readapi.tasks
import readapi.translation
import readapi.webhooks
import workers.analytics
import workers.erasure
import workers.feedback
import workers.likes
import workers.maintenance
import workers.operations.executor
import workers.recommendations
import workers.speech
import workers.translation
import workers.translation_sweep
import workers.translator
import workers.uploads
import workers.webhooks
from backlot import health
from backlot.health import DoctorPart
from domain.comment import Comment
from domain.comment_likes import CommentLikes
from domain.dismissals import Dismissal
from domain.model import Aggregate
from domain.moderation import ContentReport, ModerationCase, UserBlock
from domain.operation import Operation
from domain.person import Person
from domain.revocations import Revocations
from domain.upload import Upload
from domain.video_likes import VideoLikes
from domain.webhooks import Webhooks
from engine.command_bus import CommandBus
from engine.inspection.index import Audit
from engine.installation import MigrationSet
from engine.lookups import Readers
from engine.personal_data import PersonalPlace
from engine.projection import Projection, ReadModels
from engine.projection_subscription import ProjectionHost
from engine.schedule import Job
from engine.subscription import Subscription
from infra.settings import Settings, adapters, features
from infra.settings.values import SettingsGroup
from projections.analytics.rebuild import NAME as ANALYTICS
from projections.catalog import Catalog
from projections.comments import Comments
from projections.dismissals import Dismissals
from projections.feedback.rebuild import NAME as FEEDBACK
from projections.like_counters import NAME as COUNTERS
from projections.likes import Likes
from projections.moderation import Moderation
from projections.operations import Operations
from projections.translation import Translations
from workers.parts import Parts
from workers.tasks import (
    PREPARE_RECOMMENDATIONS,
    TRANSCRIBE_VIDEO,
    TRANSLATE_COMMENT,
    TRANSLATE_ON_DEMAND,
    Tasks,
)


def nothing(*parts: object) -> tuple[()]:
    """Return no work: the default of a feature in each role."""
    return ()


def no_lookups(models: ReadModels) -> Readers:
    """Return no lookups: the default of a feature."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Feature:
    """What a feature adds to the program. What it does not say, it does not have."""

    name: str
    aggregates: tuple[type[Aggregate], ...] = ()
    # Routes of the roles `commands` and `queries`.
    commands: tuple[APIRouter, ...] = ()
    queries: tuple[APIRouter, ...] = ()
    # What answers the lookups of its commands.
    lookups: Callable[[ReadModels], Readers] = no_lookups
    projections: tuple[type[Projection], ...] = ()
    # Tables of the main database that belong to no copy of a projection.
    tables: tuple[MigrationSet, ...] = ()
    # What operators rebuild like a projection, by its name.
    rebuilt: tuple[str, ...] = ()
    # What the role `projections` runs beside the projections.
    reactors: Callable[[Parts, ProjectionHost], Iterable[Coroutine[Any, Any, None]]] = nothing
    # What the role `consumers` follows, and its jobs, which send tasks for what was missed.
    subscriptions: Callable[[Parts, CommandBus, Tasks], Iterable[Subscription[Any]]] = nothing
    sweeps: Callable[[Parts, Tasks], Iterable[Job]] = nothing
    # The jobs of the role `workers`.
    jobs: Callable[[Parts, CommandBus], Iterable[Job]] = nothing
    # Names of the tasks that the role `tasks` runs.
    tasks: tuple[str, ...] = ()
    settings: tuple[type[SettingsGroup], ...] = ()
    # What `backlot doctor` looks at beside the databases and servers of every feature.
    checks: tuple[Callable[[Settings], DoctorPart], ...] = ()
    # Where it holds something about persons.
    personal: tuple[PersonalPlace, ...] = ()


# Routes are tried in this order: likes are what comes most, and `/videos/recommendations` has to
# come before `/videos/{video_id}`.
FEATURES: tuple[Feature, ...] = (
    Feature(
        name="likes",
        aggregates=(VideoLikes,),
        commands=(commands.likes.router, commands.live.router),
        queries=(readapi.likes.router, readapi.live.router),
        lookups=workers.likes.lookups,
        projections=(Likes,),
        tables=(projections.like_counters.TABLES,),
        rebuilt=(COUNTERS,),
        reactors=workers.likes.reactors,
        jobs=workers.likes.jobs,
        settings=(features.LikeSettings,),
        personal=projections.likes.PERSONAL,
    ),
    Feature(
        name="comments",
        aggregates=(Comment, CommentLikes),
        commands=(commands.comments.router, commands.comment_likes.router),
        queries=(readapi.comments.router,),
        projections=(Comments,),
        personal=projections.comment_tables.PERSONAL,
    ),
    Feature(
        name="moderation",
        aggregates=(ContentReport, ModerationCase, UserBlock),
        commands=(commands.moderation.router,),
        queries=(readapi.moderation.router,),
        projections=(Moderation,),
        settings=(features.ModerationSettings,),
        personal=projections.moderation.PERSONAL,
    ),
    Feature(
        name="translation",
        commands=(commands.translation.router,),
        queries=(readapi.failed_translations.router,),
        projections=(Translations,),
        subscriptions=workers.translation.subscriptions,
        sweeps=workers.translation_sweep.sweeps,
        tasks=(TRANSLATE_COMMENT, TRANSLATE_ON_DEMAND),
        settings=(features.TranslationSettings,),
        checks=(health.language_model,),
        personal=(
            *projections.translation.PERSONAL,
            *workers.translator.PERSONAL,
            *readapi.translation.PERSONAL,
        ),
    ),
    Feature(
        name="speech",
        subscriptions=workers.speech.subscriptions,
        tasks=(TRANSCRIBE_VIDEO,),
        settings=(adapters.SpeechSettings,),
    ),
    Feature(
        name="watch",
        commands=(commands.watch.router,),
        settings=(features.WatchSettings,),
        personal=engine.telemetry.PERSONAL,
    ),
    Feature(
        name="recommendations",
        queries=(readapi.recommendations.router,),
        subscriptions=workers.recommendations.subscriptions,
        sweeps=workers.recommendations.sweeps,
        jobs=workers.recommendations.jobs,
        tasks=(PREPARE_RECOMMENDATIONS,),
        settings=(features.RecommendationSettings, adapters.EmbeddingSettings),
        checks=(health.embeddings,),
        personal=projections.recommendations.retention.PERSONAL,
    ),
    Feature(
        name="dismissals",
        aggregates=(Dismissal,),
        commands=(commands.dismissals.router,),
        projections=(Dismissals,),
        personal=projections.dismissals.PERSONAL,
    ),
    Feature(
        name="feedback",
        commands=(commands.feedback.router,),
        queries=(readapi.feedback.router,),
        lookups=workers.feedback.lookups,
        tables=(projections.feedback.reports.TABLES,),
        rebuilt=(FEEDBACK,),
        subscriptions=workers.feedback.subscriptions,
        jobs=workers.feedback.jobs,
        personal=projections.feedback.reports.PERSONAL,
    ),
    Feature(
        name="uploads",
        aggregates=(Upload,),
        commands=(
            commands.catalog.router,
            commands.uploads.router,
            commands.s3_uploads.router,
            commands.tus.router,
        ),
        queries=(readapi.catalog.router, readapi.catalog.uploads),
        lookups=workers.uploads.lookups,
        projections=(Catalog,),
        jobs=workers.uploads.jobs,
        settings=(features.UploadSettings,),
        personal=(*projections.catalog.PERSONAL, *engine.reservations.PERSONAL),
    ),
    Feature(
        name="rate_limits",
        settings=(features.RateLimitSettings, features.QuotaSettings),
        personal=commands.endpoint.PERSONAL,
    ),
    Feature(
        name="analytics",
        queries=(readapi.stats.router, readapi.audience.router, readapi.analytics.router),
        rebuilt=(ANALYTICS,),
        subscriptions=workers.analytics.subscriptions,
        jobs=workers.analytics.jobs,
        settings=(features.AnalyticsSettings,),
        personal=projections.analytics.privacy.PERSONAL,
    ),
    Feature(
        name="trending",
        jobs=workers.analytics.settling_jobs,
        settings=(features.TrendingSettings,),
    ),
    Feature(
        name="operations",
        aggregates=(Operation,),
        commands=(commands.operations.router,),
        queries=(
            readapi.operations.router,
            readapi.replays.router,
            readapi.operator_actions.router,
        ),
        projections=(Operations,),
        reactors=workers.operations.executor.reactors,
        jobs=workers.maintenance.jobs,
        settings=(features.CommandSettings, features.ProjectionSettings),
        personal=(
            *projections.operations.PERSONAL,
            *engine.event_store.PERSONAL,
            *engine.dead_letters.PERSONAL,
            *engine.replay.records.PERSONAL,
        ),
    ),
    Feature(
        name="dead letters",
        commands=(commands.dead_letters.router,),
        queries=(readapi.dead_letters.router, readapi.tasks.router),
    ),
    Feature(
        name="spending",
        queries=(readapi.spending.router,),
    ),
    Feature(
        name="explanations",
        queries=(readapi.explanations.router,),
    ),
    Feature(
        name="callers",
        queries=(readapi.callers.router,),
    ),
    Feature(
        name="revocations",
        aggregates=(Revocations,),
        commands=(commands.revocations.router,),
        queries=(readapi.revocations.router,),
        personal=readapi.revocations.PERSONAL,
    ),
    Feature(
        name="privacy",
        queries=(readapi.privacy.router,),
        jobs=workers.maintenance.retention_jobs,
        settings=(features.PrivacySettings,),
        personal=workers.maintenance.PERSONAL,
    ),
    Feature(
        name="erasure",
        aggregates=(Person,),
        commands=(commands.erasure.router,),
        queries=(readapi.erasure.router,),
        jobs=workers.erasure.jobs,
        checks=(health.erasures,),
        personal=(*engine.persons.PERSONAL, *engine.erasures.PERSONAL),
    ),
    Feature(
        name="published events",
        queries=(readapi.events.router,),
    ),
    Feature(
        name="webhooks",
        aggregates=(Webhooks,),
        commands=(commands.webhooks.router,),
        queries=(readapi.webhooks.router,),
        lookups=workers.webhooks.lookups,
        checks=(health.webhooks,),
        tables=(projections.webhooks.TABLES,),
        subscriptions=workers.webhooks.subscriptions,
        jobs=workers.webhooks.jobs,
        settings=(features.WebhookSettings,),
        personal=projections.webhooks.PERSONAL,
    ),
    Feature(
        name="audit",
        queries=(readapi.audit.routes.router, readapi.audit.seals.router),
        projections=(Audit,),
        jobs=workers.maintenance.sealing_jobs,
        settings=(features.SealSettings,),
        checks=(health.seals,),
        personal=engine.inspection.persons.PERSONAL,
    ),
)

PERSONAL = tuple(place for feature in FEATURES for place in feature.personal)
"""Every place where something about a person is held."""

TABLES = tuple(tables for feature in FEATURES for tables in feature.tables)
"""The tables of all features in the main database that belong to no copy of a projection."""


def read_models() -> ReadModels:
    """Return the projections of all features."""
    return ReadModels(kind for feature in FEATURES for kind in feature.projections)


def replayable() -> frozenset[str]:
    """Return the names of everything that operators replay or rebuild."""
    rebuilt = (name for feature in FEATURES for name in feature.rebuilt)
    return frozenset({*read_models().by_name(), *rebuilt})
