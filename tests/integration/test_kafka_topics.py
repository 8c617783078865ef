"""Topics keep texts for no longer than their term: looked at, limited, and told where not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from infra.kafka_topics import (
    TopicSetting,
    TopicsUnavailable,
    find_unlimited,
    limit_terms,
    limits,
)
from infra.metrics import value
from infra.settings.adapters import KafkaSettings
from projections.integration_events import topics_with_texts
from tests.kafka_cluster import kafka_cluster
from tests.kafka_topics import DEFAULTS, TopicBroker, topic_broker
from tests.support import ended, until
from workers import relay
from workers.relay import keep_terms

WEEK, HOUR = timedelta(days=7), timedelta(hours=1)
WEEK_MS, DAY_MS, HOUR_MS = "604800000", "86400000", "3600000"
BY_DEFAULT = {"segment.ms": DAY_MS}
OWN = {
    "comment.created": {"retention.ms": "-1", "max.message.bytes": "2000000"},
    "comment.edited": {"cleanup.policy": "compact"},
    "video.shared": {"retention.ms": HOUR_MS, "segment.ms": HOUR_MS},
}
LIMITED = {
    **dict.fromkeys(topics_with_texts(), BY_DEFAULT),
    "comment.created": {
        "retention.ms": WEEK_MS, "max.message.bytes": "2000000", "segment.ms": DAY_MS,
    },
    "comment.edited": {"cleanup.policy": "compact,delete", "segment.ms": DAY_MS},
    "video.shared": OWN["video.shared"],
}  # fmt: skip
TOO_LONG = {
    "comment.created": f"retention.ms=-1, segment.ms={WEEK_MS}",
    "comment.edited": f"cleanup.policy=compact, segment.ms={WEEK_MS}",
}


def settings(servers: str) -> KafkaSettings:
    return KafkaSettings(KAFKA_BOOTSTRAP_SERVERS=(servers,))


@pytest.fixture
def broker() -> Iterator[TopicBroker]:
    with topic_broker(OWN) as started:
        yield started


def unlimited(broker: TopicBroker) -> dict[str, str]:
    asked = settings(broker.bootstrap_servers)
    return asyncio.run(find_unlimited(asked, topics_with_texts(), WEEK, seconds=30))


def limited(broker: TopicBroker, term: timedelta = WEEK) -> dict[str, str]:
    asked = settings(broker.bootstrap_servers)
    return asyncio.run(limit_terms(asked, topics_with_texts(), term, seconds=30))


@pytest.mark.parametrize(
    ("own", "lacking"),
    [
        ({"segment.ms": DAY_MS}, {}),
        ({}, {"segment.ms": DAY_MS}),
        ({"segment.ms": "1000", "retention.ms": "1000"}, {}),
        ({"segment.ms": "1000", "retention.ms": "-1"}, {"retention.ms": WEEK_MS}),
        ({"segment.ms": "1000", "retention.ms": "604800001"}, {"retention.ms": WEEK_MS}),
        ({"segment.ms": "1", "cleanup.policy": "compact"}, {"cleanup.policy": "compact,delete"}),
        ({"segment.ms": "1", "cleanup.policy": "compact,delete"}, {}),
        ({"segment.ms": "1", "cleanup.policy": "delete,compact"}, {}),
    ],
)
def test_what_a_topic_lacks(own: Mapping[str, str], lacking: Mapping[str, str]) -> None:
    known = {name: TopicSetting(each, name in own) for name, each in {**DEFAULTS, **own}.items()}
    assert limits(known, WEEK) == lacking


def test_a_term_that_is_shorter_than_a_day_holds_for_segments_too() -> None:
    known = {name: TopicSetting(each, is_own=False) for name, each in DEFAULTS.items()}
    assert limits(known, HOUR) == {"retention.ms": HOUR_MS, "segment.ms": HOUR_MS}


def test_to_look_changes_nothing(broker: TopicBroker) -> None:
    assert unlimited(broker) == TOO_LONG
    assert broker.topics == OWN


def test_topics_with_texts_are_made_and_limited_and_keep_their_other_settings(
    broker: TopicBroker,
) -> None:
    assert limited(broker) == {}
    assert broker.topics == LIMITED
    assert unlimited(broker) == {}


def test_topics_that_nobody_makes_hold_nothing(broker: TopicBroker) -> None:
    broker.makes_topics = False
    assert limited(broker) == {}
    assert broker.topics == {topic: LIMITED[topic] for topic in OWN}


def test_a_refusal_is_told(broker: TopicBroker) -> None:
    broker.takes_settings = False
    told = limited(broker)
    refused = " (TopicAuthorizationFailedError)"
    assert told.items() >= {topic: why + refused for topic, why in TOO_LONG.items()}.items()
    assert told.keys() == set(topics_with_texts()) - {"video.shared"}


def test_brokers_that_know_no_settings_or_are_away_say_nothing(free_port: int) -> None:
    with kafka_cluster() as cluster:
        for servers in (cluster.bootstrap_servers, f"127.0.0.1:{free_port}"):
            asked = find_unlimited(settings(servers), ["comment.created"], WEEK, seconds=30)
            with pytest.raises(TopicsUnavailable):
                asyncio.run(asked)


def test_the_relay_limits_topics_that_come_to_be(
    broker: TopicBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "TERMS_SECONDS", 0.01)

    async def keep() -> None:
        kept = asyncio.create_task(keep_terms(settings(broker.bootstrap_servers)))
        await until(lambda: broker.topics == LIMITED)
        broker.topics["comment.created"]["retention.ms"] = "-1"
        await until(lambda: broker.topics == LIMITED)
        await ended(kept)

    asyncio.run(keep())


def test_the_relay_tells_of_topics_that_it_can_not_limit(
    broker: TopicBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "TERMS_SECONDS", 0.01)
    monkeypatch.setattr(relay, "AGAIN_SECONDS", 0.01)
    broker.takes_settings = False

    async def keep(servers: str, too_many: int) -> None:
        kept = asyncio.create_task(keep_terms(settings(servers)))
        await until(lambda: value("backlot_topics_kept_too_long") == too_many)
        await ended(kept)
        assert value("backlot_topics_kept_too_long") == 0

    with capture_logs() as told, kafka_cluster() as cluster:
        asyncio.run(keep(broker.bootstrap_servers, len(topics_with_texts()) - 1))
        asyncio.run(keep(cluster.bootstrap_servers, len(topics_with_texts())))
    events = {(line["event"], line.get("topic")) for line in told}
    assert ("topic_kept_too_long", "comment.created") in events
    assert ("topic_terms_unknown", None) in events
