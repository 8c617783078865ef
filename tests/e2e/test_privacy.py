"""One person drives every command, and whatever holds something about them is declared."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import orjson
import psycopg
import pytest
from psycopg import Connection, sql
from redis import Redis

from backlot.features import PERSONAL
from domain.model import EVENTS
from domain.moderation import case_id
from engine import dead_letters
from engine.checkpoints import SubscriptionKind
from engine.dead_letters import RejectedMessage
from engine.event_store import EVENTS as LOG
from engine.inspection.persons import personal_fields
from engine.personal_data import PersonalEntries, PersonalKeys, PersonalTable, Unsearched
from infra.postgres.cluster import programs
from tests.e2e.program import Program
from tests.e2e.test_routes import Things, call
from tests.e2e.videos import MP4, read, see, upload
from tests.integration.redis_servers import RedisServer, redis_servers
from tests.openai_server import openai_server, translated
from tests.routes import NOBODY, ROUTES, Line
from tests.support import eventually, unused_port

PERSON = "planted-person-7f3a91"
BYSTANDER = "bystander-55c0e2"
WORD = "plantedword51c2"
# Members of bodies in which somebody may write what they like.
TEXTS = ("content", "title", "filename", "reason")
# After these there is nobody to go on.
FORGETS = ("DELETE /users/{user_id}", "DELETE /users/me")
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
# Of a copy of a read model, the name of that.
TABLES = b"""
SELECT nspname, relname, coalesce(projection, nspname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN backlot_checkpoints ON kind = 'projection' AND subscription = nspname
WHERE relkind IN ('r', 'm', 'f') AND nspname !~ '^pg_' AND nspname <> 'information_schema'
"""
FOUND = """
SELECT count(*) FROM {table} AS t
WHERE EXISTS (SELECT FROM unnest(%s::text[]) AS mark WHERE position(mark IN t::text) > 0)
"""
BEHIND = f"""
SELECT subscription, source, position FROM backlot_checkpoints
WHERE (kind = 'consumer' OR kind = 'projection' AND subscription = projection)
  AND position < CASE source
    WHEN 'telemetry' THEN (SELECT max(seq) FROM backlot_telemetry)
    ELSE (SELECT max(notification_id) FROM {LOG}) END
""".encode()
REWRITE = (
    b"VACUUM (FULL, ANALYZE)",
    b"SELECT pg_switch_wal()",
    b"CHECKPOINT",
    b"SELECT pg_switch_wal()",
    b"CHECKPOINT",
)
PARKED = """
INSERT INTO backlot_dead_letters (kind, subscription, position, error, status, decided_by, reason)
VALUES ('projection', 'likes', 999999, 'broke', 'discarded', %s, 'a test')
"""
ORDERED = """
INSERT INTO projections.park_orders (projection, topic, fault, until, given_by, reason)
VALUES ('likes', 'none', 'none', 0, %s, 'a test')
"""


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_servers(1, tmp_path_factory.mktemp("redis")) as (server,):
        yield server


@pytest.fixture(scope="module")
def program(short_dir: Path, redis: RedisServer) -> Iterator[Program]:
    """A program in which the person has done all that anybody can do."""
    with planted(short_dir / "privacy", redis) as program:
        yield program


@contextmanager
def planted(home: Path, redis: RedisServer) -> Iterator[Program]:
    with openai_server() as provider:
        provider.otherwise = lambda asked: translated(f"[{asked.target}] {asked.text}", "es")
        settings = {
            "REDIS_URL": redis.url,
            "OPENAI_BASE_URL": provider.url,
            "TRANSLATION_TARGETS": "de",
            "ANALYTICS_FLUSH_SECONDS": "0.1",
            "RECOMMENDATIONS_INVALIDATE_SECONDS": "0.1",
            "RECOMMENDATIONS_LLM": "false",
            "RATE_LIMITS": "on",
            "PRIVACY_SELF_SERVICE": "true",
        }
        program = Program(home, unused_port(), settings)
        try:
            program.start()
            plant(program)
            yield program
            assert program.stop() == 0
            assert "job_broke" not in program.complained
        finally:
            program.clean_up()


def plant(program: Program) -> None:
    operator = program.client(PERSON, roles=("admin", "moderator"))
    # What moderators write is not held.
    person, bystander = program.client(PERSON), program.client(BYSTANDER)
    films = [upload(bystander) for _ in range(3)]
    walk(operator)
    own = upload(person, MP4 + WORD.encode(), title=WORD, filename=WORD, description=WORD)
    talk(person, operator, bystander, own, films[0])
    for path in (f"/videos/{films[0]}/like", f"/videos/{films[1]}/not-interested"):
        do(person, "PUT", path)
    for visibility in ("unlisted", "public"):
        do(person, "PATCH", f"/videos/{own}", json={"visibility": visibility})
    watched = read(person.post(f"/videos/{films[0]}/watch"))
    report = {"sessionId": watched["sessionId"], "seconds": 2}
    do(person, "POST", f"/videos/{films[0]}/watch-time", json=report)
    do(person, "POST", f"/videos/{films[0]}/share", json={"channel": WORD})
    do(person, "PUT", "/users/me/blocked/mallory")
    person.get("/recommendations")
    read(bystander.put(f"/users/me/blocked/{PERSON}"))
    read(bystander.delete(f"/users/me/blocked/{PERSON}"))
    read(bystander.put(f"/users/me/blocked/{PERSON}"))
    assert operator.post("/projections/dismissals/replay").status_code == 202
    with psycopg.connect(program.database_url, autocommit=True) as conn:
        leave_letters(conn, program.person(PERSON))
        eventually(lambda: not conn.execute(BEHIND).fetchall())
    body = {"userId": PERSON, "reason": WORD}
    root = program.client("root", admin=True)
    assert root.post("/admin/revocations", json=body).status_code == 201


def walk(person: httpx.Client) -> None:
    """Call everything that does something, with marked texts, on things of the person's own."""
    things = Things(person)
    for number, line in enumerate(ROUTES):
        if line.call.startswith("GET") or line.may == NOBODY or line.call in FORGETS:
            continue
        person.headers["Idempotency-Key"] = f"{WORD}-{number}"
        # Nobody, be they a moderator, restores or approves what is their own.
        assert call(person, marked(line), things) in (line.answer, line.refused), line.call
        if line.spends:
            del person.headers["Idempotency-Key"]
            things.renew(line)
    person.headers.pop("Idempotency-Key", None)


def marked(line: Line) -> Line:
    if not isinstance(line.body, dict):
        return line
    reports = line.call.endswith("/report")
    texts = {
        name: f"{text} {WORD}"
        for name, text in line.body.items()
        if name in TEXTS and not (reports and name == "reason")
    }
    return replace(line, body={**line.body, **texts, **({"detail": WORD} if reports else {})})


def talk(
    person: httpx.Client, moderator: httpx.Client, bystander: httpx.Client, own: str, film: str
) -> None:
    """Comment in all ways: posted, translated, held, edited, removed, restored, approved."""
    spanish = f"¡Qué bonito es este vídeo, señores! {WORD}"
    comment = post(person, film, spanish)
    path, german = f"/videos/{film}/comments", {"Accept-Language": "de"}
    eventually(lambda: f"[de] {spanish}" in person.get(path, headers=german).text)
    comment = post(person, film, f"first {WORD}")
    remove = {"json": {"reason": "not nice"}}
    do(bystander, "DELETE", f"/comments/{comment}", **remove)
    do(bystander, "POST", f"/comments/{comment}/restore")
    theirs = post(bystander, own, "of somebody else")
    report = {"json": {"reason": "spam", "detail": WORD}}
    do(person, "POST", f"/comments/{theirs}/report", **report)
    do(bystander, "POST", f"/comments/{comment}/report", json={"reason": "spam"})
    decision = {"json": {"decision": "dismiss", "reason": WORD}}
    do(moderator, "POST", f"/moderation/reports/{case_id(UUID(comment))}", **decision)
    for video, client in ((own, person), (film, bystander)):
        do(client, "PATCH", f"/videos/{video}", json={"commentPolicy": "approval"})
    for text in ("second", "third"):
        do(person, "PATCH", f"/comments/{comment}", json={"content": f"{text} {WORD}"})
    do(bystander, "POST", f"/comments/{comment}/approve")
    held = post(person, film, f"held {WORD}")
    do(bystander, "DELETE", f"/comments/{held}", **remove)
    do(person, "DELETE", f"/comments/{held}")
    post(person, film, f"waits {WORD}")
    do(bystander, "PATCH", f"/comments/{theirs}", json={"content": "withheld now"})
    post(bystander, own, "of somebody else, held")


def do(client: httpx.Client, method: str, path: str, **more: Any) -> None:
    answer = client.request(method, path, **more)
    assert answer.is_success, f"{method} {path}: {answer.text}"
    see(client, answer)


def post(client: httpx.Client, video: str, content: str) -> str:
    answer = client.post(f"/videos/{video}/comments", json={"content": content})
    assert answer.status_code == 201, answer.text
    see(client, answer)
    return str(answer.json()["commentId"])


def leave_letters(conn: Connection[Any], person: str) -> None:
    """What goes wrong, or is decided by an operator, and can't be brought about from outside."""
    value = orjson.dumps({"userId": person, "content": WORD})
    message = RejectedMessage("events", 0, 1, "comment.created", "broke", value=value)
    dead_letters.reject(conn, SubscriptionKind.CONSUMER, "a consumer", [message])
    conn.execute(PARKED, (person,))
    conn.execute(ORDERED, (person,))


def certified(program: Program, user: str = PERSON) -> dict[str, Any]:
    ended = program.run("privacy", "certify", user, "--json")
    found = json.loads(ended.stdout)
    assert ended.returncode == (1 if found["found"] else 0), ended.stderr
    return dict(found)


def counts_of(certificate: Mapping[str, Any]) -> dict[str, int | None]:
    return {part["part"]: part.get("count") for part in certificate["parts"]}


def rows_with_marks(conn: Connection[Any], *texts: str) -> dict[str, int]:
    """How many rows of each table have one of the texts, as text or as bytes."""
    marks = [mark for text in texts for mark in (text, text.encode().hex())]
    found: Counter[str] = Counter()
    for schema, name, projection in conn.execute(TABLES).fetchall():
        table = sql.Identifier(schema, name)
        ((count,),) = conn.execute(sql.SQL(FOUND).format(table=table), (marks,)).fetchall()
        found[f"{projection}.{name}"] += count
    return {table: count for table, count in found.items() if count}


def table_of(place: PersonalTable) -> str:
    return place.table.format(schema=place.projection or "")


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
        "likes.likes", "comments.comments", "comments.hidden", "translations.translations",
        "moderation.details", "moderation.cases", "moderation.blocks", "catalog.uploads",
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


def contents(client: Any, key: str) -> str:
    read_all = {
        "string": client.get,
        "hash": client.hgetall,
        "set": client.smembers,
        "list": lambda name: client.lrange(name, 0, -1),
        "zset": lambda name: client.zrange(name, 0, -1),
    }
    kind = client.type(key)
    return str(read_all[kind](key)) if kind in read_all else ""


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


class Forgotten:
    """A program of its own in which the person was forgotten, and what was counted before."""

    def __init__(self, program: Program, redis: RedisServer) -> None:
        self.program, self.redis = program, redis
        self.person = program.person(PERSON)
        self.digest = sha256(self.person.encode()).hexdigest()[:32]
        self.root = program.client("root", admin=True)
        self.client = program.client(PERSON)
        self.films = [item["videoId"] for item in self.of_bystander()]
        self.before = self.numbers()
        self.ended = program.run("privacy", "forget", PERSON, "--yes", "--wait", "--json")
        assert self.ended.returncode == 0, self.ended.stderr
        with psycopg.connect(program.database_url, autocommit=True) as conn:
            eventually(lambda: not conn.execute(BEHIND).fetchall())

    def of_bystander(self) -> list[dict[str, Any]]:
        return list(read(self.root.get("/videos", params={"owner": BYSTANDER}))["items"])

    def numbers(self) -> dict[str, Any]:
        """What is counted of the videos that stay."""
        found = {}
        for film in self.films:
            video = read(self.root.get(f"/videos/{film}"))
            stats = read(self.root.get(f"/videos/{film}/stats", params={"timeRange": "all"}))
            # Comments go with who wrote them.
            found[film] = (video["likes"], video["views"], stats["totals"] | {"comments": None})
        return found


@pytest.fixture(scope="module")
def forgotten(short_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forgotten]:
    with (
        redis_servers(1, tmp_path_factory.mktemp("redis_of_forgotten")) as (server,),
        planted(short_dir / "forgotten", server) as program,
    ):
        yield Forgotten(program, server)


def test_no_table_says_what_a_forgotten_person_wrote_or_was_called(forgotten: Forgotten) -> None:
    with psycopg.connect(forgotten.program.database_url, autocommit=True) as conn:
        assert rows_with_marks(conn, PERSON, WORD) == {}
        by_pseudonym = rows_with_marks(conn, forgotten.person)
    stays = {table_of(each) for each in PERSONAL if isinstance(each, PersonalTable) and each.stays}
    assert by_pseudonym.keys() - stays == {LOG}


def test_redis_files_and_logs_say_nothing_of_a_forgotten_person(forgotten: Forgotten) -> None:
    program, marks = forgotten.program, (PERSON, WORD, forgotten.person, forgotten.digest)
    with Redis(port=forgotten.redis.port, decode_responses=True) as client:
        told = {key: f"{key} {contents(client, key)}" for key in client.scan_iter()}
    assert [key for key, text in told.items() if any(mark in text for mark in marks)] == []
    files = [path for path in program.data.rglob("*") if path.is_file()]
    kept = [path for path in files if "postgres" not in path.relative_to(program.data).parts]
    assert [p for p in kept if any(mark.encode() in p.read_bytes() for mark in marks)] == []
    printed = program.complained + program.said
    assert [line for line in printed.splitlines() if PERSON in line or WORD in line] == []


def test_an_export_of_the_log_says_nothing_of_a_forgotten_person(
    forgotten: Forgotten, tmp_path: Path
) -> None:
    for number, options in enumerate((["--with-keys"], ["--format", "cloudevents"])):
        file = str(tmp_path / f"{number}.log")
        ended = forgotten.program.run("events", "export", file, *options)
        assert ended.returncode == 0, ended.stderr
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert all(forgotten.person in written[name] for name in ("0.log", "1.log"))
    assert [name for name, text in written.items() if PERSON in text or WORD in text] == []


def test_nobody_is_told_of_a_forgotten_person(forgotten: Forgotten) -> None:
    root, films = forgotten.root, forgotten.films
    paths = [
        "/videos", f"/videos?owner={BYSTANDER}", "/analytics/trending?timeRange=all",
        "/moderation/reports?status=dismissed", "/moderation/reports", "/audit/events?limit=200",
        "/projections", "/admin/revocations", *(f"/videos/{film}/comments" for film in films),
    ]  # fmt: skip
    for path in paths:
        answer = root.get(path)
        assert answer.status_code == 200, (path, answer.text)
        assert PERSON not in answer.text, path
        assert WORD not in answer.text, path
    assert root.get(f"/videos?owner={PERSON}").json()["items"] == []
    parts = root.get(f"/users/{PERSON}/export").json()["parts"]
    assert [rows for rows in parts.values() if rows] == []
    assert forgotten.client.put(f"/videos/{films[0]}/like").status_code == 410


def test_what_a_forgotten_person_counted_for_still_counts(forgotten: Forgotten) -> None:
    assert forgotten.numbers() == forgotten.before
    for names in (["--all"], ["analytics"], ["feedback"]):
        ended = forgotten.program.run("projections", "verify", *names, "--json")
        assert ended.returncode == 0, (names, ended.stdout, ended.stderr)


def test_a_certificate_of_a_forgotten_person_finds_nothing(forgotten: Forgotten) -> None:
    certificate = certified(forgotten.program)
    assert {part: count for part, count in counts_of(certificate).items() if count} == {}
    assert certificate["found"] == 0
    notes = {part["part"]: part.get("note", "") for part in certificate["parts"]}
    assert "under a pseudonym" in notes["events"]
    assert "name" in notes


@pytest.mark.chaos
def test_neither_a_dump_nor_any_file_of_the_database_says_anything(
    forgotten: Forgotten, tmp_path: Path
) -> None:
    """As docs/privacy.md has it: rewritten tables, and no WAL of before."""
    dump = tmp_path / "dump.sql"
    database_url = forgotten.program.database_url
    command = [str(programs() / "pg_dump"), "--file", str(dump), "--dbname", database_url]
    subprocess.run(command, check=True, capture_output=True)
    assert forgotten.person in dump.read_text()
    assert [mark for mark in (PERSON, WORD) if mark in dump.read_text()] == []
    cluster = forgotten.program.data / "postgres"

    def rewritten() -> bool:
        with psycopg.connect(database_url, autocommit=True) as conn:
            for statement in REWRITE:
                conn.execute(statement)
        return not files_with(cluster, PERSON, WORD)

    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("ALTER SYSTEM SET wal_recycle = off")
        conn.execute("SELECT pg_reload_conf()")
    assert files_with(cluster, forgotten.person)
    eventually(rewritten)


def files_with(folder: Path, *texts: str) -> list[Path]:
    """The files that have one of the texts; what ends meanwhile has none."""
    found = []
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file() and any(text.encode() in path.read_bytes() for text in texts):
                found.append(path)
    return found
