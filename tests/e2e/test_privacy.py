"""One person drives every command, and whatever holds something about them is declared."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path

import orjson
import psycopg
import pytest
from redis import Redis

from backlot.features import PERSONAL
from domain.model import EVENTS
from engine.event_store import EVENTS as LOG
from engine.inspection.persons import personal_fields
from engine.personal_data import PersonalEntries, PersonalKeys, PersonalTable, Unsearched
from projections.integration_events import TOPICS, topics_with_texts
from tests.e2e.planted import (
    BYSTANDER,
    PERSON,
    WORD,
    certified,
    contents,
    counts_of,
    planted,
    published,
    rows_with_marks,
    table_of,
    topics_with,
)
from tests.e2e.program import Program
from tests.e2e.videos import read
from tests.integration.redis_servers import RedisServer, redis_servers

# Nobody here can be made to do what records these: they need Whisper, days, or a model that fails.
ELSEWHERE = {
    "upload.expired.v1",
    "upload.speech_transcribed.v1",
    "comment.translation_failed.v1",
    "comment.translation_skipped.v1",
    "comment.not_translated_to.v1",
    # These need somebody to be forgotten.
    "person.forget_requested.v1",
    "person.forgotten.v1",
    "upload.disowned.v1",
}


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_servers(1, tmp_path_factory.mktemp("redis")) as (server,):
        yield server


@pytest.fixture(scope="module")
def program(short_dir: Path, redis: RedisServer) -> Iterator[Program]:
    """A program in which the person has done all that anybody can do."""
    with planted(short_dir / "privacy", redis) as program:
        yield program


def test_every_event_that_names_a_person_was_recorded(program: Program) -> None:
    """Else the tests below prove little; a new kind of event belongs into `plant`."""
    kinds = {
        event.TOPIC
        for event in EVENTS.values()
        if set(personal_fields(event.TOPIC).values()) - {"actor"}
    }
    with psycopg.connect(program.database_url) as conn:
        rows = conn.execute(f"SELECT DISTINCT topic FROM {LOG}".encode()).fetchall()
    assert kinds - {topic for (topic,) in rows} == ELSEWHERE


def test_every_table_with_personal_data_is_declared_and_searched(program: Program) -> None:
    with psycopg.connect(program.database_url, autocommit=True) as conn:
        found = rows_with_marks(conn, PERSON, program.person(PERSON), WORD)
    declared = {table_of(place) for place in PERSONAL if isinstance(place, PersonalTable)}
    assert found.keys() - declared == {LOG}, (
        "declare these beside their tables: see docs/privacy.md"
    )
    counts: Counter[str] = Counter()
    told = counts_of(certified(program))
    for place in PERSONAL:
        if isinstance(place, PersonalTable):
            counts[table_of(place)] += told.get(place.name) or 0
    lacking = {table: (counts[table], rows) for table, rows in found.items() if table != LOG}
    assert {table: each for table, each in lacking.items() if each[0] < each[1]} == {}
    with_rows = {
        "likes.likes", "likes.comment_likes", "comments.comments", "comments.hidden",
        "translations.translations", "moderation.details", "moderation.cases",
        "moderation.blocks", "catalog.uploads",
        "dismissals.dismissed", "operations.operations", "audit.events", "public.backlot_telemetry",
        "public.backlot_view_sessions", "public.backlot_events_answers",
        "public.backlot_reservations", "public.backlot_dead_letters", "projections.replays",
        "projections.park_orders", "analytics.video_analytics", "analytics.video_viewers",
        "analytics.participants", "analytics.videos", "analytics.engaged", "analytics.viewers",
    }  # fmt: skip
    assert with_rows - found.keys() == set(), "the person has left too little to be found"


def named_in_the_log(program: Program) -> tuple[int, int, int]:
    """How many events name the person: as who is blocked, as whose video holds it, otherwise."""
    person = program.person(PERSON)
    with psycopg.connect(program.database_url) as conn:
        rows = conn.execute(f"SELECT topic, state FROM {LOG}".encode()).fetchall()
    found = [(personal_fields(topic), orjson.loads(state)) for topic, state in rows]
    named = [
        payload
        for fields, payload in found
        if person in {payload.get(name) for name in fields.values()}
    ]
    blocked = sum(payload.get("blocked") == person for payload in named)
    held = sum(payload.get("video_owner") == person for payload in named)
    return blocked, held, len(named) - blocked - held


def test_the_events_that_name_a_person_are_found_without_going_through_the_log(
    program: Program,
) -> None:
    """As many as a look at every event finds, before or afterwards: operations may still end."""
    before = named_in_the_log(program)
    told = counts_of(certified(program))
    after = named_in_the_log(program)
    # All revocations are one stream, in which this person has acted, too.
    assert (told["events.blocked"], told["events.held_for_owner"], told["events.revoked"]) == (
        3,
        2,
        1,
    )
    assert before[:2] == after[:2] == (3, 2)
    assert before[2] <= (told["events"] or 0) <= after[2]


def test_every_key_in_redis_that_names_a_person_is_declared(
    program: Program, redis: RedisServer
) -> None:
    searched = [place for place in PERSONAL if isinstance(place, PersonalKeys | PersonalEntries)]
    unsearched = [place for place in PERSONAL if isinstance(place, Unsearched)]
    person = program.person(PERSON)
    digest = sha256(person.encode()).hexdigest()[:32]
    marks, found = (PERSON, person, WORD, digest), set()
    with Redis(port=redis.port, decode_responses=True) as client:
        for key in client.scan_iter():
            if any(mark in f"{key} {contents(client, key)}" for mark in marks):
                found.add(key)
    declared = {key for key in found for place in searched if place.holds_key(key)}
    declared |= {
        key
        for key in found
        for place in unsearched
        for glob in place.keys
        if fnmatchcase(key, glob)
    }
    assert found - declared == set()
    told = counts_of(certified(program))
    # Buckets come and go; what was there before and afterwards was there meanwhile.
    with Redis(port=redis.port, decode_responses=True) as client:
        lasting = [key for key in found if client.exists(key)]
    for place in searched:
        own = [key for key in lasting if place.holds_key(key) and (person in key or digest in key)]
        assert (told[place.name] or 0) >= len(own)
    assert told["redis.recommendations"] == 1


def test_topics_name_nobody_and_say_texts_only_where_these_have_a_term(program: Program) -> None:
    records = published(program)
    assert topics_with(records, PERSON) == set()
    assert topics_with(records, WORD) == TOPICS.keys() & topics_with_texts()


def test_files_hold_nothing_but_the_objects_that_are_found(program: Program) -> None:
    marks = (PERSON.encode(), program.person(PERSON).encode(), WORD.encode())
    files = [
        path
        for path in program.data.rglob("*")
        if path.is_file() and "postgres" not in path.relative_to(program.data).parts
    ]
    found = {path for path in files if any(mark in path.read_bytes() for mark in marks)}
    assert found
    objects = program.data / "objects" / "objects"
    assert [path for path in found if objects not in path.parents] == []
    assert (counts_of(certified(program))["objects"] or 0) >= len(found)


def test_an_export_is_a_folder_of_files_with_an_index(program: Program, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    ended = program.run("privacy", "export", PERSON, str(folder))
    assert ended.returncode == 0, ended.stderr
    index = json.loads((folder / "index.json").read_text())
    assert index["userId"] == PERSON
    by_name = {part["part"]: part for part in index["index"]}
    assert by_name.keys() == {place.name for place in PERSONAL} - {"analytics.dead_letters"}
    for path in folder.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(rows) == by_name[path.stem]["count"]
        # What others did is theirs.
        assert BYSTANDER not in path.read_text()
    comments = (folder / "comments.comments.jsonl").read_text()
    assert WORD in comments
    assert '"commentId"' in comments
    assert {path.stat().st_mode & 0o077 for path in folder.iterdir()} == {0}
    assert folder.stat().st_mode & 0o077 == 0
    hidden = ("moderation.blocked", "comments.held_for_owner", "events.blocked")
    assert [name for name in hidden if (folder / f"{name}.jsonl").exists()] == []
    assert all(by_name[name]["count"] for name in hidden)
    assert by_name["telemetry"]["setting"] == "TELEMETRY_RETENTION_DAYS"
    assert by_name["analytics.engaged"]["value"] == 730
    assert '"kind": "personal_data_read"' in ended.stderr or "personal_data_read" in ended.stderr


def lasting_files(folder: Path) -> set[str]:
    """The names of an export's files, but for what Redis forgets by itself."""
    return {path.name for path in folder.iterdir() if not path.name.startswith("redis.")}


