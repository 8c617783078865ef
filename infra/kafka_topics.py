"""How long topics of Kafka keep their messages: what their settings say, and a limit to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import NamedTuple

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, for_code

from infra.cancellation import to_the_end
from infra.errors import describe
from infra.kafka import client_options
from infra.settings.adapters import KafkaSettings

POLICY, RETENTION, SEGMENT = "cleanup.policy", "retention.ms", "segment.ms"
LONGEST_SEGMENT = timedelta(days=1)
"""Kafka deletes whole segments, so that a message may outlive its topic's term by so long."""

UNKNOWN_TOPIC = 3
# Where a setting comes from that is the topic's own; brokers have others for all topics.
OF_TOPIC = 1
# How long a topic that was asked for may take until it is there.
MADE_SECONDS, LOOK_SECONDS = 2.0, 0.1
# The library knows not every version of each request, and not every server has all that Kafka has.
UNAVAILABLE = (KafkaError, TimeoutError, NotImplementedError, LookupError, TypeError, ValueError)


class TopicsUnavailable(Exception):
    """Kafka does not tell how long topics keep messages: it is away, too old, or refuses."""


class TopicSetting(NamedTuple):
    """The value of a setting, and whether it was given to this topic."""

    value: str
    is_own: bool


TopicSettings = Mapping[str, TopicSetting]


def limits(settings: TopicSettings, term: timedelta) -> dict[str, str]:
    """Return the settings that a topic lacks to keep nothing for longer than `term` and a segment.

    Compaction alone keeps the last message of each key for good.
    """
    lacking: dict[str, str] = {}
    if "delete" not in settings[POLICY].value.split(","):
        lacking[POLICY] = "compact,delete"
    for name, longest in ((RETENTION, term), (SEGMENT, min(term, LONGEST_SEGMENT))):
        most = longest // timedelta(milliseconds=1)
        # -1 is for ever.
        if not 0 <= int(settings[name].value) <= most:
            lacking[name] = str(most)
    return lacking


async def find_unlimited(
    kafka: KafkaSettings, topics: Collection[str], term: timedelta, *, seconds: float
) -> dict[str, str]:
    """Return those topics that keep messages for longer, each with the settings by which they do.

    Kafka has so many seconds to answer. Raise TopicsUnavailable.
    """
    async with _administration(kafka, seconds) as admin:
        return _unlimited(await _settings(admin, topics), term)


async def limit_terms(
    kafka: KafkaSettings, topics: Collection[str], term: timedelta, *, seconds: float
) -> dict[str, str]:
    """Have topics keep messages for no longer, and return those that go on to, as above.

    A topic that is not there is made first, where the brokers make those that are used. Each topic
    keeps what else is set for it, and a shorter term. Raise TopicsUnavailable.
    """
    async with _administration(kafka, seconds) as admin:
        found = await _made(admin, topics)
        own = {
            topic: {name: each.value for name, each in settings.items() if each.is_own}
            for topic, settings in found.items()
        }
        changed = {
            topic: own[topic] | lacking
            for topic, settings in found.items()
            if (lacking := limits(settings, term))
        }
        if not changed:
            return {}
        refused = await _change(admin, changed)
        left = _unlimited(await _settings(admin, changed), term)
        return {topic: f"{why}{refused.get(topic, '')}" for topic, why in left.items()}


def _unlimited(found: Mapping[str, TopicSettings], term: timedelta) -> dict[str, str]:
    return {
        topic: ", ".join(f"{name}={settings[name].value}" for name in lacking)
        for topic, settings in found.items()
        if (lacking := limits(settings, term))
    }


@asynccontextmanager
async def _administration(
    kafka: KafkaSettings, seconds: float
) -> AsyncIterator[AIOKafkaAdminClient]:
    """Yield a connection to the brokers; raise TopicsUnavailable for all that goes wrong there."""
    options = client_options(kafka)
    admin = AIOKafkaAdminClient(**options, request_timeout_ms=int(seconds * 1000))
    try:
        async with asyncio.timeout(seconds):
            # Broken off in the middle, the client would leave its first connection open.
            await to_the_end(admin.start())
            yield admin
    except UNAVAILABLE as error:
        raise TopicsUnavailable(describe(error)) from error
    finally:
        await admin.close()


async def _made(admin: AIOKafkaAdminClient, topics: Collection[str]) -> dict[str, TopicSettings]:
    """Return the settings of the topics that are there, or are a moment after they were asked for.

    To ask for a topic is to use it.
    """
    found = await _settings(admin, topics)
    if missing := [topic for topic in topics if topic not in found]:
        await admin.describe_topics(missing)
        until = time.monotonic() + MADE_SECONDS
        while len(found) < len(topics) and time.monotonic() < until:
            await asyncio.sleep(LOOK_SECONDS)
            found = await _settings(admin, topics)
    return found


async def _settings(
    admin: AIOKafkaAdminClient, topics: Collection[str]
) -> dict[str, TopicSettings]:
    """Return all settings of the topics that are there; raise KafkaError."""
    asked = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
    found: dict[str, TopicSettings] = {}
    for answer in await admin.describe_configs(asked):
        if answer.API_VERSION == 0:
            raise NotImplementedError("brokers before 1.1 don't say which settings are a topic's")
        for code, text, _, topic, entries in answer.resources:
            if code == UNKNOWN_TOPIC:
                continue
            if code:
                raise for_code(code)(f"{topic}: {text}")
            found[topic] = {
                name: TopicSetting(value, source == OF_TOPIC)
                for name, value, _, source, *_ in entries
            }
    return found


async def _change(
    admin: AIOKafkaAdminClient, changed: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """Give topics these settings and no others of their own; return what was refused, and why."""
    asked = [
        ConfigResource(ConfigResourceType.TOPIC, topic, dict(settings))
        for topic, settings in changed.items()
    ]
    answers = await admin.alter_configs(asked)
    return {
        topic: f" ({for_code(code).__name__})"
        for answer in answers
        for code, _, _, topic in answer.resources
        if code
    }
