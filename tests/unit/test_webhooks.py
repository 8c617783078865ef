"""Webhooks: what is decided about them, how deliveries are signed, and whom one may call."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Any
from uuid import UUID, uuid4

import pytest

from domain.errors import Conflict, Invalid, NotFound
from domain.model import Origin
from domain.webhooks import (
    MAX_OVERLAP,
    MOST_SECRETS,
    MOST_WEBHOOKS,
    STREAM_ID,
    DisabledBecause,
    Webhooks,
)
from infra.http.outbound_rules import INTERNET, OutboundRules, UrlRefused
from infra.standard_webhooks import derive_secret, show_secret, signed_headers
from projections.webhooks import Attempt, DeliveryStatus, WaitingDelivery, digest_of
from workers.webhook_queue import DeliveryQueue

NOW = datetime(2026, 11, 30, tzinfo=UTC)
ORIGIN = Origin("olga", NOW, "correlation", "causation")
URL, TOPICS, ID = "https://hooks.example.org/", frozenset(("video.liked",)), uuid4()


def added(webhooks: Webhooks | None = None, id_: UUID = ID) -> Webhooks:
    webhooks = webhooks or Webhooks.blank(STREAM_ID)
    webhooks.add(id_, URL, TOPICS, uuid4(), None, ORIGIN)
    return webhooks


def recorded(webhooks: Webhooks) -> list[str]:
    return [type(event).__name__ for event in webhooks.collect_events()]


class TestDecisions:
    def test_what_is_so_already_records_nothing(self) -> None:
        webhooks = added()
        added(webhooks)
        webhooks.change(ID, URL, None, ORIGIN)
        webhooks.disable(ID, DisabledBecause.ASKED, ORIGIN)
        webhooks.disable(ID, DisabledBecause.GONE, ORIGIN)
        secret = uuid4()
        for _ in range(2):
            webhooks.rotate(ID, secret, timedelta(days=1), ORIGIN)
        assert recorded(webhooks) == ["Added", "Disabled", "SecretRotated"]
        assert webhooks.get(ID).disabled is DisabledBecause.ASKED

    def test_enabling_is_always_recorded_since_it_makes_due_what_waits(self) -> None:
        webhooks = added()
        webhooks.enable(ID, ORIGIN)
        assert recorded(webhooks) == ["Added", "Enabled"]

    def test_there_is_an_end_to_how_many_there_are(self) -> None:
        webhooks = Webhooks.blank(STREAM_ID)
        for _ in range(MOST_WEBHOOKS):
            added(webhooks, uuid4())
        with pytest.raises(Conflict):
            added(webhooks, uuid4())

    @pytest.mark.parametrize(
        ("url", "topics"), [("", TOPICS), ("https://a b/", TOPICS), (URL, frozenset())]
    )
    def test_what_makes_no_sense_is_refused(self, url: str, topics: frozenset[str]) -> None:
        with pytest.raises(Invalid):
            Webhooks.blank(STREAM_ID).add(ID, url, topics, uuid4(), None, ORIGIN)
        with pytest.raises(Invalid):
            added().rotate(ID, uuid4(), MAX_OVERLAP + timedelta(seconds=1), ORIGIN)

    def test_of_what_is_not_there_nothing_is_decided(self) -> None:
        webhooks, nobody = added(), uuid4()
        webhooks.remove(ID, ORIGIN)
        for decide in (
            lambda: webhooks.remove(ID, ORIGIN),
            lambda: webhooks.change(nobody, URL, None, ORIGIN),
            lambda: webhooks.enable(nobody, ORIGIN),
            lambda: webhooks.test(nobody, uuid4(), ORIGIN),
            lambda: webhooks.skip(nobody, 1, True, ORIGIN),
            lambda: webhooks.repeat(nobody, 1, False, ORIGIN),
        ):
            with pytest.raises(NotFound):
                decide()

    def test_only_what_waits_is_skipped_and_only_what_does_not_repeated(self) -> None:
        webhooks = added()
        for decide, waits in ((webhooks.skip, True), (webhooks.repeat, False)):
            before = len(webhooks.pending_events)
            with pytest.raises(NotFound):
                decide(ID, 1, None, ORIGIN)
            with pytest.raises(Conflict):
                decide(ID, 1, not waits, ORIGIN)
            assert len(webhooks.pending_events) == before
            decide(ID, 1, waits, ORIGIN)
            assert len(webhooks.pending_events) == before + 1

    def test_secrets_overlap_as_long_as_was_said_and_not_longer(self) -> None:
        webhooks = added()
        first = webhooks.get(ID).secrets[0].id
        second, third = uuid4(), uuid4()
        webhooks.rotate(ID, second, timedelta(hours=2), ORIGIN)
        # A later rotation lengthens nothing.
        webhooks.rotate(ID, third, timedelta(hours=5), ORIGIN)

        def signing(hours: float) -> list[UUID]:
            return [each.id for each in webhooks.get(ID).signing(NOW + timedelta(hours=hours))]

        assert signing(1) == [third, second, first]
        assert signing(2) == [third, second]
        assert signing(5) == [third]
        for _ in range(10):
            webhooks.rotate(ID, uuid4(), timedelta(days=1), ORIGIN)
        assert len(webhooks.get(ID).secrets) == MOST_SECRETS


class TestSignatures:
    # The example of the reference implementations.
    SECRET = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

    def test_they_are_those_of_the_specification(self) -> None:
        from base64 import b64decode

        secret, body = b64decode(self.SECRET), b'{"test": 2432232314}'
        headers = signed_headers([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
        assert headers == {
            "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "webhook-timestamp": "1614265330",
            "webhook-signature": self.SIGNATURE,
        }
        assert show_secret(secret) == f"whsec_{self.SECRET}"
        two = signed_headers([secret, b"other"], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
        assert two["webhook-signature"].split(" ")[0] == self.SIGNATURE
        assert len(two["webhook-signature"].split(" ")) == 2

    def test_secrets_differ_by_key_and_id_and_are_always_the_same(self) -> None:
        ids = uuid4(), uuid4()
        secrets = {derive_secret(key, each) for key in (b"a", b"b") for each in ids}
        assert len(secrets) == 4
        assert {len(each) for each in secrets} == {32}
        assert derive_secret(b"a", ids[0]) in secrets


NOT_PUBLIC = (
    *("0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.31.255.255"),
    *("192.0.0.170", "192.168.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::10.0.0.1"),
    *("64:ff9b:1::1", "fe80::1", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "2001:db8::1"),
    *("2002:7f00:1::", "2001:0:7f00:1::", "100::1", "3fff::1"),
)
PUBLIC = ("8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2606:4700:4700::1111", "192.0.1.1")


class TestWhomOneMayCall:
    @pytest.mark.parametrize("address", NOT_PUBLIC)
    def test_nobody_within(self, address: str) -> None:
        assert not INTERNET.allow(ip_address(address))
        host = f"[{address}]" if ":" in address else address
        with pytest.raises(UrlRefused):
            INTERNET.check_url(f"https://{host}/")

    @pytest.mark.parametrize("address", PUBLIC)
    def test_anybody_outside(self, address: str) -> None:
        assert INTERNET.allow(ip_address(address))

    def test_what_is_allowed_may_be_called_in_each_form(self) -> None:
        rules = OutboundRules(networks=(ip_network("10.0.0.0/8"),))
        for address in ("10.0.0.1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1"):
            assert rules.allow(ip_address(address))
        assert not rules.allow(ip_address("127.0.0.1"))

    @pytest.mark.parametrize(
        "url",
        [
            *("http://example.org/", "ftp://example.org/", "example.org", "https:///x", ""),
            *(
                "https://2130706433/",
                "https://0x7f000001/",
                "https://0177.0.0.1/",
                "https://127.1/",
            ),
            *("https://me@example.org/", "https://example.org/#part", "https://example.org:0/"),
            *("https://example.org:99999/", "https://exa mple.org/", "https://[fe80::1%25eth0]/"),
            *("https://[::1/", "https://-a.example.org/", "https://a..example.org/"),
        ],
    )
    def test_urls_that_mean_something_else_are_refused(self, url: str) -> None:
        with pytest.raises(UrlRefused):
            INTERNET.check_url(url)

    def test_usual_urls_are_taken(self) -> None:
        for url in ("https://example.org", "https://a_b.example.org:8443/x?y=z", "https://8.8.8.8"):
            INTERNET.check_url(url)
        OutboundRules(allow_http=True).check_url("http://example.org/")


class TestQueue:
    def rows(self, *keys: str, **changes: Any) -> list[WaitingDelivery]:
        given: dict[str, Any] = {"attempts": 0, "due_at": NOW, **changes}
        return [
            WaitingDelivery(
                number, "events", number, "video.liked", uuid4(), digest_of(key), NOW, **given
            )
            for number, key in enumerate(keys, 1)
        ]

    def queue(self, *keys: str) -> DeliveryQueue:
        queue = DeliveryQueue(added().get(ID), {"events": 0, "telemetry": 0})
        queue.add(self.rows(*keys))
        return queue

    def taken(self, queue: DeliveryQueue) -> list[int]:
        found = []
        while (row := queue.take(NOW)) is not None:
            found.append(row.delivery_id)
        return found

    def test_one_of_each_key_is_under_way(self) -> None:
        queue = self.queue("a", "b", "a", "b", "c")
        assert self.taken(queue) == [1, 2, 5]

    def test_the_next_of_a_key_follows_what_was_settled(self) -> None:
        queue = self.queue("a", "a", "b")
        first = queue.take(NOW)
        assert first is not None
        done = Attempt(1, DeliveryStatus.DELIVERED, 1, NOW, 200, None)
        queue.settle(first, done)
        assert self.taken(queue) == [2, 3]
        assert queue.count == 2

    def test_what_failed_waits_with_its_key(self) -> None:
        queue = self.queue("a", "a", "b")
        first, later = queue.take(NOW), NOW + timedelta(minutes=5)
        assert first is not None
        queue.settle(first, Attempt(1, DeliveryStatus.WAITING, 1, later, 500, None))
        assert self.taken(queue) == [3]
        assert queue.next_due() == later
        again = queue.take(later)
        assert again is not None
        assert (again.delivery_id, again.attempts) == (1, 1)

    def test_what_was_skipped_meanwhile_does_not_take_another_along(self) -> None:
        queue = self.queue("a", "a")
        first = queue.take(NOW)
        assert first is not None
        anew = DeliveryQueue(queue.webhook, {}, queue.running)
        anew.add(self.rows("a", "a")[1:])
        assert self.taken(anew) == []
        anew.settle(first, Attempt(1, DeliveryStatus.DELIVERED, 1, NOW, 200, None))
        assert self.taken(anew) == [2]
