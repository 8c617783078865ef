"""Invariant 1: an acknowledged command survives `kill -9` of any process, and counts once."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.data_folder import objects_path
from tests.e2e import plain
from tests.e2e.load import Load, together
from tests.e2e.program import Program
from tests.e2e.recorded import Recorded
from tests.e2e.videos import (
    MP4,
    everything,
    pieces,
    problem,
    read,
    see,
    start,
    upload,
)
from tests.support import DEADLINE_SECONDS, eventually

pytestmark = pytest.mark.chaos

MakeProgram = Callable[..., Program]
SMALL_PARTS = {"PART_SIZE_BYTES": "4096", "MAX_UPLOAD_BYTES": "40960000"}


def kill_program(program: Program) -> None:
    program.kill()


def kill_everything(program: Program) -> None:
    servers = program.servers()
    program.process.kill()
    for process in servers:
        process.kill()
    program.process.wait()


def kill_postmaster(program: Program) -> None:
    program.postmaster.kill()


def kill_all_of_postgres(program: Program) -> None:
    for process in program.servers():
        process.kill()


@pytest.mark.parametrize("kill", [kill_program, kill_everything])
def test_commands_survive_the_end_of_the_program(
    make_program: MakeProgram, kill: Callable[[Program], None]
) -> None:
    program = make_program().start()
    load = Load(program, upload(program.client("owner")))
    load.run_until_killed(lambda: kill(program), after=200)
    assert 200 <= len(load.acknowledged) < len(load.sent)
    assert load.refusals == []

    program.start()
    check_nothing_lost(load)
    check_repeats(load)
    check_what_is_read(load)


@pytest.mark.parametrize("kill", [kill_postmaster, kill_all_of_postgres])
def test_commands_survive_the_end_of_postgres(
    make_program: MakeProgram, kill: Callable[[Program], None]
) -> None:
    program = make_program().start()
    load = Load(program, upload(program.client("owner")))
    load.run_through(lambda: kill(program), after=100, then=200)

    eventually(lambda: "\nbacklot_postgres_restarts_total 1.0\n" in metrics(program))
    for refusal in load.refusals:
        problem(refusal, 503)
        assert int(refusal.headers["Retry-After"]) >= 1
    assert "request_broke" not in program.complained
    check_nothing_lost(load)
    check_repeats(load)
    check_what_is_read(load)
    assert program.stop() == 0


def metrics(program: Program) -> str:
    return plain.get(f"{program.url}/metrics").text


def check_nothing_lost(load: Load) -> None:
    """Acknowledged: recorded exactly once. Not acknowledged: at most once."""
    recorded = Recorded.of(load.program)
    assert recorded.positions == list(range(1, len(recorded.positions) + 1))
    comments, likes = recorded.comments(), recorded.likes(load.video)
    assert recorded.unlikes(load.video) == {}
    for request in load.sent:
        found = comments[request.body["content"]] if request.body else likes[request.user]
        assert found <= 1, f"{request.method} {request.path} of {request.user}: {found} times"
        if request.answer is not None:
            assert found == 1, f"{request.method} {request.path} of {request.user} was lost"


def check_repeats(load: Load) -> None:
    """The same key gives the stored answer; without one, PUT records nothing more."""
    again = together(load.program, load.sent, connections=load.workers)
    for request, answer in zip(load.sent, again, strict=True):
        assert answer.is_success, answer.text
        if request.answer is not None and request.key is not None:
            assert answer.headers["Idempotency-Replayed"] == "true"
            assert (answer.status_code, answer.content) == (
                request.answer.status_code,
                request.answer.content,
            )
    recorded = Recorded.of(load.program)
    assert set(recorded.comments().values()) == {1}
    assert set(recorded.likes(load.video).values()) == {1}
    assert recorded.unlikes(load.video) == {}


def check_what_is_read(load: Load) -> None:
    """The read models come to the same as the requests."""
    reader = load.program.client("owner")
    path = f"/videos/{load.video}"
    see(reader, reader.patch(path, json={"description": "after all that"}))
    texts = [request.body["content"] for request in load.sent if request.body]
    listed = [item["content"] for item in everything(reader, f"{path}/comments")]
    assert sorted(listed) == sorted(texts)
    likers = len(load.sent) - len(texts)
    shown = read(reader.get(path))
    assert (shown["likes"], shown["comments"]) == (likers, len(texts))


def test_an_upload_is_resumed_after_the_program_was_killed(make_program: MakeProgram) -> None:
    program = make_program(**SMALL_PARTS).start()
    owner = program.client("owner")
    started = start(owner)
    path, parts = f"/uploads/{started['uploadId']}", started["parts"]
    for part, piece in list(zip(parts, pieces(MP4, started), strict=True))[:5]:
        plain.put(part["url"], content=piece).raise_for_status()
    with half_sent(program, parts[5], pieces(MP4, started)[5]):
        program.kill()

    program.start()
    status = read(owner.get(path))
    assert status["status"] == "started"
    assert [part["number"] for part in status["parts"]] == [1, 2, 3, 4, 5]
    assert leftovers(program) == []

    rest = {"numbers": list(range(6, len(parts) + 1))}
    fresh = read(owner.post(f"{path}/part-urls", json=rest))["parts"]
    send_rest(fresh, started)
    completed = owner.post(f"{path}/complete")
    assert read(completed)["sizeBytes"] == len(MP4)

    program.kill()
    program.start()
    assert read(owner.post(f"{path}/complete")) == completed.json()
    url = read(owner.post(f"/videos/{started['videoId']}/watch"))["url"]
    assert plain.get(url).content == MP4


def send_rest(parts: list[dict[str, Any]], started: dict[str, Any]) -> None:
    for part in parts:
        piece = pieces(MP4, started)[part["number"] - 1]
        plain.put(part["url"], content=piece).raise_for_status()


def half_sent(program: Program, part: dict[str, Any], piece: bytes) -> socket.socket:
    """A connection on which only half of a part was sent, and has arrived."""
    target = httpx.URL(part["url"]).raw_path
    connection = socket.create_connection(("127.0.0.1", program.port), timeout=DEADLINE_SECONDS)
    head = b"PUT %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    connection.sendall(head % (target, len(piece)) + piece[: len(piece) // 2])
    eventually(lambda: leftovers(program) != [])
    return connection


def leftovers(program: Program) -> list[Path]:
    """Files of parts that are not whole."""
    return list((objects_path(program.data) / "tmp").iterdir())
