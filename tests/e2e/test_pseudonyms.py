"""Pseudonyms in the started program: the API speaks user ids, and nothing behind it has one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest
from psycopg import sql

from domain.video_likes import stream_id
from infra.pseudonyms import UNKNOWN
from tests.e2e.program import Program
from tests.e2e.videos import problem, read, see, upload
from tests.support import unused_port

ANN, BOB, STRANGER = "planted-ann-4e1c", "planted-bob-9b27", "planted-stranger-77d0"
TABLES = b"""
SELECT nspname, relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE relkind IN ('r', 'm') AND nspname !~ '^pg_' AND nspname <> 'information_schema'
"""
NAMED = "SELECT count(*) FROM {} AS t WHERE t::text ~ %s"
PERSONS = "SELECT count(*) FROM backlot_persons"


@pytest.fixture(scope="module")
def program(short_dir: Path) -> Iterator[Program]:
    """A program of these tests' own, which tells of each request."""
    program = Program(short_dir / "pseudonyms", unused_port(), {"LOG_LEVEL": "debug"})
    try:
        yield program.start()
        assert program.stop() == 0
    finally:
        program.clean_up()


@pytest.fixture(scope="module")
def ann(program: Program) -> httpx.Client:
    return program.client(ANN)


@pytest.fixture
def film(ann: httpx.Client) -> str:
    return upload(ann)


@pytest.fixture(scope="module")
def operator(program: Program) -> httpx.Client:
    return program.client("olga", admin=True)


def count(program: Program, question: str) -> int:
    with psycopg.connect(program.database_url) as conn:
        ((found,),) = conn.execute(question.encode()).fetchall()
    return int(found)


def test_answers_have_user_ids_and_what_is_kept_has_none(
    program: Program, ann: httpx.Client, film: str, operator: httpx.Client
) -> None:
    bob = program.client(BOB)
    said = bob.post(f"/videos/{film}/comments", json={"content": "¡Qué bonito!"})
    see(bob, said)
    assert read(said)["userId"] == BOB
    assert read(bob.put(f"/videos/{film}/like"))["likesCount"] == 1
    read(bob.post(f"/videos/{film}/watch"))
    assert read(ann.put(f"/users/me/blocked/{STRANGER}")) == {"userId": STRANGER, "blocked": True}
    revoked = {"userId": STRANGER, "reason": "stolen"}
    assert read(operator.post("/admin/revocations", json=revoked))["userId"] == STRANGER
    listed = read(operator.get("/admin/revocations"))["items"]
    assert [(each["userId"], each["revokedBy"]) for each in listed] == [(STRANGER, "olga")]
    assert read(bob.get(f"/videos/{film}"))["ownerId"] == ANN
    comments = read(bob.get(f"/videos/{film}/comments"))["items"]
    assert [each["userId"] for each in comments] == [BOB]
    assert [each["ownerId"] for each in read(bob.get("/videos", params={"owner": ANN}))["items"]]
    export = read(operator.get(f"/users/{BOB}/export"))
    assert export["userId"] == BOB
    assert [each["author"] for each in export["parts"]["comments.comments"]] == [BOB]
    blocks = read(operator.get(f"/users/{ANN}/export"))["parts"]["moderation.blocks"]
    assert [(each["blocker"], each["blocked"]) for each in blocks] == [(ANN, STRANGER)]

    with psycopg.connect(program.database_url) as conn:
        names = "|".join([name.encode().hex() for name in (ANN, BOB, STRANGER)])
        marks = f"planted-|{names}|{'¡Qué bonito!'.encode().hex()}"
        for schema, table in conn.execute(TABLES).fetchall():
            # The read model of comments has their texts.
            if (schema, table) == ("comments", "comments"):
                marks = marks.replace(f"|{'¡Qué bonito!'.encode().hex()}", "")
            query = sql.SQL(NAMED).format(sql.Identifier(schema, table))
            ((found,),) = conn.execute(query, (marks,)).fetchall()
            assert found == 0, f"{schema}.{table}"
    files = [path for path in program.data.rglob("*") if path.is_file()]
    assert not [path for path in files if "planted-" in str(path.relative_to(program.data))]
    # Each request is told, and who was asked about.
    assert '"event": "request"' in program.complained or '"request"' in program.complained
    assert "personal_data_read" in program.complained
    assert "planted-" not in program.complained + program.said


def test_operators_are_told_whose_a_pseudonym_is(
    program: Program, ann: httpx.Client, film: str, operator: httpx.Client
) -> None:
    told = read(operator.get(f"/users/{ANN}/pseudonym"))
    assert told == {"userId": ANN, "pseudonym": program.person(ANN)}
    assert len(told["pseudonym"]) == len(UNKNOWN)
    said = program.run("privacy", "pseudonym", ANN, "--json")
    assert (said.returncode, json.loads(said.stdout)) == (0, told)
    assert program.run("privacy", "pseudonym", ANN).stdout.strip() == told["pseudonym"]
    before = count(program, PERSONS)
    problem(operator.get("/users/nobody-of-here/pseudonym"), 404, "not-found")
    assert program.run("privacy", "pseudonym", "nobody-of-here").returncode == 4
    assert count(program, PERSONS) == before


