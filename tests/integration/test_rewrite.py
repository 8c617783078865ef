"""The log of an older release under pseudonyms: nobody is named in it, and nothing else changes."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson
import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from domain import dismissals, moderation, video_likes
from domain.comment import Comment
from domain.dismissals import Dismissal
from domain.errors import Forgotten
from domain.model import Origin, SystemActor
from domain.moderation import (
    ContentReport,
    Hold,
    HoldCause,
    ModerationCase,
    ReportReason,
    Thing,
    ThingKind,
    UserBlock,
    block_id,
    case_id,
    report_id,
)
from domain.operation import Operation
from domain.person import Person, VideosFate, stream_id
from domain.upload import Upload
from domain.video_likes import VideoLikes
from engine.archive.keys import KeysUnusable, export_keys, keys_path, read_keys
from engine.archive.lines import ExportRequest
from engine.archive.rewrite import RewriteResult, rewrite_log
from engine.archive.transfer import ImportRefused, export_log, import_log
from engine.installation import install as install_projections
from engine.log import MAPPER, event_id
from engine.persons import Persons
from engine.privileges import give_rights, make_user
from engine.seals.chain import connect, last_seal, seals
from engine.seals.proofs import Proofs
from engine.wrapping_keys import rotate
from infra.key_encryption import GivenKey, KeyEncryptionFailed
from infra.postgres.server import EmbeddedPostgres
from projections.catalog import Catalog
from projections.comments import Comments
from projections.dismissals import Dismissals
from projections.likes import Likes
from projections.moderation import Moderation
from tests.integration.archive_support import check, whole_table
from tests.integration.event_log import rows, tables_made
from tests.integration.projection_support import Writer, caught_up, hosting, origin
from tests.integration.seal_support import TOPICS, new_key, seal_all, verify

KEK = GivenKey(secrets.token_hex(32))
KEY = new_key()
USERS = ("annika.lund", "bob@example.net", "Zoë 🎬", "moderator-5", "eve", "nobody-any-more")
ANN, BOB, ZOE, MODERATOR, EVE, GONE = USERS
TEXTS = ("Qué bonito, secreto uno", "secret report of somebody", "The secret title")


class OldLog(Writer):
    """What a release before pseudonyms recorded: user ids and plain texts."""

    def __init__(self, database_url: str) -> None:
        super().__init__(database_url)
        self.film = self.video(ANN, title=TEXTS[2], description="a secret description").id
        self.like(self.film, BOB, ZOE, EVE, GONE)
        self.unlike(self.film, ZOE)
        self.like(self.film, ZOE)
        self.unlike(self.film, EVE)
        self.text = self.comment(self.film, BOB, TEXTS[0])
        held = self.comment(self.film, EVE, "held, secretly", Hold(HoldCause.APPROVAL, ANN))
        held.remove(moderation.ActingAs.MODERATOR, "a secret reason", origin(MODERATOR))
        self.save(held)
        self.act()
        self.react()

    def act(self) -> None:
        dismissal = Dismissal.blank(dismissals.stream_id(self.film, BOB))
        dismissal.dismiss(self.film, BOB, origin(BOB))
        block = UserBlock.blank(block_id(ANN, BOB))
        block.block(BOB, origin(ANN))
        case = ModerationCase.blank(case_id(self.text.id))
        report = ContentReport.blank(report_id(self.text.id, ZOE))
        thing = Thing(ThingKind.COMMENT, self.text.id, self.film)
        report.file(case, thing, ReportReason.SPAM, TEXTS[1], origin(ZOE))
        self.save(dismissal, block, case, report)

    def react(self) -> None:
        """Something that was caused by a like, as by a part of the program."""
        self.cause = event_id(video_likes.stream_id(self.film, BOB), 1)
        said = Origin(SystemActor.TRANSLATION, origin().at, str(self.cause), str(self.cause))
        self.text.detect_language(1, "es", 0.9, "test", "en", said)
        operation = Operation.blank(uuid4())
        operation.request("replay", "likes", {}, origin("operator:root"))
        self.save(self.text, operation)


@pytest.fixture
def old(database_url: str) -> Iterator[OldLog]:
    log = OldLog(database_url)
    seal_all(database_url, key=KEY)
    yield log
    log.close()


@pytest.fixture
def exported(old: OldLog, database_url: str, tmp_path: Path) -> Path:
    path = tmp_path / "old.jsonl"
    with connect(database_url, "test") as conn:
        export_log(conn, path, ExportRequest())
    return path


@pytest.fixture
def new_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A second database, with tables and without events."""
    name = f"other_{os.getpid()}_{time.monotonic_ns()}"
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute(SQL("CREATE DATABASE {} STRATEGY FILE_COPY").format(Identifier(name)))
        url = postgres.url_of(name)
        tables_made(url)
        yield url
        admin.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


