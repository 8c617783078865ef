"""What an upload, and the video that it becomes, admits and refuses."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from domain.errors import Conflict, Invalid, NotAllowed, NotFound
from domain.upload import (
    MAX_PARTS,
    MAX_TRANSCRIPT,
    MEBIBYTE,
    Status,
    Upload,
    object_key,
    part_layout,
)
from tests.real_inputs import RealInput, each
from tests.unit.given_when_then import AT, STREAM, Fact, by, fact, given

ANN, BOB, SYSTEM = by("ann"), by("bob"), by("housekeeping")
SIZE = 12 * MEBIBYTE
DETAILS: dict[str, Any] = {
    "title": "Rain",
    "filename": "rain.mp4",
    "content_type": "video/mp4",
    "size_bytes": SIZE,
    "description": None,
    "category": "nature",
    "part_size_bytes": 5 * MEBIBYTE,
    "object_key": object_key(STREAM),
    "store_upload_id": "store-1",
}
CHANGED: dict[str, Any] = {"title": "Storm", "description": "Loud.", "category": None}

STARTED = fact(Upload.Started, ANN, owner="ann", **DETAILS)
COMPLETED = fact(Upload.Completed, ANN, owner="ann", size_bytes=SIZE, etag='"e"')
ABORTED = fact(Upload.Aborted, ANN, owner="ann")
EXPIRED = fact(Upload.Expired, SYSTEM, owner="ann")
CHANGED_DETAILS = fact(Upload.DetailsChanged, BOB, owner="ann", **CHANGED)
SPEECH: dict[str, Any] = {
    "spoken_language": "es",
    "transcript": "Llueve.",
    "duration_seconds": 61.5,
    "model": "whisper/base",
}
HEARD = fact(Upload.SpeechTranscribed, SYSTEM, owner="ann", **SPEECH)
REMOVED = fact(Upload.Removed, BOB, owner="ann")

HISTORIES: dict[str, tuple[Fact, ...]] = {
    "unknown": (),
    "started": (STARTED,),
    "completed": (STARTED, COMPLETED),
    "aborted": (STARTED, ABORTED),
    "expired": (STARTED, EXPIRED),
    "removed": (STARTED, COMPLETED, REMOVED),
}


def start(**changes: Any) -> Any:
    return lambda upload: upload.start(ANN, **{**DETAILS, **changes})


def complete(upload: Upload) -> None:
    upload.complete(SIZE, '"e"', ANN)


def abort(upload: Upload) -> None:
    upload.abort(ANN)


def transcribe(**changes: Any) -> Any:
    return lambda upload: upload.transcribe(origin=SYSTEM, **{**SPEECH, **changes})


def remove(upload: Upload) -> None:
    upload.remove(BOB)


def change(upload: Upload) -> None:
    upload.change_details(BOB, **CHANGED)


def change_to(**changes: Any) -> Any:
    return lambda upload: upload.change_details(BOB, **{**CHANGED, **changes})


class TestStart:
    def test_the_actor_becomes_the_owner(self) -> None:
        upload = given(Upload).when(start()).then(STARTED)
        assert (upload.owner, upload.status, upload.started_at) == ("ann", Status.STARTED, AT)
        assert (upload.title, upload.category, upload.size_bytes) == ("Rain", "nature", SIZE)
        assert (upload.object_key, upload.store_upload_id) == (f"videos/{STREAM}", "store-1")

    @pytest.mark.parametrize("state", [name for name in HISTORIES if name != "unknown"])
    def test_starting_what_is_known_records_nothing(self, state: str) -> None:
        given(Upload, *HISTORIES[state]).when(start(title="Other")).then()

    @pytest.mark.parametrize(
        ("field", "value", "message", "named"),
        [
            ("title", " \t", "`title` needs some text", "title"),
            ("title", "x" * 201, "at most 200 characters; this one has 201", "title"),
            ("title", "a\x00b", "NUL", "title"),
            ("filename", "", "`filename` needs", "filename"),
            ("filename", "x" * 256, "at most 255", "filename"),
            ("description", "x" * 5_001, "at most 5000", "description"),
            ("category", "", "`category` needs", "category"),
            ("category", "x" * 51, "at most 50", "category"),
            ("content_type", "text/html", r"video/… or audio/…", "contentType"),
            ("content_type", "video/mp4\r\nX: y", r"video/… or audio/…", "contentType"),
            ("content_type", "video/", r"video/… or audio/…", "contentType"),
        ],
    )
    def test_refuses(self, field: str, value: str, message: str, named: str) -> None:
        given(Upload).when(start(**{field: value})).refused(Invalid, message, field=named)

    @each("texts")
    def test_texts_that_show_nothing(self, real: RealInput) -> None:
        for field in ("title", "category", "filename"):
            started = given(Upload).when(start(**{field: real.text}))
            if real.right == "nothing":
                started.refused(Invalid, "text that can be seen", field=field)
            else:
                expected = {**DETAILS, field: real.text}
                started.then(fact(Upload.Started, ANN, owner="ann", **expected))

    @each("texts", "nothing")
    def test_details_change_to_nothing_unseen(self, real: RealInput) -> None:
        for field in ("title", "category"):
            changed = given(Upload, STARTED, COMPLETED).when(change_to(**{field: real.text}))
            changed.refused(Invalid, "text that can be seen", field=field)

    @each("media_types")
    def test_films_only(self, real: RealInput) -> None:
        started = given(Upload).when(start(content_type=real.text))
        if real.right == "refused":
            started.refused(Invalid, "`contentType` has to be", field="contentType")
        else:
            expected = {**DETAILS, "content_type": real.text}
            started.then(fact(Upload.Started, ANN, owner="ann", **expected))

    @pytest.mark.parametrize(
        "changes",
        [
            {"title": "x" * 200},
            {"description": ""},
            {"description": "x" * 5_000, "category": None},
            {"content_type": "audio/x-matroska"},
        ],
    )
    def test_admits_the_limits(self, changes: dict[str, Any]) -> None:
        expected = fact(Upload.Started, ANN, owner="ann", **{**DETAILS, **changes})
        given(Upload).when(start(**changes)).then(expected)


class TestEnd:
    def test_complete(self) -> None:
        upload = given(Upload, STARTED).when(complete).then(COMPLETED)
        assert (upload.status, upload.etag, upload.completed_at) == (Status.COMPLETED, '"e"', AT)

    def test_completing_again_records_nothing(self) -> None:
        again = given(Upload, STARTED, COMPLETED).when(lambda u: u.complete(1, '"f"', BOB))
        assert again.then().etag == '"e"'

    def test_abort(self) -> None:
        assert given(Upload, STARTED).when(abort).then(ABORTED).status is Status.ABORTED

    def test_aborting_again_records_nothing(self) -> None:
        given(Upload, STARTED, ABORTED).when(abort).then()

    def test_expire(self) -> None:
        upload = given(Upload, STARTED).when(lambda u: u.expire(SYSTEM)).then(EXPIRED)
        assert upload.status is Status.EXPIRED

    @pytest.mark.parametrize("state", [name for name in HISTORIES if name != "started"])
    def test_only_a_started_upload_expires(self, state: str) -> None:
        given(Upload, *HISTORIES[state]).when(lambda u: u.expire(SYSTEM)).then()

    @pytest.mark.parametrize("state", ["aborted", "expired"])
    def test_no_completion_after_an_end(self, state: str) -> None:
        refusal = f"The upload is {state}, so it can't be completed"
        given(Upload, *HISTORIES[state]).when(complete).refused(
            Conflict, refusal, uploadStatus=state
        )

    @pytest.mark.parametrize("state", ["completed", "expired"])
    def test_no_abort_after_an_end(self, state: str) -> None:
        refusal = f"The upload is {state}, so it can't be aborted"
        given(Upload, *HISTORIES[state]).when(abort).refused(Conflict, refusal, uploadStatus=state)

    @pytest.mark.parametrize("command", [complete, abort])
    @pytest.mark.parametrize("state", ["unknown", "removed"])
    def test_what_is_not_there_can_not_end(self, state: str, command: Any) -> None:
        given(Upload, *HISTORIES[state]).when(command).refused(NotFound, "no such upload")


class TestVideo:
    def test_change_details(self) -> None:
        video = given(Upload, STARTED, COMPLETED).when(change).then(CHANGED_DETAILS)
        assert (video.title, video.description, video.category) == ("Storm", "Loud.", None)
        assert video.owner == "ann"

    def test_the_same_details_record_nothing(self) -> None:
        given(Upload, STARTED, COMPLETED, CHANGED_DETAILS).when(change).then()

    @pytest.mark.parametrize("field", ["title", "description", "category"])
    def test_refuses_bad_details(self, field: str) -> None:
        given(Upload, STARTED, COMPLETED).when(
            lambda video: video.change_details(BOB, **{**CHANGED, field: "x" * 5_001})
        ).refused(Invalid, f"`{field}` has at most", field=field)

    def test_remove(self) -> None:
        removed = given(Upload, STARTED, COMPLETED).when(remove).then(REMOVED)
        assert removed.status is Status.REMOVED

    @pytest.mark.parametrize("command", [change, remove, Upload.require_video])
    @pytest.mark.parametrize("state", [name for name in HISTORIES if name != "completed"])
    def test_only_a_completed_upload_is_a_video(self, state: str, command: Any) -> None:
        given(Upload, *HISTORIES[state]).when(command).refused(NotFound, "no such video")

    @pytest.mark.parametrize("state", [n for n in HISTORIES if n not in ("unknown", "removed")])
    def test_its_uploader_can_look_at_it(self, state: str) -> None:
        given(Upload, *HISTORIES[state]).when(lambda u: u.require_known()).then()
        given(Upload, *HISTORIES[state]).when(lambda u: u.require_owner("ann")).then()

    def test_it_belongs_to_its_owner(self) -> None:
        given(Upload, STARTED).when(lambda u: u.require_owner("bob")).refused(
            NotAllowed, "belongs to another user"
        )


class TestSpeech:
    def test_what_is_said(self) -> None:
        video = given(Upload, STARTED, COMPLETED).when(transcribe()).then(HEARD)
        assert (video.spoken_language, video.duration_seconds) == ("es", 61.5)

    def test_a_second_hearing_records_nothing(self) -> None:
        given(Upload, STARTED, COMPLETED, HEARD).when(transcribe(transcript="Else")).then()

    def test_another_model_hears_anew(self) -> None:
        again = fact(Upload.SpeechTranscribed, SYSTEM, owner="ann", **{**SPEECH, "model": "large"})
        given(Upload, STARTED, COMPLETED, HEARD).when(transcribe(model="large")).then(again)

    @pytest.mark.parametrize("history", ["unknown", "started", "aborted", "expired", "removed"])
    def test_only_of_a_video(self, history: str) -> None:
        given(Upload, *HISTORIES[history]).when(transcribe()).then()

    def test_a_long_transcript_is_cut(self) -> None:
        cut = {**SPEECH, "transcript": "x" * MAX_TRANSCRIPT}
        given(Upload, STARTED, COMPLETED).when(
            transcribe(transcript="x" * (MAX_TRANSCRIPT + 1))
        ).then(fact(Upload.SpeechTranscribed, SYSTEM, owner="ann", **cut))


class TestParts:
    def test_an_object_key_belongs_to_one_upload(self) -> None:
        assert object_key(UUID(int=1)) != object_key(UUID(int=2))

    @pytest.mark.parametrize(
        ("size", "preferred", "expected"),
        [
            (1, 5 * MEBIBYTE, (5 * MEBIBYTE, 1)),
            (10 * MEBIBYTE, 5 * MEBIBYTE, (5 * MEBIBYTE, 2)),
            (10 * MEBIBYTE + 1, 5 * MEBIBYTE, (5 * MEBIBYTE, 3)),
            (50_000 * MEBIBYTE, 5 * MEBIBYTE, (5 * MEBIBYTE, 10_000)),
            (50_000 * MEBIBYTE + 1, 5 * MEBIBYTE, (6 * MEBIBYTE, 8_334)),
        ],
    )
    def test_layout(self, size: int, preferred: int, expected: tuple[int, int]) -> None:
        assert part_layout(size, preferred) == expected

    @for_all(st.integers(1, 50 * 1024**4), st.integers(MEBIBYTE, 1024 * MEBIBYTE))
    def test_no_size_needs_too_many_or_loses_a_byte(self, size: int, preferred: int) -> None:
        part_bytes, count = part_layout(size, preferred)
        upload = Upload.blank(STREAM)
        upload.start(ANN, **{**DETAILS, "size_bytes": size, "part_size_bytes": part_bytes})
        assert upload.part_count == count <= MAX_PARTS
        assert part_bytes >= preferred
        assert all(upload.part_bytes(number) == part_bytes for number in range(1, count))
        assert 0 < upload.part_bytes(count) <= part_bytes
        assert (count - 1) * part_bytes + upload.part_bytes(count) == size
