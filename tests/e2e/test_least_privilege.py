"""The program as a user who can't rewrite history: all that it does goes on as before."""

from __future__ import annotations

import json
from collections.abc import Callable

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege

from tests.e2e.program import Program
from tests.e2e.videos import read, see, upload
from tests.support import eventually
from tests.two_users import two_users


def test_a_user_without_rights_on_the_past_runs_everything(
    make_program: Callable[..., Program], empty_database_url: str
) -> None:
    with two_users(empty_database_url) as users:
        program = make_program(
            DATABASE_URL=users.user_url, SEAL_SECONDS="0.2", SEAL_BLOCK_EVENTS="2"
        )
        program.home.mkdir(parents=True)
        # Not before the owner was here; that is the only command with the owner's URL.
        refused = program.run("up")
        assert refused.returncode == 4
        assert "backlot migrate" in refused.stderr
        migrated = program.run("migrate", **users.settings())
        assert migrated.returncode == 0, migrated.stderr
        program.start()
        alice, bob = program.client("alice"), program.client("bob")
        video = upload(alice)
        answer = bob.put(f"/videos/{video}/like", headers={"Idempotency-Key": "once"})
        assert read(answer)["likesCount"] == 1
        see(bob, bob.post(f"/videos/{video}/comments", json={"content": "Well done"}))
        assert read(bob.post(f"/videos/{video}/watch"))["url"]
        # The first one makes a key.
        assert read(bob.post(f"/videos/{video}/events/ticket"))["ticket"]
        replayed = program.run("projections", "replay", "likes", "--yes")
        assert replayed.returncode == 0, replayed.stdout + replayed.stderr
        rebuilt = program.run("projections", "replay", "analytics", "--yes")
        assert rebuilt.returncode == 0, rebuilt.stdout + rebuilt.stderr
        assert read(bob.get(f"/videos/{video}"))["likes"] == 1

        def sealed() -> bool:
            found = json.loads(program.run("events", "verify", "--json").stdout)
            assert found["ok"]
            return bool(found["seals"])

        assert eventually(sealed)
        with psycopg.connect(users.user_url, autocommit=True) as conn:
            for table in ("backlot_events", "backlot_seals"):
                for statement in (f"DELETE FROM {table}", f"TRUNCATE {table}"):
                    with pytest.raises(InsufficientPrivilege):
                        conn.execute(statement.encode())
        page = alice.get("/metrics").text
        for line in page.splitlines():
            if line.startswith(
                ("backlot_jobs_broken_total", "backlot_analytics_prune_failures_total")
            ):
                assert line.endswith(" 0.0"), line
        assert program.stop() == 0
        assert "permission denied" not in program.complained