def rewrite(url: str, path: Path, kek: GivenKey = KEK) -> RewriteResult:
    with connect(url, "test") as conn:
        return rewrite_log(
            conn,
            path,
            kek,
            Proofs(KEY.public),
            seal_key=KEY,
            block_events=10,
            known_topics=TOPICS,
        )


@pytest.fixture
def persons(new_url: str) -> Iterator[Persons]:
    """Those of the new database; what is read there is decrypted."""
    found = Persons(new_url, KEK)
    MAPPER.ciphers = found
    yield found
    MAPPER.ciphers = None
    found.close()


def test_nobody_is_named_and_nothing_can_be_read(exported: Path, old: OldLog, new_url: str) -> None:
    done = rewrite(new_url, exported)
    assert (done.persons, done.unreadable) == (len(USERS), 0)
    raw = b"\n".join(state for (state,) in rows(new_url, "SELECT state FROM backlot_events"))
    whole = raw + repr(whole_table(new_url, "backlot_persons")).encode()
    for secret in (*USERS, *TEXTS, "secret", b"secret".hex()):
        assert orjson.dumps(secret)[1:-1] not in whole, secret


def test_positions_versions_and_times_stay(
    exported: Path, old: OldLog, database_url: str, new_url: str
) -> None:
    rewrite(new_url, exported)
    kept = "SELECT notification_id, originator_version, topic, "
    kept += "convert_from(state, 'UTF8')::jsonb->>'timestamp' FROM backlot_events ORDER BY 1"
    assert rows(new_url, kept) == rows(database_url, kept)


def test_streams_are_those_that_the_pseudonyms_make(
    exported: Path, old: OldLog, new_url: str, persons: Persons
) -> None:
    rewrite(new_url, exported)
    ann, bob, zoe = (persons.find(name) for name in (ANN, BOB, ZOE))
    assert ann
    assert bob
    assert zoe
    expected = {
        video_likes.stream_id(old.film, bob): 1,
        video_likes.stream_id(old.film, zoe): 3,
        dismissals.stream_id(old.film, bob): 1,
        block_id(ann, bob): 1,
        report_id(old.text.id, zoe): 1,
        old.film: 2,
        old.text.id: 2,
    }
    found: dict[UUID, int] = dict(
        rows(new_url, "SELECT originator_id, count(*) FROM backlot_events GROUP BY 1")
    )
    assert {stream: found.get(stream) for stream in expected} == expected


def test_what_a_moved_event_led_to_names_it_as_it_is_now(
    exported: Path, old: OldLog, new_url: str, persons: Persons
) -> None:
    rewrite(new_url, exported)
    bob = persons.find(BOB)
    assert bob
    cause = str(event_id(video_likes.stream_id(old.film, bob), 1))
    ((state,),) = rows(
        new_url, "SELECT state FROM backlot_events WHERE topic = 'comment.language_detected.v2'"
    )
    said = orjson.loads(state)
    assert (said["causation_id"], said["correlation_id"]) == (cause, cause)
    assert str(old.cause) != cause


