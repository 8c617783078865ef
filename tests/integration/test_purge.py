"""Who is forgotten is in no read model any more, nor elsewhere; what others count stays."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from uuid import uuid4

import orjson
import psycopg
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from fakeredis import FakeServer
from psycopg import Connection, sql
from redis.asyncio import Redis

from backlot.features import PERSONAL, TABLES, read_models
from domain.dismissals import Dismissal
from domain.dismissals import stream_id as dismissal_of
from domain.model import Aggregate
from domain.moderation import (
    ModerationCase,
    ReportReason,
    Thing,
    ThingKind,
    UserBlock,
    block_id,
    case_id,
)
from domain.operation import Operation, OperationOutcome
from domain.person import Person, VideosFate, stream_id
from domain.upload import Status
from engine import checkpoints, dead_letters, purge
from engine.checkpoints import SubscriptionKind
from engine.connections import ThreadedConnection
from engine.dead_letters import RejectedMessage
from engine.installation import install, make_tables, migrate
from engine.log import MAPPER
from engine.personal_data import Pace, PersonalTable, Rewritten, count_rows
from engine.persons import Persons
from engine.projection import Projection
from engine.replay.records import ReplayOptions, ReplayState
from infra.key_encryption import GivenKey
from infra.redis import embedded_redis
from projections.analytics import schema
from projections.feedback.reports import TABLES as FEEDBACK
from projections.likes import Likes
from tests.integration.projection_spec import ProjectionSpec
from tests.integration.projection_support import Writer, origin
from tests.integration.replay_support import History, difference, file, projected, replayed
from tests.integration.test_replay_parts import built
from tests.support import seeds

PRIVACY = origin("privacy")
SEEDS = (1, 2)
ALL_OF_A_COPY = """
SELECT relname FROM pg_class
WHERE relnamespace = %s::regnamespace AND relkind = 'r' ORDER BY relname
"""
TABLES_OF_PLACES = [place for place in PERSONAL if isinstance(place, PersonalTable)]


class AnybodysKeys(Persons):
    """Keys of whomever a history names, by their own names."""

    def cipher(self, person: str) -> AESGCM | None:
        try:
            return super().cipher(person)
        except KeyError:
            with self._connection() as conn:
                conn.execute("INSERT INTO backlot_former_names VALUES (%s)", (person,))
            self.drop(person)
            return super().cipher(person)


@pytest.fixture
def conn(database_url: str) -> Iterator[Connection[Any]]:
    """A connection to a database in which nothing has happened yet."""
    with psycopg.connect(database_url, autocommit=True) as opened:
        make_tables(opened, *TABLES)
        install(opened, read_models().all())
        schema.migrate(opened)
        migrate(opened, FEEDBACK)
        yield opened


@pytest.fixture
def persons(
    database_url: str, conn: Connection[Any], writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Persons]:
    """What texts are encrypted with, as in the program."""
    opened = AnybodysKeys(database_url, GivenKey("ab" * 32))
    opened.open()
    for mapper in (MAPPER, writer.mapper):
        monkeypatch.setattr(mapper, "ciphers", opened)
    yield opened
    opened.close()


def every() -> dict[str, Projection]:
    """All read models of the program."""
    return read_models().by_name()


def forgotten(person: str) -> Person:
    """That a person is forgotten, to be recorded."""
    told = Person.blank(stream_id(person))
    told.request_forgetting(person, VideosFate.DELETE, origin(person))
    told.finish_forgetting(person, {"telemetry": 1}, PRIVACY)
    return told


def forget(writer: Writer, persons: Persons, history: History, person: str) -> None:
    """What the program does: comments and videos go as events, then the key, then it is told."""
    own = [comment for comment in history.comments if comment.author == person]
    for comment in own:
        comment.erase(PRIVACY)
    erased: list[Aggregate] = [comment for comment in own if comment.pending_events]
    for number, upload in enumerate(history.uploads):
        heir = "nobody-s-heir" if number % 2 else None
        if upload.erase(person, heir, PRIVACY) is not None:
            erased.append(upload)
    for each in erased:
        writer.save(each)
    # A history may have named them without a word of theirs that needs a key.
    persons.cipher(person)
    persons.fence(person)
    persons.destroy(person)
    writer.save(forgotten(person))


def named_in(conn: Connection[Any], schema: str, person: str) -> dict[str, int]:
    """How many rows of each table of a copy say the name, in whatever column."""
    found = {}
    for (table,) in conn.execute(ALL_OF_A_COPY, (schema,)).fetchall():
        query = sql.SQL("SELECT count(*) FROM {} AS t WHERE position(%s IN t::text) > 0")
        name = sql.Identifier(schema, table)
        ((found[table],),) = conn.execute(query.format(name), (f"{person}",)).fetchall()
    return {table: count for table, count in found.items() if count}


def numbers(conn: Connection[Any]) -> list[Any]:
    """What is counted of each video."""
    return [
        conn.execute(query).fetchall()
        for query in (
            "SELECT * FROM likes.counts ORDER BY video_id",
            "SELECT * FROM moderation.tallies ORDER BY case_id, round, category",
        )
    ]


def commotion(writer: Writer, history: History) -> None:
    """What those who are to be forgotten do, or have done to them, and a history does not tell."""
    block = UserBlock.blank(block_id("viewer-2", "bob"))
    block.block("bob", origin("viewer-2"))
    operation = Operation.blank(uuid4())
    operation.request("verify", "likes", {}, origin("moderator"))
    operation.finish(OperationOutcome.DONE, {"keys": [{"viewer": "bob"}]}, origin("moderator"))
    writer.save(block, operation)
    comment = writer.comment(writer.video("somebody").id, author="viewer-3")
    comment.translate_target(1, "es", "de", "Schön!", "m", "1", origin("translation"))
    writer.save(comment)
    for upload in history.uploads[:4]:
        dismissal = Dismissal.blank(dismissal_of(upload.id, "viewer-1"))
        dismissal.dismiss(upload.id, "viewer-1", origin("viewer-1"))
        thing = Thing(ThingKind.VIDEO, upload.id, upload.id)
        case = history.cases.setdefault(upload.id, ModerationCase.blank(case_id(upload.id)))
        file(writer, case, thing, "bob", ReportReason.SPAM, "in bob's words")
        writer.save(dismissal)
        writer.like(upload.id, "bob")


@seeds(SEEDS, always=1)
def test_a_replay_after_forgetting_makes_the_same_rows_and_counts(
    database_url: str, conn: Connection[Any], writer: Writer, persons: Persons, seed: int
) -> None:
    history = History(writer, seed, videos=8, viewers=5)
    history.grow(150)
    commotion(writer, history)
    projected(database_url, writer, every())
    assert named_in(conn, "likes", "bob")
    assert named_in(conn, "comments", "moderator")
    before = numbers(conn)
    for person in ("viewer-1", "bob", "moderator"):
        forget(writer, persons, history, person)
    projected(database_url, writer, every())
    assert numbers(conn) == before
    # Whose videos go takes the numbers of these along.
    forget(writer, persons, history, "alice")
    writer.like(history.uploads[0].id, "somebody-else")
    projected(database_url, writer, every())
    for name, projection in every().items():
        left = {p: named_in(conn, name, p) for p in ("viewer-1", "bob", "moderator", "alice")}
        assert name == "audit" or not any(left.values()), (name, left)
        assert not named_in(conn, name, "Bonito" if name == "translations" else "bonito"), name
        for workers, batch_events in ((1, 13), (3, 7)) if projection.by_stream else ((1, 13),):
            copy = built(
                database_url, projection, writer.head, workers=workers, batch_events=batch_events
            )
            found = difference(database_url, name, copy)
            assert not found.differs, (seed, copy, found.as_dict())


# What takes a read model back to an earlier version, and to which: since so many versions.
ADDED = {
    "comments": (
        """
        ALTER TABLE comments.hidden DROP COLUMN decided_by, DROP COLUMN parent_id;
        ALTER TABLE comments.comments DROP COLUMN parent_id;
        DROP TABLE comments.tallies
        """,
        2,
    ),
    "moderation": ("ALTER TABLE moderation.details DROP COLUMN reporter", 1),
    "translations": ("ALTER TABLE translations.translations DROP COLUMN author", 1),
}


def test_what_an_earlier_release_made_grows_with_the_persons_of_the_log(
    database_url: str, conn: Connection[Any], writer: Writer
) -> None:
    history = History(writer, 1, videos=8, viewers=5)
    history.grow(150)
    commotion(writer, history)
    projected(database_url, writer, every())
    for name, (drop, versions) in ADDED.items():
        conn.execute(drop.encode())
        checkpoints.set_version(conn, name, every()[name].version - versions)
    install(conn, every().values())
    for name in ADDED:
        copy = built(database_url, every()[name], writer.head, workers=1, batch_events=100)
        found = difference(database_url, name, copy)
        assert not found.differs, found.as_dict()
    persons = "SELECT count(DISTINCT {}) FROM {}"
    for column, table in (
        ("decided_by", "comments.hidden"),
        ("reporter", "moderation.details"),
        ("author", "translations.translations"),
    ):
        assert conn.execute(persons.format(column, table).encode()).fetchall() != [(0,)]


def test_likes_of_a_forgotten_viewer_stay_counted(conn: Connection[Any], writer: Writer) -> None:
    film, gone, late = writer.video(), writer.video(), writer.video()
    spec = ProjectionSpec(conn, writer, Likes)
    for video in (film, gone, late):
        writer.like(video.id, "ann", "bob")
    writer.unlike(film.id, "bob")
    gone.remove(origin("alice"))
    spec.given(gone).when(forgotten("ann"))
    spec.then("likes", (late.id, "bob"), columns="video_id, viewer")
    spec.then("counts", (film.id, 1), (late.id, 2))
    late.remove(origin("alice"))
    writer.like(film.id, "bob")
    spec.when(late).then("counts", (film.id, 2))
    spec.then("likes", (film.id, "bob"), columns="video_id, viewer")


def test_a_projection_that_names_persons_wants_to_hear_who_is_forgotten() -> None:
    for projection in read_models().all():
        declared = [each for each in TABLES_OF_PLACES if each.projection == projection.name]
        if projection.name == "audit":
            continue
        assert declared == [p for p in projection.personal if isinstance(p, PersonalTable)]
        wanted = [event for event in projection.events if event.FORGETS is not None]
        assert wanted == ([Person.Forgotten] if declared else []), projection.name
        assert not projection.by_stream or {*wanted} <= {*projection.absorbing}, projection.name


def test_a_copy_that_rests_is_dropped_with_what_it_holds(
    database_url: str, conn: Connection[Any], writer: Writer
) -> None:
    film = writer.video()
    writer.like(film.id, "ann", "bob")
    projected(database_url, writer, every())
    for name in ("likes", "dismissals"):
        replay = replayed(database_url, every()[name], ReplayOptions())
        assert replay.state is ReplayState.SWITCHED
    assert purge.purge_copies(conn, TABLES_OF_PLACES, "ann") == {"likes.likes": 1}
    found = conn.execute("SELECT subscription FROM backlot_checkpoints WHERE kind = 'projection'")
    copies = {name for (name,) in found if name.endswith("__previous")}
    assert copies == {"dismissals__previous"}
    # One of another release lacks what persons are found by.
    translations = replayed(database_url, every()["translations"], ReplayOptions())
    assert translations.state is ReplayState.SWITCHED
    conn.execute("ALTER TABLE translations__previous.translations DROP COLUMN author")
    checkpoints.set_version(conn, "translations__previous", 1)
    assert count_rows(conn, place("translations.translations"), "ann") == 0
    assert purge.purge_copies(conn, TABLES_OF_PLACES, "ann") == {}
    assert checkpoints.look(conn, "translations__previous") is None
    assert checkpoints.look(conn, "translations") is not None
    # What is live forgets by itself, and what a replay builds.
    assert count_rows(conn, place("likes.likes"), "ann") == 1
    assert purge.purge_copies(conn, TABLES_OF_PLACES, "ann") == {}


def place(name: str) -> PersonalTable:
    (found,) = (each for each in TABLES_OF_PLACES if each.name == name)
    return found


FILLED = (
    """
    INSERT INTO backlot_telemetry
        (event_id, topic, video_id, user_id, happened_at, details, correlation_id)
    SELECT gen_random_uuid(), 'video.shared', gen_random_uuid(), %(who)s, now(),
           '{"channel": "ann told so"}', 'c' FROM generate_series(1, 7)
    """,
    "INSERT INTO backlot_view_sessions VALUES (gen_random_uuid(), %(who)s, 's', now())",
    """
    INSERT INTO backlot_events_answers (actor, key, request_hash, status, body, position)
    VALUES (%(who)s, 'k', '', 200, '{}', 1),
           ('mod-' || %(who)s, 'k', '', 200,
            convert_to('{"userId":"' || %(who)s || '"}', 'UTF8'), 1)
    """,
    "INSERT INTO backlot_reservations VALUES (gen_random_uuid(), %(who)s, 1, now())",
    """
    INSERT INTO projections.replays (name, version, schema, purpose, workers, state, confirmed,
        requested_by, operation_id, finished_at, result)
    VALUES ('likes', 1, 's', 'verify', 1, 'verified', false, %(who)s, gen_random_uuid(), now(),
            jsonb_build_object('keys', jsonb_build_array(%(who)s::text)))
    """,
    """
    INSERT INTO projections.park_orders
    VALUES ('likes', 't', %(who)s || ' broke it', 1, %(who)s, 'mine')
    """,
    "INSERT INTO analytics.engaged (viewer, video_id) VALUES (%(who)s, gen_random_uuid())",
    "INSERT INTO analytics.videos (video_id, owner) VALUES (gen_random_uuid(), %(who)s)",
    """
    INSERT INTO analytics.participants
    VALUES (gen_random_uuid(), %(who)s, 1, 1, now(), now(), now(), now())
    """,
)
EXPECTED = {
    "telemetry": 7,
    "view_sessions": 1,
    "answers": 1,
    "answers.of_others": 1,
    "reservations": 1,
    "replays": 1,
    "park_orders": 1,
    "analytics.engaged": 1,
    "analytics.videos": 1,
    "analytics.participants": 1,
}


def fill(conn: Connection[Any], who: str) -> None:
    for statement in FILLED:
        conn.execute(statement, {"who": who})


def purged(conn: Connection[Any], who: str, places: list[PersonalTable]) -> Counter[str]:
    return purge.purge_tables(conn, places, who)


def test_what_no_read_model_holds_is_purged_and_twice_is_once(
    conn: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge, "BATCH", " LIMIT 3))")
    monkeypatch.setattr(purge, "ROWS_AT_ONCE", 3)
    for who in ("ann", "bob"):
        fill(conn, who)
    head = "SELECT count(*), max(seq) FROM backlot_telemetry"
    before = conn.execute(head).fetchall()
    assert purged(conn, "ann", TABLES_OF_PLACES) == EXPECTED
    assert purged(conn, "ann", TABLES_OF_PLACES) == {}
    assert conn.execute(head).fetchall() == before
    for each in TABLES_OF_PLACES:
        assert count_rows(conn, each, "ann") == 0, each.name
        assert count_rows(conn, each, "bob") == EXPECTED.get(each.name, 0), each.name
    details = "SELECT DISTINCT details, correlation_id FROM backlot_telemetry WHERE user_id IS NULL"
    assert conn.execute(details).fetchall() == [({}, None)]


def test_whoever_dies_between_places_begins_again(conn: Connection[Any]) -> None:
    fill(conn, "ann")

    def killed(_: Connection[Any], subject: str, __: Pace) -> int:
        raise SystemExit(subject)

    letters = replace(place("dead_letters"), forget=Rewritten(killed, "killed"))
    broken = [letters if each.name == letters.name else each for each in TABLES_OF_PLACES]
    with pytest.raises(SystemExit):
        purged(conn, "ann", broken)
    purged(conn, "ann", TABLES_OF_PLACES)
    assert {each.name: count_rows(conn, each, "ann") for each in TABLES_OF_PLACES} == {
        each.name: 0 for each in TABLES_OF_PLACES
    }


def test_letters_lose_what_names_the_person_or_is_of_their_events(
    conn: Connection[Any], writer: Writer
) -> None:
    comment = writer.comment(uuid4(), author="ann", content="secret")
    comment.translate_target(comment.revision, "es", "de", "a secret", "m", "1", PRIVACY)
    at = writer.save(comment)
    told = {
        "names": RejectedMessage("t", 0, 1, "video.liked", "broke", value=b'{"userId":"ann"}'),
        "translated": RejectedMessage(
            "t", 0, 2, "comment.translated", "broke", value=b"a secret",
            headers={"position": str(at)},
        ),
        "of the log": RejectedMessage("events", 0, at, "x", "broke", value=b"a secret"),
        "others": RejectedMessage("t", 0, 3, "video.liked", "broke", value=b'{"userId":"bob"}'),
    }  # fmt: skip
    for name, message in told.items():
        dead_letters.reject(conn, SubscriptionKind.CONSUMER, name, [message])
    parked = """
        INSERT INTO backlot_dead_letters
            (kind, subscription, position, error, status, decided_by, reason)
        VALUES ('projection', %s, %s, %s, 'parked', %s, %s)
    """
    conn.execute(parked, ("one", at, "DataError: a secret", None, None))
    conn.execute(parked, ("two", 999, "DataError: not hers", "ann", "ann's words"))
    assert dead_letters.forget_letters(conn, "ann", nullcontext) == 5
    assert dead_letters.forget_letters(conn, "ann", nullcontext) == 0
    left = "SELECT subscription, error, decided_by, reason FROM backlot_dead_letters ORDER BY 1"
    assert conn.execute(left).fetchall() == [
        ("one", "DataError", None, None),
        ("others", "broke", None, None),
        ("two", "DataError", "forgotten", None),
    ]


def test_a_database_without_tables_has_nothing_to_purge(database_url: str) -> None:
    """As that of the analytics is before their first start."""
    with psycopg.connect(database_url, autocommit=True) as empty:
        assert purged(empty, "ann", [each for each in TABLES_OF_PLACES if each.analytics]) == {}


def test_redis_loses_keys_and_tasks(conn: Connection[Any], database_url: str) -> None:
    keys = {
        place.of(who).replace("*", "x").replace("\\", ""): who
        for place in PERSONAL
        if hasattr(place, "of")
        for who in ("ann", "bob")
    }
    task = {who: orjson.dumps({"args": [who], "options": {}}) for who in ("ann", "bob")}

    async def work() -> tuple[Counter[str], set[str], list[Any]]:
        redis: Redis = embedded_redis(FakeServer(version=(7, 4)))
        for key in keys:
            await redis.set(key, "1")
        for who, message in task.items():
            await redis.rpush("backlot:recommendations", who)
            await redis.hset("backlot:recommendations.msgs", who, message)
            await redis.zadd("backlot:recommendations.XQ", {who: 1.0})
            await redis.hset("backlot:recommendations.XQ.msgs", who, message)
        main = ThreadedConnection(conn)
        gone = await purge.purge(PERSONAL, main, main, redis, "ann")
        assert not await purge.purge(PERSONAL, main, main, redis, "ann")
        left = {key.decode() async for key in redis.scan_iter()}
        queues = [
            await redis.lrange("backlot:recommendations", 0, -1),
            await redis.zrange("backlot:recommendations.XQ", 0, -1),
            await redis.hkeys("backlot:recommendations.msgs"),
            await redis.hkeys("backlot:recommendations.XQ.msgs"),
        ]
        return gone, left, queues

    gone, left, queues = asyncio.run(work())
    assert {key for key, who in keys.items() if who == "bob"} == {
        key for key in left if not key.startswith("backlot:recommendations")
    }
    assert queues == [[b"bob"]] * 4
    assert gone["tasks.recommendations"] == 2
    assert gone["redis.recommendations"] == 1


def test_uploads_that_never_became_videos_go_with_their_owner(
    conn: Connection[Any], database_url: str, writer: Writer
) -> None:
    started, video = writer.upload("ann"), writer.video("ann")
    assert started.erase("ann", None, PRIVACY) is Status.STARTED
    assert video.erase("ann", "heir", PRIVACY) is Status.COMPLETED
    writer.save(started, video, forgotten("ann"))
    projected(database_url, writer, every())
    found = conn.execute("SELECT upload_id, owner, transcript FROM catalog.uploads").fetchall()
    assert found == [(video.id, "heir", None)]
