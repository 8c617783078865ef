"""What is published, and what is delivered."""

from __future__ import annotations

from uuid import UUID

import pytest
from backlot_client import InvalidSignature, Problem, verify_webhook

from .conftest import MakeClient


def test_a_service_reads_on_from_where_it_was(client: MakeClient, video_id: UUID) -> None:
    bob, service = client("bob"), client("service")
    bob.like(video_id)
    begin = bob.position
    bob.comment(video_id, "First")
    bob.comment(video_id, "Second")
    pages = service.published(after=begin, topics=["comment.created"], limit=1, wait=0)
    found = [page for page in pages if page.events]
    assert [page.events[0].data["content"] for page in found] == ["First", "Second"]
    (again,) = [
        page
        for page in service.published(after=found[0].position, topics=["comment.created"], wait=0)
        if page.events
    ]
    assert [each.id for each in again.events] == [found[1].events[0].id]
    waiting = service.published(after=found[1].position, topics=["video.unliked"])
    bob.unlike(video_id)
    page = next(page for page in waiting if page.events)
    assert page.events[0].data["videoId"] == str(video_id)
    with pytest.raises(Problem) as caught:
        next(bob.published())
    assert caught.value.type == "forbidden"


# The example of the reference implementations of Standard Webhooks, and another secret.
SECRET, OTHER = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_AAAA"
BODY, SENT_AT = b'{"test": 2432232314}', 1614265330
HEADERS = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": str(SENT_AT),
    "webhook-signature": "v1,AAAA v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}


@pytest.mark.parametrize("secret", [SECRET, [OTHER, SECRET]])
@pytest.mark.parametrize("late", [-299, 0, 299])
def test_a_delivery_is_proved(secret: str | list[str], late: int) -> None:
    capitals = {name.title(): value for name, value in HEADERS.items()}
    for headers in (HEADERS, capitals):
        event = verify_webhook(secret, headers, BODY, now=SENT_AT + late)
        assert event == {"test": 2432232314}


@pytest.mark.parametrize(
    ("secret", "changed", "body", "late"),
    [
        (OTHER, {}, BODY, 0),
        (SECRET, {}, BODY + b" ", 0),
        (SECRET, {}, BODY, 301),
        (SECRET, {}, BODY, -301),
        (SECRET, {"webhook-id": "another"}, BODY, 0),
        (SECRET, {"webhook-timestamp": str(SENT_AT + 1)}, BODY, 0),
        (SECRET, {"webhook-timestamp": "now"}, BODY, 0),
        (SECRET, {"webhook-signature": "v1,\u00e4"}, BODY, 0),
        (SECRET, {"webhook-signature": ""}, BODY, 0),
    ],
)
def test_a_delivery_of_somebody_else_is_refused(
    secret: str, changed: dict[str, str], body: bytes, late: int
) -> None:
    with pytest.raises(InvalidSignature):
        verify_webhook(secret, {**HEADERS, **changed}, body, now=SENT_AT + late)