def test_aggregates_are_what_they_were(
    exported: Path, old: OldLog, new_url: str, persons: Persons
) -> None:
    rewrite(new_url, exported)
    bob, zoe, eve = (persons.find(name) for name in (BOB, ZOE, EVE))
    assert bob
    assert zoe
    assert eve
    text = Comment.blank(old.text.id)
    for event in events(new_url, old.text.id):
        event.mutate(text)
    assert (text.content, text.author, text.language) == (TEXTS[0], bob, "es")
    film = Upload.blank(old.film)
    for event in events(new_url, old.film):
        event.mutate(film)
    assert (film.title, film.owner) == (TEXTS[2], persons.find(ANN))
    for viewer, liked in ((bob, True), (zoe, True), (eve, False)):
        likes = VideoLikes.blank(video_likes.stream_id(old.film, viewer))
        for event in events(new_url, likes.id):
            event.mutate(likes)
        assert likes.liked is liked
    assert persons.names([bob, zoe]) == {bob: BOB, zoe: ZOE}


def events(url: str, stream: UUID) -> list[Any]:
    found = rows(
        url,
        "SELECT originator_id, originator_version, topic, state FROM backlot_events "
        "WHERE originator_id = %s ORDER BY 2",
        (stream,),
    )
    return [MAPPER.decode(*row) for row in found]


MODELS = (Catalog, Likes, Comments, Dismissals, Moderation)


def counts(database_url: str, head: int) -> dict[str, int]:
    """How many rows each table of the read models has, and the sums of what is counted."""
    models = [model() for model in MODELS]
    with psycopg.connect(database_url, autocommit=True) as conn:
        install_projections(conn, models)
    with hosting(database_url, *models):
        caught_up(database_url, [model.schema for model in models], head)
    tables = rows(
        database_url,
        "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname = ANY (%s)",
        ([model.schema for model in models],),
    )
    found = {str(t): rows(database_url, f"SELECT count(*) FROM {t}")[0][0] for (t,) in tables}
    for sums in ("likes.counts.likes", "comments.counts.comments"):
        table, _, column = sums.rpartition(".")
        found[sums] = rows(database_url, f"SELECT sum({column}) FROM {table}")[0][0]
    return found


def test_every_read_model_counts_the_same(
    exported: Path, old: OldLog, database_url: str, new_url: str, persons: Persons
) -> None:
    rewrite(new_url, exported)
    ours = counts(new_url, old.head)
    MAPPER.ciphers = None
    assert ours == counts(database_url, old.head)
    assert ours["likes.counts.likes"] == 3


def test_the_new_chain_follows_the_old_one(
    exported: Path, old: OldLog, database_url: str, new_url: str
) -> None:
    with connect(database_url, "test") as conn:
        last = last_seal(conn)
    assert last is not None
    rewrite(new_url, exported)
    with connect(new_url, "test") as conn:
        (first,) = seals(conn, 0, 10)
    assert (first.number, first.previous, first.key_id) == (1, last.hash, KEY.key_id)
    seal_all(new_url, key=KEY)
    report = verify(new_url, proofs=Proofs(KEY.public))
    assert (report.fault, report.follows, report.unsealed) == (None, last.hash, 0)
    assert [caveat.kind for caveat in report.caveats] == ["unanchored", "rewritten"]
    assert report.as_dict()["follows"] == last.hash.hex()
    former = check(exported, KEY.public)
    assert report.linked_to(former) is report


def test_a_link_to_another_log_is_a_fault(
    exported: Path, old: OldLog, database_url: str, new_url: str, tmp_path: Path
) -> None:
    rewrite(new_url, exported)
    report = verify(new_url, proofs=Proofs(KEY.public))
    old.like(old.film, "a-later-one")
    seal_all(database_url, key=KEY)
    path = tmp_path / "later.jsonl"
    with connect(database_url, "test") as conn:
        export_log(conn, path, ExportRequest())
    fault = report.linked_to(check(path, KEY.public)).fault
    assert fault is not None
    assert fault.kind == "link-differs"


