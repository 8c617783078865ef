"""A person who has done everything is forgotten: nothing says anything of them, and counts stay."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import psycopg
import pytest
from redis import Redis

from backlot.features import PERSONAL
from engine.event_store import EVENTS as LOG
from engine.personal_data import PersonalTable
from infra.postgres.cluster import programs
from tests.e2e.planted import (
    BEHIND,
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
from tests.support import eventually

REWRITE = (
    b"VACUUM (FULL, ANALYZE)",
    b"SELECT pg_switch_wal()",
    b"CHECKPOINT",
    b"SELECT pg_switch_wal()",
    b"CHECKPOINT",
)


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
        eventually(lambda: self.shown("/analytics/trending?timeRange=all"))
        self.verified_before = verified(program)
        with Redis(port=redis.port, decode_responses=True) as client:
            of_others = client.get(f"user:recommendations:{program.person(BYSTANDER)}")
        assert WORD in str(of_others), "nothing of theirs is cached for anybody else"
        self.ended = program.run("privacy", "forget", PERSON, "--yes", "--wait", "--json")
        assert self.ended.returncode == 0, self.ended.stderr
        # This process remembers the key for a minute.
        program.persons().drop(self.person)
        with psycopg.connect(program.database_url, autocommit=True) as conn:
            eventually(lambda: not conn.execute(BEHIND).fetchall())

    def of_bystander(self) -> list[dict[str, Any]]:
        return list(read(self.root.get("/videos", params={"owner": BYSTANDER}))["items"])

    def shown(self, path: str) -> set[str]:
        """Which of the videos that stay are listed for somebody who has done nothing yet."""
        items = read(self.program.client("newcomer").get(path))["items"]
        return {item["video"]["videoId"] for item in items} & set(self.films)

    def numbers(self) -> dict[str, Any]:
        """What is counted of the videos that stay."""
        found = {}
        for film in self.films:
            video = read(self.root.get(f"/videos/{film}"))
            stats = read(self.root.get(f"/videos/{film}/stats", params={"timeRange": "all"}))
            # Comments go with who wrote them.
            found[film] = (video["likes"], video["views"], stats["totals"] | {"comments": None})
        return found


def verified(program: Program) -> int:
    """Fail unless the whole log is as it was sealed; return up to which position that is."""
    sealed = "SELECT coalesce(max(last), 0) FROM backlot_seals"
    with psycopg.connect(program.database_url, autocommit=True) as conn:
        (head,) = conn.execute(f"SELECT max(notification_id) FROM {LOG}".encode()).fetchone() or ()
        eventually(lambda: (conn.execute(sealed.encode()).fetchone() or (0,))[0] >= head)
    ended = program.run("events", "verify", "--json")
    assert ended.returncode == 0, (ended.stdout, ended.stderr)
    return int(head)


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


def test_a_relay_that_begins_anew_says_nothing_of_a_forgotten_person(forgotten: Forgotten) -> None:
    records = published(forgotten.program)
    assert "user.forgotten" in topics_with(records, forgotten.person)
    assert topics_with(records, PERSON, WORD) == set()


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


def test_recommendations_and_trending_go_on(forgotten: Forgotten) -> None:
    for path in ("/recommendations", "/analytics/trending?timeRange=all"):
        eventually(partial(forgotten.shown, path))


def test_the_seals_hold_before_and_after(forgotten: Forgotten) -> None:
    """They cover what is encrypted, which stays as it was."""
    assert verified(forgotten.program) > forgotten.verified_before


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
