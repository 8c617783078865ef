"""What is decided when a user is forgotten: of the person, and of each thing that is theirs."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest

from commands.erasure import RequestForgetting
from domain.comment import Comment
from domain.errors import NotFound
from domain.person import Person, VideosFate, stream_id
from domain.revocations import STREAM_ID, Revocations
from domain.upload import Status, Upload, Visibility
from engine.command_bus import Aggregates, Slot
from engine.erasures import ErasureStep
from tests.unit.given_when_then import by, fact, given

ROOT, PRIVACY, ANN = by("root"), by("privacy"), by("ann")
PERSON, HEIR = "5f2b9c", "nobody"
VIDEO = UUID("9b1f6f4e-0d57-4d0f-8a3c-52a7f5d1c0ab")
WEEK = timedelta(days=7)

REQUESTED = fact(Person.ForgetRequested, ROOT, person=PERSON, videos="keep")
FORGOTTEN = fact(Person.Forgotten, PRIVACY, person=PERSON, counts={"comments": 3})


def request(person: Person) -> None:
    person.request_forgetting(PERSON, VideosFate.KEEP, ROOT)


def finish(person: Person) -> None:
    person.finish_forgetting(PERSON, {"comments": 3}, PRIVACY)


def test_forgetting_is_requested() -> None:
    assert given(Person).when(request).then(REQUESTED).videos is VideosFate.KEEP


@pytest.mark.parametrize("history", [[REQUESTED], [REQUESTED, FORGOTTEN]])
def test_a_second_request_records_nothing_and_changes_nothing(history: list[object]) -> None:
    def other(person: Person) -> None:
        person.request_forgetting(PERSON, VideosFate.DELETE, by("olga"))

    person = given(Person, *history).when(other).then()  # type: ignore[arg-type]
    assert person.videos is VideosFate.KEEP


def test_who_is_forgotten_is_told_once() -> None:
    assert given(Person, REQUESTED).when(finish).then(FORGOTTEN).counts == {"comments": 3}
    given(Person, REQUESTED, FORGOTTEN).when(finish).then()


def test_nobody_is_forgotten_unasked() -> None:
    given(Person).when(finish).refused(NotFound, "Nobody asked")


def test_each_person_has_a_stream_of_their_own() -> None:
    assert stream_id(PERSON) == stream_id(PERSON) != stream_id("another")


def test_a_request_revokes_the_tokens_once() -> None:
    command = RequestForgetting(PERSON, "ann", VideosFate.DELETE, VIDEO, WEEK)
    slots = {stream: Slot(None) for stream in command.streams()}
    for _ in range(2):
        answer = command.decide(Aggregates(slots), ROOT)
        assert answer.model_dump() == {"user_id": "ann", "status": "forgetting"}
    recorded = [event for slot in slots.values() for event in slot.collect()]
    assert [type(event) for event in recorded] == [Person.ForgetRequested, Revocations.UserRevoked]
    assert {stream_id(PERSON), STREAM_ID} == set(slots)


WRITTEN = {"video_id": VIDEO, "author": PERSON}
POSTED = fact(Comment.Posted, ANN, **WRITTEN, content="hello")
HELD = fact(Comment.Submitted, ANN, **WRITTEN, content="hello", cause="approval", video_owner="bob")
REMOVED = fact(Comment.Removed, by("bob"), **WRITTEN, acted_as="owner", stated_reason=None)
DELETED = fact(Comment.Deleted, PRIVACY, **WRITTEN)
WITHDRAWN = fact(Comment.Withdrawn, PRIVACY, **WRITTEN)


def erase(comment: Comment) -> None:
    comment.erase(PRIVACY)


def test_a_comment_goes_whoever_sees_it() -> None:
    given(Comment, POSTED).when(erase).then(DELETED)
    given(Comment, HELD).when(erase).then(WITHDRAWN)
    given(Comment, POSTED, REMOVED).when(erase).then(WITHDRAWN)


def test_a_comment_goes_once() -> None:
    given(Comment, POSTED, DELETED).when(erase).then()
    given(Comment).when(erase).then()


STARTED = fact(
    Upload.Started,
    ANN,
    owner=PERSON,
    title="Rain",
    filename="rain.mp4",
    content_type="video/mp4",
    size_bytes=1,
    description="Loud",
    category="weather",
    part_size_bytes=1,
    object_key="key",
    store_upload_id="id",
)
COMPLETED = fact(Upload.Completed, ANN, owner=PERSON, size_bytes=1, etag="e", visibility="public")
PRIVATE = fact(Upload.VisibilityChanged, ANN, owner=PERSON, visibility="private")
GONE = fact(Upload.Removed, PRIVACY, owner=PERSON)
DISOWNED = fact(
    Upload.Disowned, PRIVACY, owner=HEIR, title="Rain", filename="rain.mp4", description="Loud"
)


def delete(upload: Upload) -> None:
    upload.erase(PERSON, None, PRIVACY)


def keep(upload: Upload) -> None:
    upload.erase(PERSON, HEIR, PRIVACY)


def test_a_video_is_removed() -> None:
    given(Upload, STARTED, COMPLETED).when(delete).then(GONE)
    given(Upload, STARTED, COMPLETED, GONE).when(delete).then()


def test_a_video_that_is_kept_belongs_to_nobody_with_all_its_texts() -> None:
    upload = given(Upload, STARTED, COMPLETED).when(keep).then(DISOWNED)
    assert (upload.owner, upload.category, upload.status) == (HEIR, "weather", Status.COMPLETED)
    # Later deeds of its moderators say whose it is.
    given(Upload, STARTED, COMPLETED, DISOWNED).when(keep).then()


def test_a_private_video_is_kept_for_nobody() -> None:
    upload = given(Upload, STARTED, COMPLETED, PRIVATE).when(keep).then(GONE)
    assert upload.visibility is Visibility.PRIVATE


def test_a_video_whose_title_nobody_can_read_is_not_kept() -> None:
    # A restored database forgets the key at its start, and the rest afterwards.
    unread = fact(Upload.Started, ANN, **{**STARTED.fields, "title": "", "filename": ""})
    given(Upload, unread, COMPLETED).when(keep).then(GONE)


@pytest.mark.parametrize("how", [delete, keep])
def test_what_is_under_way_is_given_up(how: object) -> None:
    aborted = fact(Upload.Aborted, PRIVACY, owner=PERSON)
    given(Upload, STARTED).when(how).then(aborted)  # type: ignore[arg-type]
    given(Upload, STARTED, aborted).when(how).then()  # type: ignore[arg-type]
    given(Upload).when(how).then()  # type: ignore[arg-type]


def test_steps_follow_each_other_to_the_last() -> None:
    steps = [ErasureStep.REQUEST]
    while steps[-1].following is not steps[-1]:
        steps.append(steps[-1].following)
    assert steps == list(ErasureStep)
    # What needs the texts comes before the key is destroyed, and what might read them after.
    assert (
        steps.index(ErasureStep.TEXTS)
        < steps.index(ErasureStep.KEY)
        < steps.index(ErasureStep.PLACES)
    )