def test_reads_about_somebody_unknown_are_empty_and_make_nobody(
    program: Program, ann: httpx.Client, film: str, operator: httpx.Client
) -> None:
    read(operator.get("/videos"))
    before = count(program, PERSONS)
    assert read(ann.get("/videos", params={"owner": "never-here"}))["items"] == []
    # Nor is anybody found by what stands for somebody else.
    assert read(ann.get("/videos", params={"owner": program.person(ANN)}))["items"] == []
    read(operator.get("/recommendations", params={"userId": "never-here"}))
    assert read(operator.get("/audit/events", params={"actor": "never-here"}))["items"] == []
    export = read(operator.get("/users/never-here/export"))
    assert export["userId"] == "never-here"
    assert not [part for part in export["index"] if part.get("count")]
    hello = {"content": "Hello @never-here"}
    read(ann.post(f"/videos/{film}/comments", json=hello))
    assert count(program, PERSONS) == before


def test_only_who_sees_names_can_search_for_them(
    program: Program, ann: httpx.Client, film: str, operator: httpx.Client
) -> None:
    auditor = program.client("eve", roles=["auditor"])
    pseudonym = program.person(ANN)

    def found(caller: httpx.Client, **params: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = read(caller.get("/audit/events", params=params))["items"]
        return items

    assert found(auditor, actor=ANN) == []
    assert found(operator, actor=ANN, payload="masked") == []
    masked = found(auditor, actor=pseudonym)
    assert masked != []
    assert {each["actor"] for each in masked} == {"<string 32>"}
    full = found(operator, actor=ANN)
    assert [each["position"] for each in full] == [each["position"] for each in masked]
    assert {each["actor"] for each in full} == {ANN}
    assert found(operator, actor=pseudonym) == full
    begun = next(each for each in full if each["type"] == "upload.started")
    assert (begun["payload"]["owner"], begun["payload"]["title"]) == (ANN, "Counting")
    for caller in (auditor, operator):
        assert pseudonym not in caller.get(f"/audit/streams/{film}").text
    assert ANN not in auditor.get(f"/audit/streams/{film}").text
    stream = read(operator.get(f"/audit/streams/{film}"))
    assert stream["items"][0]["changed"]["owner"] == {"from": None, "to": ANN}
    assert (stream["state"]["fields"]["owner"], stream["state"]["fields"]["title"]) == (
        ANN,
        "Counting",
    )

    def listed(*options: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = json.loads(
            program.run("events", "list", "--actor", *options, "--json").stdout
        )["items"]
        return items

    assert listed(ANN) == full
    assert listed(pseudonym) == full
    assert listed(ANN, "--payload", "masked") == []
    tail = program.run("events", "tail", "--actor", ANN, "--json").stdout.splitlines()
    assert {json.loads(line)["actor"] for line in tail} == {ANN}


def test_no_id_of_a_stream_confirms_a_name(
    program: Program, ann: httpx.Client, film: str, operator: httpx.Client
) -> None:
    """A stream of likes is made from the video and the pseudonym, which nobody guesses."""
    see(ann, ann.put(f"/videos/{film}/like"))
    likes, guessed = (stream_id(UUID(film), who) for who in (program.person(ANN), ANN))
    for caller in (program.client("eve", roles=["auditor"]), operator):
        assert read(caller.get(f"/audit/streams/{likes}"))["items"]
        problem(caller.get(f"/audit/streams/{guessed}"), 404)


def test_what_operators_did_has_their_names(program: Program, operator: httpx.Client) -> None:
    answer = operator.post("/projections/likes/completeness")
    see(operator, answer)
    told = read(operator.get(f"/operations/{read(answer)['operationId']}"))
    assert told["requestedBy"] == "olga"


def test_a_repeat_names_the_user_after_a_restart_too(make_program: Callable[..., Program]) -> None:
    program = make_program().start()
    bob = program.client(BOB)
    film = upload(bob)

    def post(client: httpx.Client) -> httpx.Response:
        key = {"Idempotency-Key": "once"}
        body = {"content": "¡Qué bonito!"}
        return client.post(f"/videos/{film}/comments", json=body, headers=key)

    first, again = post(bob), post(bob)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert read(first)["userId"] == BOB
    assert again.content == first.content
    assert program.stop() == 0
    later = post(program.start().client(BOB))
    assert later.headers["Idempotency-Replayed"] == "true"
    assert later.content == first.content
