"""Uploads: in parts side by side, cut off, and resumed by another client."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import httpx
import pytest
from backlot_client import FileChanged, Problem, Progress, UploadEnded
from backlot_client.generated.api.uploads import abort_upload
from backlot_client.generated.api.watching import watch_video
from backlot_client.generated.models import WatchSession

from .conftest import MakeClient
from .faults import Faults


def is_part(request: httpx.Request) -> bool:
    return request.method == "PUT" and "/objects/" in request.url.path


def parts(faults: Faults) -> list[httpx.Request]:
    return [each for each in faults.sent if is_part(each)]


def test_a_file_arrives_as_it_is(client: MakeClient, film: Path, faults: Faults) -> None:
    told: list[Progress] = []
    alice = client("alice", transport=faults)
    done = alice.upload(film, "Rain", visibility="unlisted", parallel=3, on_progress=told.append)
    video = alice.video(done.video_id)
    assert (video.title, video.visibility) == ("Rain", "unlisted")
    assert [(each.parts, each.part_count) for each in told] == [(n, 5) for n in range(1, 6)]
    # Where parts go is nobody whom the token concerns.
    assert len(parts(faults)) == 5
    assert not any("Authorization" in each.headers for each in parts(faults))
    session = watch_video.sync(done.video_id, client=alice.api)
    assert isinstance(session, WatchSession)
    assert httpx.get(session.url).content == film.read_bytes()


def test_what_was_cut_off_is_resumed_by_another_client(
    client: MakeClient, film: Path, faults: Faults
) -> None:
    cut = client("alice", transport=faults, repeats=0)
    begun = cut.start_upload(film, "Rain")
    # The answer to the third part is lost, and then the network.
    faults.lose_answer.append(lambda each: is_part(each) and len(parts(faults)) == 3)
    faults.down = lambda each: is_part(each) and len(parts(faults)) > 3
    with pytest.raises(httpx.ReadError):
        begun.run(parallel=1)
    other = Faults()
    resumed = client("alice", transport=other).resume_upload(film, begun.upload_id)
    video_id = resumed.run().video_id
    assert len(parts(other)) == 2
    assert resumed.run().video_id == video_id
    assert client("bob").video(video_id).title == "Rain"


def test_parts_that_are_not_as_the_file_has_them_are_sent_again(
    client: MakeClient, film: Path, faults: Faults
) -> None:
    alice = client("alice", transport=faults, repeats=0)
    begun = alice.start_upload(film, "Rain")
    faults.lose_answer.append(lambda each: is_part(each) and len(parts(faults)) == 5)
    with pytest.raises(httpx.ReadError):
        begun.run(parallel=1)
    content = bytearray(film.read_bytes())
    content[20_000] ^= 1
    film.write_bytes(content)
    begun.run()
    assert len(parts(faults)) == 6


def test_lost_parts_are_sent_again_within_the_call(
    client: MakeClient, film: Path, faults: Faults
) -> None:
    faults.lose_answer += [is_part] * 3
    client("alice", transport=faults).upload(film, "Rain")
    assert len(parts(faults)) == 8
    # Each with a fresh URL: the one before may have expired.
    assert len(faults.sent_to("POST", "/part-urls")) == 4


def test_a_file_of_another_size_is_refused(client: MakeClient, film: Path) -> None:
    begun = client("alice").start_upload(film, "Rain")
    film.write_bytes(b"another")
    with pytest.raises(FileChanged):
        begun.run()


def test_an_upload_that_was_given_up_has_ended(client: MakeClient, film: Path) -> None:
    alice = client("alice")
    begun = alice.start_upload(film, "Rain")
    abort_upload.sync(begun.upload_id, client=alice.api)
    with pytest.raises(UploadEnded, match="aborted"):
        begun.run()


def test_a_beginning_whose_answer_is_lost_is_one_upload(
    client: MakeClient, film: Path, faults: Faults
) -> None:
    ids: set[UUID] = set()
    for _ in range(2):
        faults.lose_answer.append(lambda each: each.method == "POST")
        alice = client("alice", transport=faults)
        ids.add(alice.start_upload(film, "Rain", idempotency_key=str(film)).upload_id)
    assert len(ids) == 1


def test_what_is_no_film_is_said_before_anything_is_sent(
    client: MakeClient, tmp_path: Path, faults: Faults
) -> None:
    alice = client("alice", transport=faults)
    unknown = tmp_path / "film.unknown"
    unknown.write_bytes(b"film")
    with pytest.raises(ValueError, match="content type"):
        alice.start_upload(unknown, "Rain")
    assert faults.sent == []
    with pytest.raises(Problem) as caught:
        alice.start_upload(unknown, "Rain", content_type="text/html")
    assert caught.value.type == "invalid"
