"""A person is forgotten whole, whatever dies in between, and whoever else is at it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from backlot import health
from domain.comment import Comment
from domain.errors import Forgotten
from domain.model import FORGOTTEN, SystemActor
from domain.moderation import ActingAs
from domain.person import Person, VideosFate
from domain.revocations import STREAM_ID
from domain.upload import Upload, object_key
from engine import erasures
from engine.connections import connected
from engine.erasures import ErasureStep
from engine.inspection.index import Audit
from engine.inspection.persons import begun_streams
from engine.seals.forgotten_list import ForgottenList, person_digest
from engine.seals.outside import Outside
from engine.seals.places import LineFile
from engine.seals.proofs import Proofs
from infra.cache import CachedValue
from infra.http.auth import Authenticator, mint_token
from infra.http.keys import OneKey
from infra.objects.port import NoSuchUpload
from infra.settings import load_settings
from projections.recommendations.model import (
    RankedRecommendations,
    RankedVideo,
    RecommendationSource,
)
from projections.recommendations.recommender import FORM, PREFIX
from projections.trending import Window, key_of
from tests.integration.buses import Toggle, execute
from tests.integration.erasure_support import LONG, NOTHING, Scene, by, scene
from tests.integration.event_log import recording, rows
from tests.integration.projection_support import caught_up, hosting
from tests.integration.test_revocations import SECRET, another_process
from tests.support import until
from workers.erasure import NOBODY

Play = Callable[[Callable[[Scene], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def play(database_url: str, tmp_path: Path) -> Play:
    """Runs a test's own part in a scene."""

    def run(act: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
        async def acted() -> None:
            async with scene(database_url, tmp_path) as made:
                await act(made)

        asyncio.run(acted())

    return run


class Deeds:
    """What a person has done: comments of all standings, a video, an upload under way."""

    def __init__(self, made: Scene, user: str = "ann") -> None:
        self.made, self.user = made, user
        self.person = made.persons.admit(user)

    async def do(self) -> Deeds:
        made, person = self.made, self.person
        self.posted = made.comment(person, f"hello from {self.user}")
        self.held = made.comment(person, "waits", held=True)
        self.removed = made.comment(person, "rude")
        comment = Comment.blank(self.removed)
        for event in made.events(self.removed):
            event.mutate(comment)
        comment.remove(ActingAs.MODERATOR, None, by("moderator"))
        made.save(comment)
        self.video = await made.upload(person)
        self.draft = await made.upload(person, completed=False)
        self.cached = await made.cached(f"  Hello from {self.user.upper()} ")
        return self

    def ends(self) -> list[str]:
        """The last events of their things."""
        things = (self.posted, self.held, self.removed, self.video, self.draft)
        return [self.made.history(each)[-1] for each in things]


GONE = [
    "comment.deleted.v1",
    "comment.withdrawn.v1",
    "comment.withdrawn.v1",
    "upload.removed.v1",
    "upload.aborted.v1",
]
TOLD = ["person.forget_requested.v1", "person.forgotten.v1"]
COUNTS = {"comments": 3, "uploads": 2, "redis.translations": 1, "telemetry": 2}


async def whole(made: Scene, deeds: Deeds, counts: dict[str, int] = COUNTS) -> None:
    """Fail unless the person is forgotten, once, with all that was theirs."""
    person = deeds.person
    assert deeds.ends() == GONE
    told = made.told(person)
    assert [event.TOPIC for event in told] == TOLD
    assert isinstance(told[-1], Person.Forgotten)
    assert (told[-1].actor, told[-1].counts) == (SystemActor.PRIVACY, counts)
    made.persons.drop(person)
    assert made.persons.names([person]) == {person: FORGOTTEN}
    assert made.persons.cipher(person) is None
    known = made.persons.look_up(deeds.user)
    assert known is not None
    assert known.forgotten_at is not None
    texts = {getattr(event, "content", "") for event in made.events(deeds.posted)}
    assert texts == {""}
    for upload in (deeds.video, deeds.draft):
        assert await made.objects.head(object_key(upload)) is None
    begun = made.events(deeds.draft)[0]
    assert isinstance(begun, Upload.Started)
    with pytest.raises(NoSuchUpload):
        await made.objects.list_parts(begun.object_key, begun.store_upload_id)
    assert await made.redis.exists(deeds.cached) == 0
    erasure = await made.erasure(person)
    assert erasure.finished_at is not None


def test_everything_of_a_person_goes(play: Play) -> None:
    async def act(made: Scene) -> None:
        ann, bob = await Deeds(made).do(), await Deeds(made, "bob").do()
        await made.ask(ann.person)
        assert await made.eraser().turn(made.conn) is None
        await whole(made, ann)
        # Before the settling time, and after it.
        assert made.purges.of == [ann.person] * 2
        # Of others nothing goes.
        assert made.persons.names([bob.person]) == {bob.person: "bob"}
        assert made.history(bob.posted) == ["comment.posted.v1"]
        assert await made.objects.head(object_key(bob.video)) is not None
        assert await made.redis.exists(bob.cached) == 1
        # A process that still remembers a token of theirs does nothing with it.
        with pytest.raises(Forgotten):
            await execute(made.bus, Toggle(UUID(int=1)), ann.person)
        # And once is enough.
        assert await made.eraser().turn(made.conn) is None
        await whole(made, ann)

    play(act)


def test_videos_are_kept_under_nobodys_name(play: Play) -> None:
    async def act(made: Scene) -> None:
        ann = await Deeds(made).do()
        await made.ask(ann.person, VideosFate.KEEP)
        await made.eraser().turn(made.conn)
        assert ann.ends() == [*GONE[:3], "upload.disowned.v1", "upload.aborted.v1"]
        *_, last = made.events(ann.video)
        assert isinstance(last, Upload.Disowned)
        assert made.persons.names([last.owner]) == {last.owner: NOBODY}
        assert (last.title, last.filename, last.description) == ("Rain", "rain.mp4", "Loud")
        assert await made.objects.head(object_key(ann.video)) is not None
        assert await made.objects.head(object_key(ann.draft)) is None
        # What was said before under the person's own key is gone.
        first = made.events(ann.video)[0]
        assert isinstance(first, Upload.Started)
        assert (first.title, first.filename, first.description) == ("", "", None)

    play(act)


def test_nothing_is_taken_any_more_from_whom_the_program_forgets(play: Play) -> None:
    async def act(made: Scene) -> None:
        ann, bob = made.persons.admit("ann"), made.persons.admit("bob")
        await execute(made.bus, Toggle(UUID(int=1)), ann)
        made.persons.fence(ann)
        with pytest.raises(Forgotten):
            await execute(made.bus, Toggle(UUID(int=1)), ann)
        with pytest.raises(Forgotten):
            made.persons.admit("ann")
        assert made.persons.find("ann") is None
        await execute(made.bus, Toggle(UUID(int=2)), bob)
        # Parts of the system still act, on the same streams.
        await execute(made.bus, Toggle(UUID(int=1)), SystemActor.PRIVACY)
        await made.ask(ann)
        assert [type(event).__name__ for event in made.events(STREAM_ID)] == ["UserRevoked"]

    play(act)


def test_a_process_that_remembers_the_token_hears_of_it(play: Play) -> None:
    async def act(made: Scene) -> None:
        key = OneKey(SECRET, ["HS256"])
        subject = Authenticator(key, persons=made.persons)
        token = mint_token(SECRET, "ann")
        person = subject.authenticate(token).person
        with recording(made.database_url) as another:
            async with another_process(another, made.database_url, subject):
                assert subject.recall(token) is not None
                await made.ask(person)
                await until(lambda: subject.recall(token) is None)
        with pytest.raises(Forgotten):
            subject.authenticate(token)

    play(act)


def test_a_request_that_was_cut_off_behind_the_fence_is_made_up_for(play: Play) -> None:
    async def act(made: Scene) -> None:
        ann = await Deeds(made).do()
        made.persons.fence(ann.person)
        # Perhaps it is just under way, and says what becomes of the videos.
        await made.eraser().turn(made.conn)
        assert (await made.erasure(ann.person)).step is ErasureStep.REQUEST
        assert made.told(ann.person) == []
        await made.eraser(grace=NOTHING).turn(made.conn)
        await whole(made, ann)

    play(act)


class Killed(BaseException):
    """The process is no more."""


@pytest.mark.parametrize("step", ErasureStep)
def test_whoever_dies_behind_a_step_is_followed_by_another(
    play: Play, step: ErasureStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the step did stands, and that it was done is not written down."""
    advance = erasures.advance

    def killed(conn: Any, erasure: erasures.Erasure, removed: Any) -> None:
        if erasure.step is step:
            raise Killed
        advance(conn, erasure, removed)

    def killed_at_the_end(conn: Any, pseudonym: str, counts: Any) -> None:
        raise Killed

    async def act(made: Scene) -> None:
        ann = await Deeds(made).do()
        await made.ask(ann.person)
        with monkeypatch.context() as patches:
            patches.setattr(erasures, "advance", killed)
            if step is ErasureStep.FINISH:
                patches.setattr(erasures, "finish", killed_at_the_end)
            with pytest.raises(Killed):
                await made.eraser().turn(made.conn)
        await made.eraser().turn(made.conn)
        # What was counted nowhere yet is not found again.
        lost = {ErasureStep.TEXTS: "redis.translations", ErasureStep.PLACES: "telemetry"}.get(step)
        await whole(made, ann, {part: n for part, n in COUNTS.items() if part != lost})

    play(act)


def test_two_at_once_do_no_harm(play: Play) -> None:
    async def act(made: Scene) -> None:
        ann = await Deeds(made).do()
        await made.ask(ann.person)
        async with connected(made.database_url, "another") as another:
            await asyncio.gather(
                made.eraser().turn(made.conn), made.eraser().turn(another), return_exceptions=False
            )
        assert ann.ends() == GONE
        assert [event.TOPIC for event in made.told(ann.person)] == TOLD
        assert (await made.erasure(ann.person)).finished_at is not None

    play(act)


def test_what_fails_is_told_and_holds_up_nobody_else(play: Play) -> None:
    async def act(made: Scene) -> None:
        ann, bob = await Deeds(made).do(), await Deeds(made, "bob").do()
        for each in (ann, bob):
            await made.ask(each.person)
        made.purges.fails_for = {ann.person}
        for _ in range(2):
            pause = await made.eraser().turn(made.conn)
            assert pause is not None
        stuck = await made.erasure(ann.person)
        assert (stuck.step, stuck.failures, stuck.error) == (
            ErasureStep.PLACES,
            2,
            "ConnectionError",
        )
        await whole(made, bob)
        made.purges.fails_for = set()
        assert await made.eraser().turn(made.conn) is None
        await whole(made, ann)

    play(act)


def test_nothing_is_destroyed_before_every_place_outside_knows(play: Play, tmp_path: Path) -> None:
    """Else a database that is restored from then on would show the person for good."""
    far = tmp_path / "not mounted" / "forgotten.jsonl"
    places = [ForgottenList(LineFile(path)) for path in (tmp_path / "near.jsonl", far)]

    async def act(made: Scene) -> None:
        ann = await Deeds(made).do()
        eraser = made.eraser(proofs=Proofs(outside=Outside(forgotten=places)))
        await made.ask(ann.person)
        assert await eraser.turn(made.conn) is not None
        stuck = await made.erasure(ann.person)
        assert (stuck.step, stuck.error) == (ErasureStep.KEY, "AnchorsUnusable")
        assert made.persons.names([ann.person]) == {ann.person: "ann"}
        far.parent.mkdir()
        assert await eraser.turn(made.conn) is None
        await whole(made, ann)
        expected = {person_digest(ann.person): stuck.fenced_at}
        assert [each.read() for each in places] == [expected, expected]

    play(act)


def test_what_comes_late_goes_too(play: Play) -> None:
    async def act(made: Scene) -> None:
        ann = await Deeds(made).do()
        await made.ask(ann.person)
        await made.eraser(settling=LONG).turn(made.conn)
        assert (await made.erasure(ann.person)).step is ErasureStep.SETTLING
        # A batch that was under way when the fence came.
        late, film = made.comment(ann.person, "late"), await made.upload(ann.person)
        await made.eraser().turn(made.conn)
        assert made.history(late)[-1] == "comment.deleted.v1"
        assert made.history(film)[-1] == "upload.removed.v1"
        assert await made.objects.head(object_key(film)) is None
        await whole(made, ann, {**COUNTS, "comments": 4, "uploads": 3})

    play(act)


async def cached_list(made: Scene, user: str, video: UUID, *, told: bool) -> str:
    """The key of what is cached for a user: a video that is recommended, or told in a reason."""
    other = uuid4()
    listed = RankedVideo(other if told else video, 0.5, "Because you watched “Rain”")
    titles = {video: ("Rain", None)} if told else {}
    ranked = RankedRecommendations(RecommendationSource.BLEND, (listed,), True, titles)
    value = CachedValue(ranked, datetime.now(UTC), None)
    await made.redis.set(f"{PREFIX}{user}", FORM.dump_json(value))
    return f"{PREFIX}{user}"


@pytest.mark.parametrize("videos", list(VideosFate))
def test_nobody_is_recommended_what_was_theirs(play: Play, videos: VideosFate) -> None:
    async def act(made: Scene) -> None:
        ann, bob = await Deeds(made).do(), await Deeds(made, "bob").do()
        gone = [
            *[await cached_list(made, f"viewer-{n}", ann.video, told=False) for n in range(120)],
            await cached_list(made, "viewer", ann.video, told=True),
            key_of(Window.WEEK, 10, "what only Ann has"),
        ]
        await made.redis.set(gone[-1], "[]")
        kept = await cached_list(made, "another", bob.video, told=True)
        await made.ask(ann.person, videos)
        await made.eraser(settling=LONG).turn(made.conn)
        assert await made.redis.exists(*gone) == 0
        # Of a process that had begun before the videos went.
        late = await cached_list(made, "late", ann.video, told=True)
        await made.eraser().turn(made.conn)
        assert await made.redis.exists(late) == 0
        assert await made.redis.exists(kept) == 1
        _, told = made.told(ann.person)
        assert isinstance(told, Person.Forgotten)
        assert told.counts["redis.recommended"] == 122

    play(act)


def test_the_pause_counts_from_the_beginning_of_the_purge(play: Play) -> None:
    async def act(made: Scene) -> None:
        ann = await Deeds(made).do()
        await made.ask(ann.person)
        made.purges.fails_for = {ann.person}
        await made.eraser(settling=LONG).turn(made.conn)
        assert (await made.erasure(ann.person)).step is ErasureStep.PLACES
        # It takes two hours.
        ago = "UPDATE backlot_erasures SET step_at = step_at - interval '2 hours' RETURNING 1"
        rows(made.database_url, ago)
        made.purges.fails_for = set()
        await made.eraser(settling=LONG).turn(made.conn)
        await whole(made, ann)

    play(act)


def test_for_days_it_is_purged_again_what_comes_even_later(play: Play) -> None:
    async def act(made: Scene) -> None:
        ann, bob = await Deeds(made).do(), await Deeds(made, "bob").do()
        for each in (ann, bob):
            await made.ask(each.person)
        eraser = made.eraser()
        await eraser.turn(made.conn)
        ago = "UPDATE backlot_erasures SET finished_at = finished_at - interval '9 days' "
        rows(made.database_url, ago + "WHERE pseudonym = %s RETURNING 1", [bob.person])
        made.purges.of.clear()
        await eraser.sweep(made.conn)
        assert made.purges.of == [ann.person]
        # The command bus asks for the newest alone, so that it is given few.
        assert rows(made.database_url, erasures.FENCED.decode()) == [(ann.person,)]

    play(act)


def test_their_streams_are_found_by_the_index_and_in_what_it_lacks(play: Play) -> None:
    async def act(made: Scene) -> None:
        ann = made.persons.admit("ann")
        kinds = (Comment.Posted, Comment.Submitted)
        first = {made.comment(ann, "one"), made.comment(ann, "two", held=True)}
        made.comment(made.persons.admit("bob"), "another's")
        assert set(await made.conn.do(begun_streams, kinds, ann)) == first
        head = rows(made.database_url, "SELECT max(notification_id) FROM backlot_events")[0][0]
        with hosting(made.database_url, Audit()):
            await asyncio.to_thread(caught_up, made.database_url, ["audit"], head)
        more = made.comment(ann, "three")
        assert set(await made.conn.do(begun_streams, kinds, ann)) == {*first, more}

    play(act)


def test_the_log_names_nobody_and_says_nothing_in_the_clear(play: Play) -> None:
    async def act(made: Scene) -> None:
        ann = await Deeds(made).do()
        await made.ask(ann.person)
        await made.eraser().turn(made.conn)
        stored = rows(made.database_url, "SELECT convert_from(state, 'UTF8') FROM backlot_events")
        recorded = "".join(state for (state,) in stored)
        assert ann.person in recorded
        assert "hello from ann" not in recorded
        assert '"ann"' not in recorded

    play(act)


def test_the_doctor_names_whose_forgetting_is_stuck(play: Play) -> None:
    async def act(made: Scene) -> None:
        ann, settings = await Deeds(made).do(), load_settings({"DATABASE_URL": made.database_url})
        told = health.erasures(settings)
        assert (told.ok, told.detail) == (True, "nobody is being forgotten")
        await made.ask(ann.person)
        told = health.erasures(settings)
        assert (told.ok, told.detail) == (True, "being forgotten: 1")
        made.purges.fails_for = {ann.person}
        await made.eraser().turn(made.conn)
        told = health.erasures(settings)
        assert not told.ok
        assert f"{ann.person} is not forgotten" in told.detail
        assert "step `places` failed 1 times (ConnectionError)" in told.detail

    play(act)
