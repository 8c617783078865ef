"""Live streams: likes and comments of a video as they come, what was missed, and what it costs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import psycopg
import pytest

import readapi.comment_changes
import readapi.live
from domain.comment import Comment
from domain.moderation import ActingAs, Hold, HoldCause
from domain.upload import NOBODY, Upload, VideoViewer, Visibility
from engine.checkpoints import pause, resume
from engine.subscription import EVENTS, Notifications
from engine.tail import TailEvent
from infra import metrics
from infra.http.shapes import decode_position
from readapi.comment_changes import CommentChanges
from readapi.live import LiveVideos, Watch
from tests.integration.projection_support import origin
from tests.integration.readapi_support import Site, serving
from tests.support import DEADLINE_SECONDS, ended, until

HELD = Hold(HoldCause.APPROVAL, "alice")


@pytest.fixture
def site(database_url: str, tmp_path: Path) -> Iterator[Site]:
    with serving(database_url, tmp_path) as site:
        yield site


class Told(NamedTuple):
    """An event of a stream."""

    kind: str
    position: int
    data: dict[str, Any]


class Client:
    """Reads the events of one stream."""

    def __init__(self, live: LiveVideos, watch: Watch) -> None:
        self.watch = watch
        self.pieces: AsyncGenerator[bytes, None] = live.stream(watch)
        self.heartbeats: list[str] = []

    async def next(self, *, beside: str = "likes") -> Told:
        """The next event that is not of the kind `beside`."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            async for told in self:
                if told.kind != beside:
                    return told
        raise AssertionError("The stream has ended.")

    async def likes(self) -> int:
        """The number in the next event, which has to be of likes."""
        told = await self.next(beside="")
        assert told.kind == "likes"
        return int(told.data["likesCount"])

    async def __aiter__(self) -> AsyncIterator[Told]:
        async for piece in self.pieces:
            text = piece.decode()
            assert text.endswith("\n\n")
            if text.startswith("retry: "):
                continue
            if text.startswith(":"):
                self.heartbeats.append(text)
                continue
            fields = dict(line.split(": ", 1) for line in text.rstrip("\n").split("\n"))
            assert list(fields) == ["id", "event", "data"]
            events = decode_position(fields["id"]).events
            yield Told(fields["event"], events, json.loads(fields["data"]))


@asynccontextmanager
async def live(site: Site) -> AsyncIterator[LiveVideos]:
    """What tells the streams of a process, woken by what is recorded."""
    notifications, queries = Notifications(site.database_url), site.queries
    found = LiveVideos(
        *(queries.pool, queries.tail, queries.cache, queries.comment_cache, queries.waiting),
        wake=notifications.subscribe(EVENTS),
    )
    listening = asyncio.create_task(notifications.run())
    try:
        yield found
    finally:
        await found.close()
        await ended(listening)


def following(
    live: LiveVideos, video: UUID, viewer: VideoViewer = NOBODY, since: int | None = None
) -> Client:
    return Client(live, live.watch(video, viewer, position=since))


async def save(site: Site, change: Callable[[], object], thing: Comment | Upload) -> int:
    """Record what an aggregate decides; the position of that."""
    change()
    return await asyncio.to_thread(site.writer.save, thing)


async def written(site: Site, video: UUID, content: str, hold: Hold | None = None) -> Comment:
    return await asyncio.to_thread(site.writer.comment, video, "bob", content, hold)


def reads(*outcomes: str) -> float:
    return sum(metrics.value("backlot_tail_reads_total", outcome=each) for each in outcomes)


def test_likes_come_at_once_then_as_they_change_then_end(site: Site) -> None:
    video = site.writer.video()
    site.writer.like(video.id, "ann")

    async def counts() -> list[int]:
        async with live(site) as found:
            client = following(found, video.id)
            seen = [await client.likes()]
            for viewers in (["bob"], ["cid", "dan", "eve"]):
                await asyncio.to_thread(site.writer.like, video.id, *viewers)
                seen.append(await client.likes())
            await found.close()
            assert [each async for each in client] == []
            return seen

    assert site.run(counts()) == [1, 2, 5]
    assert metrics.value("backlot_live_watchers") == 0


def test_streams_end_with_their_video_and_with_no_other(site: Site) -> None:
    other, video = site.writer.video(), site.writer.video()

    async def told() -> list[Told]:
        async with live(site) as found:
            staying, going = (following(found, each.id) for each in (other, video))
            assert (await staying.likes(), await going.likes()) == (0, 0)
            await save(site, lambda: video.remove(origin()), video)
            async with asyncio.timeout(DEADLINE_SECONDS):
                last = [each async for each in going]
            await found.close()
            assert [each async for each in staying] == []
            return last

    (last,) = site.run(told())
    assert (last.kind, last.data) == ("removed", {"videoId": str(video.id)})
    assert metrics.value("backlot_live_watchers") == 0


