"""Two copies compared: what was changed behind the projection's back is named, nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.comparison import Difference, Kind, compare
from engine.connections import connect
from engine.installation import create, install
from projections.likes import Likes

LIKES = "INSERT INTO {0}.likes VALUES ('{1}', '{2}', {3})"
VIDEO = UUID(int=1)


@pytest.fixture
def conn(database_url: str) -> Iterator[Connection[TupleRow]]:
    """A session as the projections have it: its planner settings must not matter."""
    with connect(database_url, "test") as opened:
        yield opened


def both(conn: Connection[TupleRow], *statements: str) -> None:
    """Run statements in schema one and in schema two."""
    for schema in ("one", "two"):
        conn.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        for statement in statements:
            conn.execute(statement.replace("$", schema).encode())


def named(difference: Difference) -> list[tuple[str, dict[str, str | None], str]]:
    return [(key.table, key.key, str(key.kind)) for key in difference.keys]


def counts(difference: Difference) -> dict[str, tuple[int, int, int]]:
    return {t.table: (t.missing, t.extra, t.different) for t in difference.tables}


@pytest.fixture
def copies(conn: Connection[TupleRow]) -> None:
    """Two copies of likes with the same 50 rows, which lie in another order."""
    install(conn, [Likes()])
    create(conn, Likes("likes_next"))
    fill = "INSERT INTO {}.likes SELECT %s, 'viewer-' || n, n FROM generate_series(1, 50) n "
    for schema, order in (("likes", "ORDER BY n"), ("likes_next", "ORDER BY n DESC")):
        conn.execute((fill.format(schema) + order).encode(), (VIDEO,))
        conn.execute(f"INSERT INTO {schema}.counts VALUES (%s, 50)".encode(), (VIDEO,))


@pytest.mark.usefixtures("copies")
def test_equal_copies_have_equal_digests(conn: Connection[TupleRow]) -> None:
    difference = compare(conn, "likes", "likes_next")
    assert (difference.differs, difference.total, difference.keys) == (False, 0, [])
    tables = ["comment_counts", "comment_likes", "counts", "likes", "private", "removed"]
    assert [t.table for t in difference.tables] == tables
    for table in difference.tables:
        assert table.live == table.other
    assert [t.live.rows for t in difference.tables if t.live] == [0, 0, 1, 50, 0, 0]


@pytest.mark.usefixtures("copies")
def test_rows_altered_added_and_removed_are_named(conn: Connection[TupleRow]) -> None:
    conn.execute("UPDATE likes.likes SET position = 999 WHERE viewer = 'viewer-7'")
    conn.execute("DELETE FROM likes.likes WHERE viewer = 'viewer-8'")
    conn.execute("INSERT INTO likes.likes VALUES (%s, 'mallory', 5)", (VIDEO,))
    conn.execute("UPDATE likes.counts SET likes = 51")
    difference = compare(conn, "likes", "likes_next")
    assert difference.differs
    assert counts(difference) == {
        "comment_counts": (0, 0, 0),
        "comment_likes": (0, 0, 0),
        "counts": (0, 0, 1),
        "likes": (1, 1, 1),
        "private": (0, 0, 0),
        "removed": (0, 0, 0),
    }
    video = str(VIDEO)
    assert named(difference) == [
        ("counts", {"video_id": video}, "different"),
        ("likes", {"video_id": video, "viewer": "mallory"}, "extra"),
        ("likes", {"video_id": video, "viewer": "viewer-7"}, "different"),
        ("likes", {"video_id": video, "viewer": "viewer-8"}, "missing"),
    ]
    told = difference.as_dict()
    assert (told["differs"], told["total"], len(told["keys"])) == (True, 4, 4)
    extra, different, missing = told["keys"][1:]
    assert ("live" in extra, "other" in extra) == (True, False)
    assert ("live" in missing, "other" in missing) == (False, True)
    assert different["live"] != different["other"]


@pytest.mark.usefixtures("copies")
def test_only_the_first_keys_are_named_all_are_counted(conn: Connection[TupleRow]) -> None:
    conn.execute("UPDATE likes.likes SET position = position + 1")
    conn.execute("DELETE FROM likes.counts")
    difference = compare(conn, "likes", "likes_next", limit=3)
    assert difference.total == 51
    assert [key.key.get("viewer") for key in difference.keys] == [None, "viewer-1", "viewer-10"]
    assert compare(conn, "likes", "likes_next", limit=0).keys == []


@pytest.mark.usefixtures("copies")
def test_the_callers_moment_is_compared_and_its_session_left_alone(
    conn: Connection[TupleRow], database_url: str
) -> None:
    settings = "SELECT name, setting FROM pg_settings ORDER BY name"
    with conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        before = conn.execute(settings).fetchall()
        with psycopg.connect(database_url, autocommit=True) as another:
            another.execute("DELETE FROM likes.likes")
        assert not compare(conn, "likes", "likes_next").differs
        assert conn.execute(settings).fetchall() == before
        conn.execute("CREATE TABLE public.writable ()")
    assert compare(conn, "likes", "likes_next").total == 50


def test_null_is_neither_empty_nor_a_word(conn: Connection[TupleRow]) -> None:
    both(conn, "CREATE TABLE $.t (id int PRIMARY KEY, a text, b text)")
    conn.execute("INSERT INTO one.t VALUES (1, NULL, 'x'), (2, '', NULL), (3, NULL, NULL)")
    conn.execute("INSERT INTO two.t VALUES (1, '', 'x'), (2, 'NULL', NULL), (3, NULL, NULL)")
    difference = compare(conn, "one", "two")
    assert named(difference) == [
        ("t", {"id": "1"}, "different"),
        ("t", {"id": "2"}, "different"),
    ]


def test_values_that_change_places_are_seen(conn: Connection[TupleRow]) -> None:
    both(conn, "CREATE TABLE $.t (id int PRIMARY KEY, a text, b text)")
    conn.execute("INSERT INTO one.t VALUES (1, 'x', 'y'), (2, 'a,b', 'c'), (3, 'p', 'q')")
    conn.execute("INSERT INTO two.t VALUES (1, 'y', 'x'), (2, 'a', 'b,c'), (3, 'p', 'q')")
    assert [key.key["id"] for key in compare(conn, "one", "two").keys] == ["1", "2"]


def test_odd_names_and_columns_in_another_order(conn: Connection[TupleRow]) -> None:
    table = """$."%s {odd} ""t"" ";"""
    create_one = f'CREATE TABLE {table[:-1]} ("hash" int, "k0" text, "Ünï""c%" text, live int, '
    create_two = f'CREATE TABLE {table[:-1]} (live int, "Ünï""c%" text, "k0" text, "hash" int, '
    key = 'PRIMARY KEY ("k0", "hash"))'
    conn.execute("CREATE SCHEMA one")
    conn.execute("CREATE SCHEMA two")
    conn.execute((create_one + key).replace("$", "one").encode())
    conn.execute((create_two + key).replace("$", "two").encode())
    name = table[:-1].replace("$", "one")
    conn.execute(f"INSERT INTO {name} VALUES (1, 'a', 'u', 5), (2, 'b', 'v', 6)".encode())
    name = table[:-1].replace("$", "two")
    conn.execute(f"INSERT INTO {name} VALUES (5, 'u', 'a', 1), (6, 'w', 'b', 2)".encode())
    difference = compare(conn, "one", "two")
    assert named(difference) == [
        ('%s {odd} "t" ', {"k0": "b", "hash": "2"}, "different"),
    ]


def test_a_table_without_a_key_is_compared_by_whole_rows_and_their_number(
    conn: Connection[TupleRow],
) -> None:
    both(conn, "CREATE TABLE $.t (a int, b json)")
    conn.execute("INSERT INTO one.t VALUES (1, '[]'), (1, '[]'), (2, NULL), (4, '{}')")
    conn.execute("INSERT INTO two.t VALUES (1, '[]'), (2, NULL), (2, NULL), (2, NULL), (4, '{}')")
    difference = compare(conn, "one", "two")
    assert counts(difference) == {"t": (2, 1, 0)}
    assert named(difference) == [
        ("t", {"a": "1", "b": "[]"}, "extra"),
        ("t", {"a": "2", "b": None}, "missing"),
    ]


def test_tables_and_columns_on_one_side_only(conn: Connection[TupleRow]) -> None:
    both(conn, "CREATE TABLE $.t (id int PRIMARY KEY, a int)", "INSERT INTO $.t VALUES (1, 1)")
    conn.execute("ALTER TABLE one.t ADD b int")
    conn.execute("ALTER TABLE two.t ALTER a TYPE bigint")
    conn.execute("CREATE TABLE one.only AS SELECT 1 AS x")
    conn.execute("CREATE TABLE two.other ()")
    difference = compare(conn, "one", "two")
    assert difference.differs
    assert {table.table: table.structure for table in difference.tables} == {
        "only": ["the table is only in the live copy"],
        "other": ["the table is only in the other copy"],
        "t": [
            "column a is integer in the live copy, bigint in the other",
            "column b is only in the live copy",
        ],
    }
    assert counts(difference) == {"only": (0, 1, 0), "other": (0, 0, 0), "t": (0, 0, 0)}


def test_another_key_is_a_difference(conn: Connection[TupleRow]) -> None:
    both(conn, "CREATE TABLE $.t (a int, b int)", "INSERT INTO $.t VALUES (1, 2)")
    conn.execute("ALTER TABLE one.t ADD PRIMARY KEY (a, b)")
    conn.execute("ALTER TABLE two.t ADD PRIMARY KEY (b, a)")
    difference = compare(conn, "one", "two")
    assert difference.tables[0].structure == [
        "the primary key is (a, b) in the live copy, (b, a) in the other"
    ]
    assert (difference.differs, difference.total) == (True, 0)


def test_partitions_are_read_once_with_their_table(conn: Connection[TupleRow]) -> None:
    both(
        conn,
        "CREATE TABLE $.t (id int PRIMARY KEY, a int) PARTITION BY RANGE (id)",
        "CREATE TABLE $.low PARTITION OF $.t FOR VALUES FROM (0) TO (10)",
        "INSERT INTO $.t VALUES (1, 1)",
    )
    conn.execute("UPDATE one.t SET a = 2")
    difference = compare(conn, "one", "two")
    assert named(difference) == [("t", {"id": "1"}, Kind.DIFFERENT)]


def test_the_columns_that_differ_are_told_with_both_values(conn: Connection[TupleRow]) -> None:
    both(conn, "CREATE TABLE $.t (id int PRIMARY KEY, likes int, note text, at timestamptz)")
    conn.execute(
        "INSERT INTO one.t VALUES (1, 3, 'said', now()), (2, 5, NULL, NULL), (3, 1, '', NULL)"
    )
    conn.execute("INSERT INTO two.t SELECT * FROM one.t WHERE id < 3")
    conn.execute("UPDATE two.t SET likes = 4, note = 'meant' WHERE id = 1")
    conn.execute("UPDATE two.t SET note = '' WHERE id = 2")
    first, second, extra = compare(conn, "one", "two").keys
    assert first.changes == {"likes": [3, 4], "note": ["said", "meant"]}
    assert second.changes == {"note": [None, ""]}
    assert extra.changes == {}
    assert first.as_dict()["columns"] == ["likes", "note"]
    assert "said" not in str(first.as_dict()), "what people wrote is kept nowhere"
    assert first.as_dict(values=True)["changes"] == first.changes
    assert "columns" not in extra.as_dict()
