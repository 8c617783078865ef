"""`backlot upload` after an interruption: what is remembered, and what is sent again."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from tests.unit.fake_uploads import CONTENT, FakeUploads, problem
from tests.unit.upload_runs import Upload


def test_only_what_is_missing_is_sent_again(interrupted: FakeUploads, upload: Upload) -> None:
    ran = upload()
    assert "resuming: 6 of 11 parts have arrived" in ran.err
    assert (ran.told["partsSent"], ran.told["resumed"]) == (5, True)
    assert interrupted.sent() == [7, 8, 9, 10, 11]
    assert [sorted(numbers) for numbers in interrupted.asked] == [[7, 8, 9, 10, 11]]
    assert interrupted.only.content() == CONTENT
    assert interrupted.calls[0] == "GET"
    asked = next(request for request in interrupted.requests if request.method == "GET")
    assert asked.headers["Backlot-Min-Position"] == "p1"


@pytest.mark.parametrize("other", [b"x" * 1000, CONTENT[1000:1999]])
def test_a_part_that_is_not_what_the_file_holds_is_sent_again(
    interrupted: FakeUploads, upload: Upload, other: bytes
) -> None:
    interrupted.only.parts[2] = other
    assert upload().told["partsSent"] == 6
    assert interrupted.sent() == [2, 7, 8, 9, 10, 11]
    assert interrupted.only.content() == CONTENT


def test_an_arrived_part_that_got_lost_is_sent_again(
    interrupted: FakeUploads, upload: Upload
) -> None:
    interrupted.faults["complete"].append(lambda: interrupted.only.parts.pop(2))
    assert upload().told["partsSent"] == 6
    assert interrupted.only.content() == CONTENT


@pytest.mark.parametrize("end", ["aborted", "expired", "gone"])
def test_an_upload_that_ended_is_begun_anew(
    interrupted: FakeUploads, upload: Upload, end: str
) -> None:
    if end == "gone":
        interrupted.uploads.clear()
    else:
        interrupted.only.status = end
    ran = upload()
    assert ran.told["partsSent"] == 11
    assert "the earlier upload is" in ran.err
    assert list(interrupted.uploads.values())[-1].content() == CONTENT


def test_an_upload_that_was_completed_is_not_sent_again(
    interrupted: FakeUploads, upload: Upload, state: Path
) -> None:
    interrupted.only.status = "completed"
    assert upload().told["partsSent"] == 0
    assert interrupted.calls == ["GET", "complete"]
    assert list(state.iterdir()) == []


def test_a_start_whose_answer_got_lost_is_the_same_upload(
    server: FakeUploads, upload: Upload
) -> None:
    server.lost["POST /uploads"] = 1
    assert "ReadError lost" in upload().complaint
    assert upload().told["partsSent"] == 11
    assert server.only.content() == CONTENT


def test_a_start_whose_answer_got_lost_does_not_hold_other_details(
    server: FakeUploads, upload: Upload
) -> None:
    server.lost["POST /uploads"] = 1
    assert upload().code == 4
    assert upload("--title", "Another").code == 0
    assert [kept.body["title"] for kept in server.uploads.values()] == ["film.mp4", "Another"]


def test_a_server_that_was_set_up_anew_is_asked_without_a_position(
    interrupted: FakeUploads, upload: Upload
) -> None:
    interrupted.faults["GET"].extend([problem(503, "read-model-behind")] * 6)
    assert upload().told["partsSent"] == 5
    assert [call for call in interrupted.calls if call == "GET"] == ["GET"] * 7


def test_another_user_begins_an_upload_of_their_own(
    interrupted: FakeUploads, upload: Upload
) -> None:
    assert upload("--user", "bob").told["partsSent"] == 11
    assert upload("--user", "alice").told["partsSent"] == 5


def test_another_server_knows_nothing_of_it(interrupted: FakeUploads, upload: Upload) -> None:
    assert upload(url="http://other.test").told["partsSent"] == 11


def test_a_file_that_changed_between_two_runs_is_begun_anew(
    interrupted: FakeUploads, upload: Upload, film: Path
) -> None:
    other = CONTENT[:-1] + b"?"
    film.write_bytes(other)
    assert upload().told["partsSent"] == 11
    assert list(interrupted.uploads.values())[-1].content() == other


def test_without_resuming_the_earlier_upload_is_given_up(
    interrupted: FakeUploads, upload: Upload
) -> None:
    assert upload("--no-resume").told["partsSent"] == 11
    assert interrupted.calls[0] == "DELETE"
    assert [kept.status for kept in interrupted.uploads.values()] == ["aborted", "completed"]


def test_other_details_than_the_unfinished_uploads(
    interrupted: FakeUploads, upload: Upload
) -> None:
    complaint = upload("--title", "Other").complaint
    assert "has the title 'film.mp4': leave yours out to resume it" in complaint
    assert upload("--title", "film.mp4").told["partsSent"] == 5


def test_what_is_remembered_is_for_the_users_eyes(interrupted: FakeUploads, state: Path) -> None:
    (kept,) = state.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert json.loads(kept.read_text())["upload_id"] in interrupted.uploads
    assert "eyJ" not in kept.read_text()


def test_a_damaged_memory_is_told_and_costs_only_the_resuming(
    interrupted: FakeUploads, upload: Upload, state: Path
) -> None:
    (kept,) = state.iterdir()
    kept.write_text("{")
    ran = upload()
    assert ran.told["partsSent"] == 11
    assert "is damaged" in ran.err


def test_an_upload_that_cant_be_remembered_is_made_and_told(
    server: FakeUploads, upload: Upload, tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("in the way")
    ran = upload()
    assert ran.told["partsSent"] == 11
    assert "this upload can't be resumed" in ran.err


def test_old_memories_are_cleared_out(server: FakeUploads, upload: Upload, state: Path) -> None:
    state.mkdir(parents=True)
    (state / "old.json").write_text("{}")
    os.utime(state / "old.json", (1, 1))
    (state / "young.json").write_text("{}")
    assert upload().code == 0
    assert [kept.name for kept in state.iterdir()] == ["young.json"]