def test_nothing_of_a_private_video_is_told_to_those_who_may_not_see_it(site: Site) -> None:
    video = site.writer.video("alice")

    async def told() -> tuple[list[list[Told]], Told]:
        async with live(site) as found:
            viewers = (VideoViewer("alice"), NOBODY, VideoViewer("bob"))
            own, *others = (following(found, video.id, viewer) for viewer in viewers)
            for client in (own, *others):
                assert await client.likes() == 0
            await asyncio.to_thread(site.writer.show, video, Visibility.PRIVATE)
            await written(site, video.id, "Between us")
            async with asyncio.timeout(DEADLINE_SECONDS):
                rest = [[each async for each in client] for client in others]
            return rest, await own.next()

    rest, seen = site.run(told())
    assert [[each.kind for each in client] for client in rest] == [["removed"], ["removed"]]
    assert (seen.kind, seen.data["content"]) == ("comment", "Between us")


def test_comments_come_as_a_list_of_them_shows_them(site: Site) -> None:
    video, other = site.writer.video(), site.writer.video()

    async def shown() -> dict[str, Any]:
        page = (await site.client.get(f"/videos/{video.id}/comments")).json()["items"]
        return dict(page[0])

    async def story() -> None:
        async with live(site) as found:
            client, beside = following(found, video.id), following(found, other.id)
            assert (await client.likes(), await beside.likes()) == (0, 0)
            comment = await written(site, video.id, "¿Qué\ntal?")
            told = await client.next()
            assert (told.kind, told.data) == ("comment", await shown())
            assert told.position == site.writer.head
            await save(site, lambda: comment.edit("¿Qué tal?", origin("bob")), comment)
            told = await client.next()
            assert (told.kind, told.data) == ("comment-edited", await shown())
            assert told.data["content"] == "¿Qué tal?"
            translated = ("es", "en", "How are you?", "model", "prompt", origin("translation"))
            await save(site, lambda: comment.translate(2, *translated), comment)
            told = await client.next()
            assert (told.kind, told.data) == ("comment-translated", await shown())
            assert told.data["translatedText"] == "How are you?"
            await save(site, lambda: comment.delete(origin("bob")), comment)
            told = await client.next()
            assert told == ("comment-removed", site.writer.head, {"commentId": str(comment.id)})
            # The stream of another video has heard of nothing: the next event is its own.
            await written(site, other.id, "Elsewhere")
            assert (await beside.next()).data["content"] == "Elsewhere"

    site.run(story())


def test_counts_come_as_the_newest_numbers_and_replies_by_a_name_of_their_own(site: Site) -> None:
    """To those who watch, and once to whoever comes back."""
    video = site.writer.video("alice").id

    async def run() -> None:
        comment = await written(site, video, "first")
        async with live(site) as found:
            page = following(found, video)
            assert await page.likes() == 0
            await asyncio.to_thread(site.writer.like_comment, comment, "ann", "bob")
            told = await page.next()
            about = {"commentId": str(comment.id)}
            assert (told.kind, told.data) == (
                "comment-counts",
                {**about, "likeCount": 2, "replyCount": 0},
            )
            begun = told.position
            reply = await asyncio.to_thread(
                site.writer.comment, video, "bob", "a reply", None, comment.id
            )
            told = await page.next()
            assert (told.kind, told.data["parentId"]) == ("reply", str(comment.id))
            told = await page.next()
            assert told.data == {**about, "likeCount": 2, "replyCount": 1}
            await save(site, lambda: reply.delete(origin("bob")), reply)
            told = await page.next()
            assert (told.kind, told.data) == ("comment-removed", {"commentId": str(reply.id)})
            now = {**about, "likeCount": 2, "replyCount": 0}
            assert (await page.next()).data == now
            back = following(found, video, since=begun)
            missed = [await back.next(), await back.next()]
            assert {each.kind: each.data for each in missed} == {
                "comment-removed": {"commentId": str(reply.id)},
                "comment-counts": now,
            }

    site.run(run())


