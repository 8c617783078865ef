"""The running user adds to the log and changes nothing of it, on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import uuid4

import psycopg
import pytest
from eventsourcing.persistence import StoredEvent
from psycopg.errors import InsufficientPrivilege

from backlot.installation import TablesMissing, prepare_database
from domain.model import FORGOTTEN
from engine.connections import connect
from engine.event_store import Save, open_recorder
from engine.privileges import UserUnfit, give_rights, running_user
from engine.wrapping_keys import rewrap, rotate
from infra.postgres.server import EmbeddedPostgres
from infra.settings import load_settings
from projections.analytics.schema import prune
from tests.integration.person_support import KEK, opened
from tests.integration.seal_support import make_log, seal_all
from tests.two_users import TwoUsers, as_user, two_users

LOG = ("backlot_events", "backlot_seals")


def prepare(given: dict[str, str]) -> None:
    prepare_database(load_settings(given), given["DATABASE_URL"])


@pytest.fixture(scope="module")
def users(postgres: EmbeddedPostgres) -> Iterator[TwoUsers]:
    """Both users of a database with all tables, made once for these tests."""
    with psycopg.connect(postgres.url, autocommit=True) as root:
        root.execute("CREATE DATABASE of_two_users")
        with two_users(postgres.url_of("of_two_users")) as made:
            prepare(made.settings())
            yield made
        root.execute("DROP DATABASE of_two_users WITH (FORCE)")


def record(url: str) -> None:
    recorder = open_recorder(url)
    try:
        appended = recorder.append([Save([StoredEvent(uuid4(), 1, "a.topic.v1", b"{}")])])
    finally:
        recorder.close()
    assert appended.outcomes[0] is not None


@pytest.mark.parametrize("table", LOG)
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE {} SET {} = {}",
        "DELETE FROM {}",
        "TRUNCATE {}",
        "DROP TABLE {}",
        "ALTER TABLE {} ADD COLUMN more int",
        "ALTER TABLE {} OWNER TO CURRENT_USER",
        "CREATE TRIGGER t BEFORE INSERT ON {} EXECUTE FUNCTION tsvector_update_trigger()",
        "CREATE RULE r AS ON INSERT TO {} DO INSTEAD NOTHING",
        "CREATE INDEX ON {} ({})",
        "BEGIN; LOCK TABLE {} IN ACCESS EXCLUSIVE MODE",
        "SELECT * FROM {} FOR UPDATE",
    ],
)
def test_what_is_recorded_stays(users: TwoUsers, table: str, statement: str) -> None:
    record(users.user_url)
    column = "notification_id" if table == "backlot_events" else "number"
    text = statement.replace("{}", table, 1).replace("{}", column)
    with connect(users.user_url, "test") as conn, pytest.raises(InsufficientPrivilege):
        conn.execute(text.encode())


def test_what_the_running_user_may_do_it_can(users: TwoUsers) -> None:
    make_log(users.user_url, 25)
    assert seal_all(users.user_url) >= 3
    with connect(users.user_url, "test") as conn:
        assert prune(conn, 60, datetime.now(UTC)) is not None


def test_persons_and_their_keys_are_the_running_user_s_to_change(users: TwoUsers) -> None:
    """It makes them, forgets somebody, and removes a wrapping key."""
    with opened(users.user_url) as persons, connect(users.user_url, "test") as conn:
        alice, bob = persons.admit("alice"), persons.admit("bob")
        persons.fence(alice)
        persons.destroy(alice)
        assert rotate(conn, KEK).persons == 1
        assert rewrap(conn, KEK, KEK).keys == 2
        assert persons.names([alice, bob]) == {alice: FORGOTTEN, bob: "bob"}


def test_functions_of_the_log_are_not_the_running_user_s(users: TwoUsers) -> None:
    with connect(users.user_url, "test") as conn:
        for text in (
            "DROP FUNCTION backlot_events_append",
            "ALTER FUNCTION backlot_events_append_rest SECURITY DEFINER",
            "CREATE FUNCTION public.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "CREATE TABLE public.mine ()",
            "INSERT INTO backlot_migrations VALUES (99, 'mine', '')",
            "SET ROLE postgres",
        ):
            with pytest.raises(InsufficientPrivilege):
                conn.execute(text.encode())


def test_a_start_without_the_owner_needs_nothing_of_it(users: TwoUsers) -> None:
    prepare({"DATABASE_URL": users.user_url})
    record(users.user_url)


def test_missing_tables_are_told_to_who_may_not_make_them(empty_database_url: str) -> None:
    with two_users(empty_database_url) as users:
        with pytest.raises(TablesMissing, match="backlot migrate"):
            prepare({"DATABASE_URL": users.user_url})
        prepare(users.settings())
        prepare({"DATABASE_URL": users.user_url})


def test_a_database_of_one_user_becomes_one_of_two(empty_database_url: str) -> None:
    """Its read models are handed over with their rows; the log stays the first user's."""
    with two_users(empty_database_url) as users:
        prepare({"DATABASE_URL": users.owner_url})
        record(users.owner_url)
        with connect(users.owner_url, "test") as conn:
            conn.execute("INSERT INTO likes.counts VALUES (gen_random_uuid(), 3)")
        prepare(users.settings())
        prepare(users.settings())
        record(users.user_url)
        with connect(users.user_url, "test") as conn:
            assert conn.execute("UPDATE likes.counts SET likes = 4").rowcount == 1
            conn.execute("ALTER SCHEMA likes RENAME TO likes_before")
            conn.execute("DROP SCHEMA audit CASCADE")
            owned = conn.execute(
                "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class c "
                "JOIN pg_namespace n ON n.oid = relnamespace "
                "WHERE nspname IN ('analytics', 'feedback', 'lists', 'catalog', 'likes_before')"
            ).fetchall()
            assert owned == [(users.user,)]


