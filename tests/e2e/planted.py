"""A program in which one person has done all that anybody can do, with marks in every text."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID

import httpx
import orjson
import psycopg
from psycopg import Connection, sql

from domain.moderation import case_id
from engine import dead_letters
from engine.checkpoints import SubscriptionKind
from engine.dead_letters import RejectedMessage
from engine.event_store import EVENTS as LOG
from engine.log import MAPPER
from engine.personal_data import PersonalTable
from infra.kafka import Reader, Record
from infra.settings.adapters import KafkaSettings
from projections.integration_events import TOPICS
from tests.e2e.program import Program
from tests.e2e.test_routes import Things, call
from tests.e2e.videos import MP4, read, see, upload
from tests.integration.redis_servers import RedisServer
from tests.integration.relay_support import relaying
from tests.kafka_cluster import kafka_cluster
from tests.openai_server import openai_server, translated
from tests.routes import NOBODY, ROUTES, Line
from tests.support import eventually, until, unused_port

PERSON = "planted-person-7f3a91"
BYSTANDER = "bystander-55c0e2"
WORD = "plantedword51c2"
# Members of bodies in which somebody may write what they like.
TEXTS = ("content", "title", "filename", "reason")
# After these there is nobody to go on.
FORGETS = ("DELETE /users/{user_id}", "DELETE /users/me")
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
RELAYED = f"""
SELECT count(*) FROM backlot_checkpoints
WHERE kind = 'relay' AND position >= CASE source
    WHEN 'telemetry' THEN (SELECT max(seq) FROM backlot_telemetry)
    ELSE (SELECT max(notification_id) FROM {LOG}) END
""".encode()
PARKED = """
INSERT INTO backlot_dead_letters (kind, subscription, position, error, status, decided_by, reason)
VALUES ('projection', 'likes', 999999, 'broke', 'discarded', %s, 'a test')
"""
ORDERED = """
INSERT INTO projections.park_orders (projection, topic, fault, until, given_by, reason)
VALUES ('likes', 'none', 'none', 0, %s, 'a test')
"""


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
    do(bystander, "PUT", f"/videos/{own}/like")
    # Cached for an hour, with the titles of what the bystander likes.
    read(bystander.get("/recommendations"))
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
    do(person, "PUT", f"/comments/{theirs}/like")
    post(person, own, f"a reply {WORD}", parentId=theirs)
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


def post(client: httpx.Client, video: str, content: str, **more: str) -> str:
    answer = client.post(f"/videos/{video}/comments", json={"content": content, **more})
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


def published(program: Program) -> list[Record]:
    """All that a relay publishes that begins anew; to be called once for a program."""

    async def relay(servers: str) -> list[Record]:
        with psycopg.connect(program.database_url, autocommit=True) as conn:
            async with relaying(program.database_url, servers):
                await until(lambda: conn.execute(RELAYED).fetchall() == [(2,)])
        reader = Reader(KafkaSettings(KAFKA_BOOTSTRAP_SERVERS=(servers,)), TOPICS)
        await reader.start({})
        ends, records = await reader.ends(), list[Record]()
        assert ends, "some topic is not there"
        while not reader.has_read(ends):
            records += await reader.read(0.1, 1000)
        await reader.stop()
        return records

    with kafka_cluster() as cluster, patch.object(MAPPER, "ciphers", program.persons()):
        return asyncio.run(relay(cluster.bootstrap_servers))


def topics_with(records: list[Record], *texts: str) -> set[str]:
    """The topics of the messages that have one of the texts in any of their parts."""
    return {
        record.partition.topic
        for record in records
        if any(text.encode() in repr(record).encode() for text in texts)
    }


def table_of(place: PersonalTable) -> str:
    return place.table.format(schema=place.projection or "")


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