def test_what_not_everybody_sees_is_told_to_nobody(site: Site) -> None:
    video = site.writer.video("alice")
    owner = origin("alice")

    async def story() -> list[Told]:
        async with live(site) as found:
            # Not to its author and not to who decides, either: streams are alike for all.
            clients = [
                following(found, video.id, viewer)
                for viewer in (NOBODY, VideoViewer("bob"), VideoViewer("alice"))
            ]
            for client in clients:
                assert await client.likes() == 0
            comment = await written(site, video.id, "held words", HELD)
            await save(site, lambda: comment.edit("held again", origin("bob"), HELD), comment)
            rejected = await written(site, video.id, "rejected words", HELD)
            await save(site, lambda: rejected.remove(ActingAs.OWNER, "no", owner), rejected)
            approved = await save(
                site, lambda: comment.approve(ActingAs.OWNER, None, owner), comment
            )
            told = [await client.next() for client in clients]
            assert {(each.kind, each.position) for each in told} == {("comment", approved)}
            assert told[0].data["content"] == "held again"
            await save(site, lambda: comment.edit("worse", origin("bob"), HELD), comment)
            told += [await client.next() for client in clients]
            await save(site, lambda: comment.remove(ActingAs.OWNER, "bad", owner), comment)
            await save(site, lambda: comment.restore(ActingAs.OWNER, None, owner), comment)
            told += [await client.next() for client in clients]
            return told

    told = site.run(story())
    assert [each.kind for each in told[3:6]] == ["comment-removed"] * 3
    assert {tuple(each.data) for each in told[3:6]} == {("commentId",)}
    # Seen again with the words that were approved by that.
    assert [(each.kind, each.data["content"]) for each in told[6:]] == [("comment", "worse")] * 3
    assert not [each for each in told if "rejected" in str(each.data)]


def test_whoever_comes_back_at_any_point_ends_with_the_same_comments(site: Site) -> None:
    video, other = site.writer.video(), site.writer.video()
    begun = site.writer.head
    writer = site.writer
    first, second = writer.comment(video.id, content="a"), writer.comment(video.id, content="b")
    writer.comment(other.id, content="of another video")
    first.edit("a2", origin("bob"))
    writer.save(first)
    third = writer.comment(video.id, content="c")
    second.delete(origin("bob"))
    writer.save(second)
    third.edit("c2", origin("bob"))
    writer.save(third)
    end = writer.comment(video.id, content="d")

    async def missed(found: LiveVideos, since: int) -> list[Told]:
        client = following(found, video.id, since=since)
        told: list[Told] = []
        # The last event's id says that all before it is told.
        while not told or told[-1].position < writer.head:
            told.append(await client.next(beside=""))
        found.leave(client.watch)
        return [each for each in told if each.kind != "likes"]

    def shown(told: list[Told], before: dict[str, str]) -> dict[str, str]:
        contents = dict(before)
        for each in told:
            if each.kind == "comment-removed":
                contents.pop(each.data["commentId"], None)
            else:
                contents[each.data["commentId"]] = each.data["content"]
        return contents

    async def story() -> None:
        async with live(site) as found:
            whole = await missed(found, begun)
            kinds = [(each.kind, each.data["commentId"]) for each in whole]
            assert kinds == [
                ("comment", str(first.id)),
                ("comment-removed", str(second.id)),
                ("comment", str(third.id)),
                ("comment", str(end.id)),
            ]
            positions = [each.position for each in whole]
            assert positions == sorted(positions)
            assert positions[-1] == writer.head
            wanted = {str(first.id): "a2", str(third.id): "c2", str(end.id): "d"}
            assert shown(whole, {}) == wanted
            for told in range(len(whole)):
                rest = await missed(found, whole[told].position)
                assert shown(rest, shown(whole[: told + 1], {})) == wanted
            # And from a reading of the comments at any position.
            for since in range(begun, writer.head):
                assert shown(await missed(found, since), {}).items() <= wanted.items()

    site.run(story())
    # What a process has in memory, and what it has to read again, is the same.
    site.forget()
    site.run(story())


def test_who_has_missed_too_much_is_told_to_read_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = site.writer.video()
    begun = site.writer.head
    for _ in range(4):
        site.writer.comment(video.id)
    head = site.writer.head

    async def first(since: int) -> Told:
        async with live(site) as found:
            return await following(found, video.id, since=since).next()

    assert site.run(first(begun)).kind == "comment"
    reset = ("reset", head, {"videoId": str(video.id)})
    # Of a log that was restored.
    assert site.run(first(head + 1)) == reset
    monkeypatch.setattr(readapi.live, "MOST_COMMENTS", 3)
    assert site.run(first(begun)) == reset
    assert site.run(first(begun + 1)).kind == "comment"
    monkeypatch.setattr(readapi.comment_changes, "MOST_RECALLED", 2)
    site.forget()
    assert site.run(first(head - 3)) == reset
    assert site.run(first(head - 2)).kind == "comment"


def test_little_is_kept_of_what_happens(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readapi.comment_changes, "MOST_CHANGES", 2)
    monkeypatch.setattr(readapi.comment_changes, "MOST_RECALLED", 0)
    video = site.writer.video()

    async def story() -> None:
        async with live(site) as found:
            staying = following(found, video.id)
            assert await staying.likes() == 0
            for number in range(4):
                await written(site, video.id, str(number))
                assert (await staying.next()).data["content"] == str(number)
            head = site.writer.head
            assert (await following(found, video.id, since=head - 2).next()).kind == "comment"
            assert (await following(found, video.id, since=head - 3).next()).kind == "reset"

    site.run(story())