def test_a_user_who_could_rewrite_all_the_same_is_refused(users: TwoUsers) -> None:
    with psycopg.connect(users.url, autocommit=True) as root:
        root.execute("GRANT DELETE ON backlot_seals TO PUBLIC")
        with pytest.raises(UserUnfit, match=r"may change public.backlot_seals all"):
            prepare(users.settings())
        root.execute("REVOKE DELETE ON backlot_seals FROM PUBLIC")
    prepare(users.settings())


def test_a_superuser_does_not_fit(users: TwoUsers) -> None:
    with connect(users.owner_url, "test") as conn, pytest.raises(UserUnfit, match="all the same"):
        give_rights(conn, "postgres")


@pytest.mark.parametrize("power", ["SUPERUSER", "CREATEROLE"])
def test_a_running_user_who_is_not_there_is_made(empty_database_url: str, power: str) -> None:
    with two_users(empty_database_url) as users, psycopg.connect(users.url) as root:
        root.autocommit = True
        root.execute(f"DROP ROLE {users.user}")
        given = {**users.settings(), "DATABASE_URL": as_user(users.url, f"{users.user}:a%2Fsecret")}
        with pytest.raises(UserUnfit, match=f"there is no user {users.user}"):
            prepare(given)
        root.execute(f"ALTER ROLE {users.owner} {power}")
        prepare(given)
        stored = root.execute(
            "SELECT rolpassword FROM pg_authid WHERE rolname = %s AND rolcanlogin", (users.user,)
        ).fetchone()
        assert stored is not None
        assert stored[0].startswith("SCRAM-SHA-256$")
        record(users.user_url)
        root.execute(f"ALTER ROLE {users.owner} NOSUPERUSER")


def test_a_url_without_a_user_is_refused() -> None:
    with pytest.raises(UserUnfit, match="names no user"):
        running_user("postgresql://db.internal/backlot")


def test_both_urls_of_one_user_are_refused(users: TwoUsers) -> None:
    both = {"DATABASE_URL": users.owner_url, "DATABASE_OWNER_URL": users.owner_url}
    with pytest.raises(UserUnfit, match="give the first another user"):
        prepare(both)


def test_an_owner_who_may_not_give_rights_is_told(empty_database_url: str) -> None:
    with two_users(empty_database_url) as users:
        with psycopg.connect(users.url, autocommit=True) as root:
            root.execute(f"ALTER DATABASE {root.info.dbname} OWNER TO postgres")
            root.execute(f"GRANT CREATE ON SCHEMA public TO {users.owner}")
            root.execute(f"GRANT CREATE ON DATABASE {root.info.dbname} TO {users.owner}")
        with pytest.raises(UserUnfit, match="make it the owner of the database"):
            prepare(users.settings())


def test_urls_of_other_users_differ_in_the_user_alone() -> None:
    url = "postgresql://postgres@/b?host=%2Ftmp&port=5432"
    assert as_user(url, "me") == "postgresql://me@/b?host=%2Ftmp&port=5432"