def test_an_export_goes_on_where_it_was_interrupted(program: Program, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    assert program.run("privacy", "export", PERSON, str(folder)).returncode == 0
    again = program.run("privacy", "export", PERSON, str(folder))
    assert again.returncode == 4
    assert "is not empty" in again.stderr
    index = json.loads((folder / "index.json").read_text())
    whole = lasting_files(folder)
    # As if it had been killed within a part that is not the last one.
    done, rest = index["index"][:10], {part["part"] for part in index["index"][10:]}
    kept = next(part["part"] for part in done if part.get("count"))
    (folder / f"{kept}.jsonl").write_text("as it was\n")
    (folder / "unfinished.json").write_text(json.dumps(index | {"index": done}))
    (folder / "index.json").unlink()
    for path in folder.glob("*.jsonl"):
        if path.stem in rest:
            path.rename(path.with_suffix(".jsonl.part"))
    of_other = program.run("privacy", "export", "somebody-else", str(folder))
    assert (of_other.returncode, "somebody else" in of_other.stderr) == (4, True)
    assert program.run("privacy", "export", PERSON, str(folder)).returncode == 0
    assert lasting_files(folder) == whole
    assert (folder / f"{kept}.jsonl").read_text() == "as it was\n"
    assert (folder / "events.jsonl").read_text().count(WORD)


def test_the_api_exports_the_same(program: Program) -> None:
    root = program.client("root", admin=True)
    answer = root.get(f"/users/{PERSON}/export")
    assert answer.status_code == 200, answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    told = answer.json()
    assert told["userId"] == PERSON
    counts = {part["part"]: part.get("count") for part in told["index"]}
    shown = {name: len(rows) for name, rows in told["parts"].items() if rows}
    assert shown.items() <= counts.items()
    assert {"events", "likes.likes", "comments.comments", "telemetry", "objects"} <= shown.keys()
    assert BYSTANDER not in json.dumps(told["parts"])
    nobody = root.get("/users/nobody-at-all/export").json()
    assert {name: rows for name, rows in nobody["parts"].items() if rows} == {}
    logged = [json.loads(line) for line in program.complained.splitlines() if '"security"' in line]
    assert {
        (line["subject"], line["actor"]) for line in logged if line["kind"] == "personal_data_read"
    } >= {(program.person("root"), program.person(PERSON))}


def test_a_user_exports_what_is_their_own_and_nothing_else(program: Program) -> None:
    bystander = program.client(BYSTANDER)
    own = read(bystander.get("/users/me/export"))
    assert own["userId"] == BYSTANDER
    assert own["parts"]["catalog.uploads"]
    assert PERSON not in json.dumps(
        own["parts"] | {"moderation.blocks": [], "redis.rate_limits": []}
    )
    assert bystander.get(f"/users/{PERSON}/export").status_code == 403
    assert bystander.get(f"/users/{BYSTANDER}/export").status_code == 403


def test_nothing_is_found_of_nobody(program: Program) -> None:
    certificate = certified(program, "nobody-at-all")
    assert certificate["found"] == 0
    ended = program.run("privacy", "certify", "nobody-at-all")
    assert ended.returncode == 0
    assert "events" in ended.stdout