def test_a_link_that_was_changed_is_a_fault(exported: Path, new_url: str) -> None:
    rewrite(new_url, exported)
    rows(new_url, "UPDATE backlot_seals SET previous = sha256('another') RETURNING 1")
    report = verify(new_url, proofs=Proofs(KEY.public))
    assert report.fault is not None
    assert report.fault.kind == "seal-altered"


def test_a_store_that_is_filled_or_has_persons_is_left_alone(
    exported: Path, old: OldLog, database_url: str, new_url: str, persons: Persons
) -> None:
    with pytest.raises(ImportRefused, match="not empty"):
        rewrite(database_url, exported)
    persons.open()
    persons.admit("somebody")
    with pytest.raises(KeysUnusable, match="persons of its own"):
        rewrite(new_url, exported)
    assert rows(new_url, "SELECT FROM backlot_events") == []


class Upgraded:
    """The same log after an upgrade: pseudonyms and encrypted texts follow what is named there."""

    def __init__(self, old: OldLog, database_url: str) -> None:
        for name in USERS:
            rows(database_url, "INSERT INTO backlot_former_names VALUES (%s) RETURNING 1", (name,))
        self.old, persons = old, Persons(database_url, KEK)
        persons.open()
        old.mapper.ciphers = persons
        self.bob, self.fresh = persons.admit(BOB), persons.admit("fresh")
        assert self.bob == BOB
        self.said = [
            old.comment(old.film, author, text)
            for author, text in ((self.bob, "said since then"), (self.fresh, "secretly new"))
        ]
        old.like(old.film, self.fresh)
        persons.admit(GONE)
        persons.fence(GONE)
        persons.destroy(GONE)
        person = Person.blank(stream_id(GONE))
        asked = Origin(SystemActor.PRIVACY, origin().at, f"forget-{GONE}", f"forget-{GONE}")
        person.request_forgetting(GONE, VideosFate.DELETE, asked)
        old.save(person)
        persons.close()
        seal_all(database_url, key=KEY)


@pytest.fixture
def upgraded(old: OldLog, database_url: str) -> Upgraded:
    return Upgraded(old, database_url)


@pytest.fixture
def with_keys(upgraded: Upgraded, database_url: str, tmp_path: Path) -> Path:
    path = tmp_path / "upgraded.jsonl"
    with connect(database_url, "test") as conn:
        export_log(conn, path, ExportRequest())
        export_keys(conn, keys_path(path))
    return path


