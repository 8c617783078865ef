"""How Kafka is reached, and which partition a key gets."""

from __future__ import annotations

import pytest
from aiokafka.partitioner import DefaultPartitioner

from engine.messages import DeadMessage, RawMessage, Unreadable
from infra.kafka import client_options, partition_of
from infra.settings import load_settings
from workers.sources import dead_letter, parse

SECURE = {
    "KAFKA_BOOTSTRAP_SERVERS": "one:9092,two:9092",
    "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
    "KAFKA_SASL_USERNAME": "backlot",
    "KAFKA_SASL_PASSWORD": "a secret",
}


def test_without_servers_there_is_no_kafka() -> None:
    assert not load_settings({}).kafka.configured


def test_what_is_configured_reaches_the_client() -> None:
    options = load_settings(SECURE).kafka
    assert options.configured
    told = client_options(options)
    assert told["bootstrap_servers"] == ["one:9092", "two:9092"]
    assert (told["security_protocol"], told["sasl_mechanism"]) == ("SASL_SSL", "SCRAM-SHA-512")
    assert (told["sasl_plain_username"], told["sasl_plain_password"]) == ("backlot", "a secret")
    assert told["ssl_context"] is not None
    assert "a secret" not in repr(options)


def test_in_the_clear_nothing_is_encrypted() -> None:
    assert client_options(load_settings({}).kafka)["ssl_context"] is None


@pytest.mark.parametrize("partitions", [1, 4, 12])
def test_a_key_gets_the_partition_that_other_clients_give_it(partitions: int) -> None:
    every = list(range(partitions))
    for key in (b"", b"k", b"\x00\xff", *(f"key-{number}".encode() for number in range(200))):
        assert partition_of(key, every, every) == DefaultPartitioner()(key, every, every)


def test_without_a_key_an_available_partition_is_taken() -> None:
    assert partition_of(None, [0, 1, 2], [1]) == 1
    assert partition_of(None, [0], []) == 0


def test_a_reason_does_not_repeat_what_somebody_wrote() -> None:
    value = b'{"id": "my secret text"}'
    with pytest.raises(Unreadable) as told:
        parse(
            RawMessage("comment.created", ("comment.created", 0), 1, "k", value, {"position": "1"})
        )
    assert "id: " in str(told.value)
    assert "secret" not in str(told.value)


def test_a_dead_letter_keeps_the_message() -> None:
    raw = RawMessage("video.liked", ("video.liked", 3), 9, "k", b"{", {"ce_id": "x"})
    letter = dead_letter("tasks", DeadMessage(raw, "no JSON"))
    assert (letter.topic, letter.key, letter.value) == ("video.liked.dlq", b"k", b"{")
    assert dict(letter.headers) == {
        "ce_id": b"x",
        "dlq-reason": b"no JSON",
        "dlq-consumer": b"tasks",
        "dlq-topic": b"video.liked",
        "dlq-partition": b"3",
        "dlq-offset": b"9",
    }
