"""Live counts over a real connection: they come while somebody likes, and end with the server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice

import httpx

from tests.e2e import plain
from tests.e2e.program import Program
from tests.e2e.videos import upload


def counts(lines: Iterator[str]) -> Iterator[int]:
    """The number in each event of a stream."""
    for line in lines:
        if line.startswith("data: "):
            yield int(json.loads(line.removeprefix("data: "))["likesCount"])


def test_a_page_sees_likes_as_they_come(server: Program) -> None:
    video = upload(server.client("owner"))
    with (
        plain.client(base_url=server.url) as page,
        page.stream("GET", f"/videos/{video}/events") as stream,
    ):
        assert stream.headers["content-type"].startswith("text/event-stream")
        seen = counts(stream.iter_lines())
        assert next(seen) == 0
        for number, viewer in enumerate(("ann", "bob", "cid"), start=1):
            assert server.client(viewer).put(f"/videos/{video}/like").is_success
            assert next(seen) == number


def test_a_removed_video_ends_its_streams_with_one_last_event(server: Program) -> None:
    owner = server.client("owner")
    video = upload(owner)
    with (
        plain.client(base_url=server.url) as page,
        page.stream("GET", f"/videos/{video}/events") as stream,
    ):
        lines = stream.iter_lines()
        assert next(counts(lines)) == 0
        assert owner.delete(f"/videos/{video}").is_success
        # A few heartbeats without it would mean that the stream goes on.
        told = [line for line in islice(lines, 16) if line and not line.startswith(":")]
    assert told == ["event: removed", f'data: {{"videoId":"{video}"}}']
    assert plain.get(f"{server.url}/videos/{video}/events").status_code == 404


def test_open_streams_do_not_hold_up_the_end(make_program: Callable[..., Program]) -> None:
    program = make_program().start()
    video = upload(program.client("owner"))
    page = program.client()
    with page.stream("GET", f"/videos/{video}/events") as stream:
        lines = stream.iter_lines()
        assert next(counts(lines)) == 0
        program.process.terminate()
        with suppress(httpx.TransportError):
            list(lines)
    assert program.wait() == 0
    # What uvicorn says of requests in flight that have not ended after their ten seconds.
    assert "graceful shutdown exceeded" not in program.complained + program.said
