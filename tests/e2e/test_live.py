"""Live streams over real connections: what happens comes at once, and they end with the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import httpx

from infra.http.shapes import decode_position
from tests.e2e import plain
from tests.e2e.live_events import Told, events
from tests.e2e.program import Program
from tests.e2e.videos import read, upload
from tests.support import eventually


def counts(lines: Iterator[str]) -> Iterator[int]:
    """The number of likes in each event of a stream that tells it."""
    return (each.data["likesCount"] for each in events(lines) if each.kind == "likes")


def of_comments(told: Iterator[Told]) -> Iterator[Told]:
    return (each for each in told if each.kind != "likes")


def tail_reads(server: Program) -> float:
    """How often the program has read something new from the end of its log."""
    name = 'backlot_tail_reads_total{outcome="events"} '
    lines = plain.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


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
        seen = events(stream.iter_lines())
        assert next(seen).data == {"likesCount": 0}
        assert owner.delete(f"/videos/{video}").is_success
        told = list(seen)
    assert [(each.kind, each.data) for each in told] == [("removed", {"videoId": video})]
    assert plain.get(f"{server.url}/videos/{video}/events").status_code == 404


def test_all_who_watch_cost_one_question_for_each_change(server: Program) -> None:
    video = upload(server.client("owner"))
    with ExitStack() as stack:
        page = stack.enter_context(plain.client(base_url=server.url))
        streams = [
            stack.enter_context(page.stream("GET", f"/videos/{video}/events")) for _ in range(2)
        ]
        watchers = [counts(stream.iter_lines()) for stream in streams]
        assert [next(seen) for seen in watchers] == [0, 0]
        # All before this like is read by now; what is recorded after it is counted like the likes:
        # the language of a comment of another test, at most.
        first = server.client("ann").put(f"/videos/{video}/like")
        assert [next(seen) for seen in watchers] == [1, 1]
        asked = tail_reads(server)
        for number, viewer in enumerate(("bob", "cid", "dan"), start=2):
            assert server.client(viewer).put(f"/videos/{video}/like").is_success
            assert [next(seen) for seen in watchers] == [number, number]
        reads = tail_reads(server) - asked
        last = server.client("eve").put(f"/videos/{video}/like")
        assert 3 <= reads < position(last) - position(first)


def position(answer: httpx.Response) -> int:
    """How far the log was when this was recorded."""
    return decode_position(answer.headers["Backlot-Position"]).events


def test_two_pages_see_what_happens_to_comments(server: Program) -> None:
    video, ann = upload(server.client("owner")), server.client("ann")
    with ExitStack() as stack:
        page = stack.enter_context(plain.client(base_url=server.url))
        streams = [
            stack.enter_context(page.stream("GET", f"/videos/{video}/events")) for _ in range(2)
        ]
        both = [events(stream.iter_lines()) for stream in streams]
        assert [next(seen).kind for seen in both] == ["likes", "likes"]

        def next_of(kind: str) -> list[Told]:
            """The next event of a kind; a language may be found meanwhile."""
            return [next(each for each in seen if each.kind == kind) for seen in both]

        posted = read(ann.post(f"/videos/{video}/comments", json={"content": "¿Qué tal?"}))
        path = f"/comments/{posted['commentId']}"
        for told in next_of("comment"):
            assert told.data["content"] == "¿Qué tal?"
            # Persons have their names, as everywhere.
            assert (told.data["userId"], told.data["commentId"]) == ("ann", posted["commentId"])
        assert ann.patch(path, json={"content": "¿Qué hay?"}).is_success
        assert [each.data["content"] for each in next_of("comment-edited")] == ["¿Qué hay?"] * 2
        assert ann.delete(path).is_success
        gone = {"commentId": posted["commentId"]}
        assert [each.data for each in next_of("comment-removed")] == [gone] * 2


def test_a_page_that_comes_back_is_told_what_it_has_missed(
    make_program: Callable[..., Program],
) -> None:
    program = make_program().start()
    video = upload(program.client("owner"))
    with program.client().stream("GET", f"/videos/{video}/events") as stream:
        told = next(events(stream.iter_lines()))
    ann = program.client("ann")
    kept = read(ann.post(f"/videos/{video}/comments", json={"content": "Missed"}))
    gone = read(ann.post(f"/videos/{video}/comments", json={"content": "Missed, too"}))
    assert ann.delete(f"/comments/{gone['commentId']}").is_success
    # What served the page has nothing of that in memory.
    program.process.terminate()
    assert program.wait() == 0
    program.start()
    known = {"Last-Event-ID": told.id}
    with program.client().stream("GET", f"/videos/{video}/events", headers=known) as stream:
        missed = of_comments(events(stream.iter_lines()))
        first, second = next(missed), next(missed)
    assert (first.kind, first.data["commentId"]) == ("comment", kept["commentId"])
    assert (second.kind, second.data) == ("comment-removed", {"commentId": gone["commentId"]})


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


def test_a_ticket_opens_the_stream_of_a_private_video(server: Program) -> None:
    owner, other = server.client("owner"), server.client("other")
    video, public = upload(owner, visibility="private"), upload(owner)
    asked = f"/videos/{video}/events/ticket"
    ticket = read(owner.post(asked))["ticket"]
    url = f"{server.url}/videos/{video}/events"
    posted = [read(owner.post(f"/videos/{video}/comments", json={"content": "a"}))]
    since = owner.get(f"/videos/{video}/comments").headers["Backlot-Position"]
    posted += [read(owner.post(f"/videos/{video}/comments", json={"content": "b"}))]
    with (
        plain.client() as page,
        page.stream("GET", url, params={"ticket": ticket, "after": since}) as stream,
    ):
        seen = events(stream.iter_lines())
        told = next(each for each in seen if each.kind == "comment")
    # What came after `after`, and not what was known.
    assert told.data["commentId"] == posted[1]["commentId"]
    assert plain.get(url).status_code == 404
    assert other.post(asked).status_code == 404
    for wrong in ("x", ticket[:-2]):
        assert plain.get(url, params={"ticket": wrong}).status_code == 401
    elsewhere = plain.get(f"{server.url}/videos/{public}/events", params={"ticket": ticket})
    assert elsewhere.status_code == 401


def test_a_ticket_counts_no_more_than_the_tokens_of_its_holder(server: Program) -> None:
    owner = server.client("revoked-owner")
    video = upload(owner, visibility="private")
    ticket = read(owner.post(f"/videos/{video}/events/ticket"))["ticket"]
    url = f"{server.url}/videos/{video}/events"
    with plain.client() as page, page.stream("GET", url, params={"ticket": ticket}) as stream:
        assert stream.status_code == 200
    admin = server.client("root", admin=True)
    revoked = {"userId": "revoked-owner", "reason": "stolen laptop"}
    assert admin.post("/admin/revocations", json=revoked).is_success
    eventually(lambda: owner.get("/videos/liked").status_code == 401)
    assert plain.get(url, params={"ticket": ticket}).status_code == 401