def test_nothing_is_kept_of_comments_before_somebody_watches(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    take = CommentChanges.take

    def note(changes: CommentChanges, event: TailEvent) -> None:
        kept.append(event.position)
        take(changes, event)

    monkeypatch.setattr(CommentChanges, "take", note)
    video, tail = site.writer.video(), site.queries.tail

    async def story() -> None:
        await tail.confirm()
        async with live(site) as found:
            await written(site, video.id, "before")
            await tail.confirm()
            assert kept == []
            client = following(found, video.id)
            assert await client.likes() == 0
            await written(site, video.id, "then")
            assert (await client.next()).data["content"] == "then"
            assert kept == [site.writer.head]

    site.run(story())


def test_a_client_that_reads_nothing_costs_little(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readapi.live, "MOST_COMMENTS", 3)
    video = site.writer.video()

    async def story() -> tuple[Told, int]:
        async with live(site) as found:
            slow, quick = following(found, video.id), following(found, video.id)
            assert (await slow.likes(), await quick.likes()) == (0, 0)
            for number in range(5):
                await written(site, video.id, str(number))
                assert (await quick.next()).data["content"] == str(number)
                assert len(slow.watch.pending) <= 3
            return await slow.next(), site.writer.head

    told, head = site.run(story())
    # The fourth was one too many, and the fifth came behind that.
    assert told == ("reset", head - 1, {"videoId": str(video.id)})


def test_all_who_watch_share_one_question_for_each_change(site: Site) -> None:
    async def story(watchers: int) -> float:
        video = await asyncio.to_thread(site.writer.video)
        async with live(site) as found:
            clients = [following(found, video.id) for _ in range(watchers)]
            assert {await client.likes() for client in clients} == {0}
            asked = reads("events", "begun")
            for number in range(1, 4):
                await asyncio.to_thread(site.writer.like, video.id, f"viewer-{number}")
                assert {await client.likes() for client in clients} == {number}
            return reads("events", "begun") - asked

    assert site.run(story(1)) == 3
    assert site.run(story(20)) == 3


def test_nothing_is_asked_while_nothing_happens(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it asked again and again, it would a few times between two of these heartbeats."""
    monkeypatch.setattr(readapi.live, "HEARTBEAT_SECONDS", 3 * readapi.live.COALESCE_SECONDS)
    monkeypatch.setattr(readapi.live, "POLL_SECONDS", DEADLINE_SECONDS)
    video = site.writer.video()

    async def story() -> tuple[list[str], float]:
        async with live(site) as found:
            client = following(found, video.id)
            assert await client.likes() == 0
            rest = asyncio.create_task(client.next())
            # The listener wakes everybody when it begins.
            await until(lambda: len(client.heartbeats) >= 2)
            asked, beaten = reads("nothing", "events", "begun"), len(client.heartbeats)
            await until(lambda: len(client.heartbeats) >= beaten + 3)
            asked = reads("nothing", "events", "begun") - asked
            rest.cancel()
            await asyncio.wait([rest])
            return client.heartbeats, asked

    heartbeats, asked = site.run(story())
    assert asked == 0
    # A browser comes back with the position of the newest one.
    assert heartbeats[-1].startswith(": still here\nid: ")
    (token,) = heartbeats[-1].splitlines()[1:2]
    assert decode_position(token.removeprefix("id: ")).events == site.writer.head


def test_likes_go_on_while_the_comments_rest_and_the_comments_come_later(site: Site) -> None:
    video = site.writer.video()
    operator = psycopg.connect(site.database_url, autocommit=True)

    async def story() -> list[Told]:
        async with live(site) as found:
            client = following(found, video.id)
            assert await client.likes() == 0
            await asyncio.to_thread(pause, operator, "comments")
            await written(site, video.id, "later")
            await asyncio.to_thread(site.writer.like, video.id, "ann")
            told = [await client.next(beside="")]
            await asyncio.to_thread(resume, operator, "comments")
            return [*told, await client.next()]

    with operator:
        likes, comment = site.run(story())
    assert (likes.kind, likes.data) == ("likes", {"likesCount": 1})
    # Whoever comes back with the id of the likes gets the comment all the same.
    assert likes.position < comment.position
    assert (comment.kind, comment.data["content"]) == ("comment", "later")


def test_a_stream_of_an_unknown_video_is_not_found(site: Site) -> None:
    assert site.get(f"/videos/{uuid4()}/events", fresh=False).status_code == 404


def test_an_id_that_is_none_is_refused(site: Site) -> None:
    video = site.writer.video()
    answer = site.get(f"/videos/{video.id}/events", headers={"Last-Event-ID": "seven"})
    assert (answer.status_code, answer.json()["type"]) == (422, "position-invalid")