class TestKeys:
    """Logs in which some texts are encrypted already, and the keys that go with them."""

    def test_who_has_a_pseudonym_keeps_it_and_the_others_get_one(
        self, with_keys: Path, upgraded: Upgraded, new_url: str, persons: Persons
    ) -> None:
        done = rewrite(new_url, with_keys)
        assert done.persons == len(USERS) + 1
        assert persons.find("fresh") == upgraded.fresh
        assert persons.find(BOB) not in (None, BOB)
        raw = b"".join(state for (state,) in rows(new_url, "SELECT state FROM backlot_events"))
        for name in USERS:
            assert orjson.dumps(name)[1:-1] not in raw, name

    def test_texts_are_read_with_the_same_keys(
        self, with_keys: Path, upgraded: Upgraded, new_url: str, persons: Persons
    ) -> None:
        rewrite(new_url, with_keys)
        found = [events(new_url, comment.id)[0] for comment in upgraded.said]
        assert [event.content for event in found] == ["said since then", "secretly new"]
        assert [event.author for event in found] == [persons.find(BOB), upgraded.fresh]
        old_one = events(new_url, upgraded.old.text.id)[0]
        assert (old_one.content, old_one.author) == (TEXTS[0], persons.find(BOB))

    def test_who_was_forgotten_stays_so_under_another_name(
        self, with_keys: Path, new_url: str, persons: Persons
    ) -> None:
        rewrite(new_url, with_keys)
        with pytest.raises(Forgotten):
            persons.admit(GONE)
        known = persons.look_up(GONE)
        assert known
        assert known.pseudonym != GONE
        (asked,) = events(new_url, stream_id(known.pseudonym))
        assert (asked.person, asked.correlation_id) == (
            known.pseudonym,
            f"forget-{known.pseudonym}",
        )
        ((step, finished),) = rows(
            new_url,
            "SELECT step, finished_at FROM backlot_erasures WHERE pseudonym = %s",
            (known.pseudonym,),
        )
        assert (step, finished) == ("request", None)

    def test_the_running_user_can_do_it(self, with_keys: Path, new_url: str) -> None:
        user = f"runner_{os.getpid()}"
        with psycopg.connect(new_url, autocommit=True) as owner:
            make_user(owner, user, None)
            give_rights(owner, user)
            try:
                rewrite(new_url.replace("//postgres@", f"//{user}@"), with_keys)
            finally:
                owner.execute(SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(Identifier(user)))
            newest = "SELECT max(number) FROM backlot_wrapping_keys"
            ((before,),) = owner.execute(newest).fetchall()
            assert rotate(owner, KEK).newest > before

    def test_without_the_keys_nothing_is_rewritten(self, with_keys: Path, new_url: str) -> None:
        keys_path(with_keys).unlink()
        with pytest.raises(ImportRefused, match="encrypted, and there are no keys"):
            rewrite(new_url, with_keys)
        assert rows(new_url, "SELECT FROM backlot_events") == []

    def test_another_key_encryption_key_is_told(self, with_keys: Path, new_url: str) -> None:
        with pytest.raises(KeyEncryptionFailed):
            rewrite(new_url, with_keys, GivenKey(secrets.token_hex(32)))
        assert rows(new_url, "SELECT FROM backlot_wrapping_keys") == []

    def test_imported_with_its_keys_a_log_is_what_it_was(
        self, with_keys: Path, upgraded: Upgraded, new_url: str, persons: Persons
    ) -> None:
        with connect(new_url, "test") as conn:
            import_log(conn, with_keys, Proofs(KEY.public), kek=KEK, known_topics=TOPICS)
        found = [events(new_url, comment.id)[0].content for comment in upgraded.said]
        assert found == ["said since then", "secretly new"]
        assert persons.find("fresh") == upgraded.fresh
        assert persons.admit(BOB) == BOB
        assert persons.admit("another") not in ("another", upgraded.fresh)

    def test_an_import_says_that_keys_are_missing(
        self, with_keys: Path, upgraded: Upgraded, new_url: str, persons: Persons
    ) -> None:
        keys_path(with_keys).unlink()
        with connect(new_url, "test") as conn:
            with pytest.raises(ImportRefused, match="--with-keys, or import --without-keys"):
                import_log(conn, with_keys, kek=KEK, known_topics=TOPICS)
            import_log(conn, with_keys, kek=KEK, without_keys=True, known_topics=TOPICS)
        # As the next start does.
        persons.open()
        assert [events(new_url, each.id)[0].content for each in upgraded.said] == ["", ""]
        # What was never encrypted can be read, and its author goes on under the same name.
        assert events(new_url, upgraded.old.text.id)[0].content == TEXTS[0]
        assert persons.admit(ZOE) == ZOE

    @pytest.mark.parametrize("left", [0, 1, -1])
    def test_a_file_of_keys_that_is_not_whole_is_refused(
        self, with_keys: Path, new_url: str, left: int
    ) -> None:
        path = keys_path(with_keys)
        assert path.stat().st_mode & 0o777 == 0o600
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:left]))
        with pytest.raises(KeysUnusable, match=r"no file of keys|cut off"):
            list(read_keys(path))
        with pytest.raises(KeysUnusable):
            rewrite(new_url, with_keys)
