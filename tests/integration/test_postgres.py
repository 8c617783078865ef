"""The embedded PostgreSQL as it is shipped: started, killed, taken over, stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import psycopg
import pytest

from infra import metrics
from infra.postgres.cluster import PostgresError, stray_processes
from infra.postgres.server import EmbeddedPostgres, running_url
from infra.settings.values import TcpAddress

OUTLIVED = """
import os, sys
from pathlib import Path
from infra.postgres.server import EmbeddedPostgres
import psycopg
server = EmbeddedPostgres(Path(sys.argv[1]))
server.start()
with psycopg.connect(server.url) as connection:
    connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
os.kill(os.getpid(), 9)
"""


@pytest.fixture(scope="module")
def server(disk_dir: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(disk_dir / "shipped") as server:
        yield server


def show(url: str, name: str) -> str:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT current_setting(%s)", (name,)).fetchone()
        assert row is not None
        return str(row[0])


def wait_until_answering(server: EmbeddedPostgres, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            psycopg.connect(server.url).close()
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, "PostgreSQL did not come back"
            time.sleep(0.02)
        else:
            if server.ready:
                return


@pytest.mark.parametrize(
    ("name", "value"),
    [("fsync", "on"), ("synchronous_commit", "on"), ("listen_addresses", ""), ("TimeZone", "UTC")],
)
def test_runs_durable_and_off_the_network(server: EmbeddedPostgres, name: str, value: str) -> None:
    assert show(server.url, name) == value


def test_nobody_else_reaches_the_socket(server: EmbeddedPostgres) -> None:
    assert server.cluster.stat().st_mode & 0o077 == 0


def test_heals_when_the_postmaster_is_killed_during_a_query(server: EmbeddedPostgres) -> None:
    before = metrics.value("backlot_postgres_restarts_total")
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS acknowledged (n int)")
        connection.execute("INSERT INTO acknowledged VALUES (1)")
    busy = Thread(target=_stay_busy, args=(server.url,))
    busy.start()
    time.sleep(0.3)
    assert server.pid is not None
    killed = server.pid
    os.kill(killed, signal.SIGKILL)
    wait_until_answering(server, seconds=10)
    busy.join()
    assert server.pid != killed
    assert metrics.value("backlot_postgres_restarts_total") == before + 1
    with psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT n FROM acknowledged").fetchall() == [(1,)]


def _stay_busy(url: str) -> None:
    # A backend in the middle of a query outlives its postmaster and holds the shared memory.
    with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url) as connection:
        connection.execute("SELECT count(*) FROM generate_series(1, 1000000000)")


def test_takes_over_what_a_killed_process_left_running(disk_dir: Path) -> None:
    cluster = disk_dir / "orphaned"
    gone = subprocess.run([sys.executable, "-c", OUTLIVED, cluster], check=False)
    assert gone.returncode == -signal.SIGKILL
    assert stray_processes(cluster), "the killed process should have left a server"
    with EmbeddedPostgres(cluster) as server, psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
    assert stray_processes(cluster) == []


@pytest.mark.parametrize("name", ["postmaster.pid", ".s.PGSQL.5432.lock"])
def test_a_pid_file_that_names_a_stranger_does_not_hinder(disk_dir: Path, name: str) -> None:
    cluster = disk_dir / f"reused{name}"
    EmbeddedPostgres(cluster).__enter__().stop()
    stranger = subprocess.Popen(["sleep", "60"], user=_owner_of(cluster))
    try:
        (cluster / name).write_text(f"{stranger.pid}\n{cluster}\n1\n5432\n\n\n0 0\n")
        with EmbeddedPostgres(cluster) as server:
            assert server.ready
        assert stranger.poll() is None, "the stranger was harmed"
    finally:
        stranger.kill()
        stranger.wait()


def _owner_of(cluster: Path) -> int | None:
    return cluster.stat().st_uid if os.geteuid() == 0 else None


def test_a_path_too_long_for_a_socket_works(disk_dir: Path) -> None:
    cluster = disk_dir / ("long" * 30) / "with, comma and space"
    with EmbeddedPostgres(cluster) as server:
        assert show(server.url, "data_directory") == str(cluster)
        folder = Path(show(server.url, "unix_socket_directories"))
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()


def test_ctrl_c_in_the_console_does_not_reach_it(server: EmbeddedPostgres) -> None:
    assert server.pid is not None
    assert os.getsid(server.pid) != os.getsid(0)


def test_another_major_version_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "PG_VERSION").write_text("16\n")
    with pytest.raises(PostgresError, match="PostgreSQL 16, this Backlot carries 18"):
        EmbeddedPostgres(tmp_path).start()
    assert [entry.name for entry in tmp_path.iterdir()] == ["PG_VERSION"]


def test_a_failed_start_gives_the_servers_own_reason(disk_dir: Path) -> None:
    with pytest.raises(PostgresError, match=r"did not start: .*max_connections"):
        EmbeddedPostgres(disk_dir / "wrong", settings={"max_connections": "-1"}).start()


def test_a_half_made_cluster_is_made_again(disk_dir: Path) -> None:
    draft = disk_dir / "interrupted.new"
    draft.mkdir()
    (draft / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(disk_dir / "interrupted") as server:
        assert server.ready
    assert not draft.exists()


def test_roles_with_a_password_come_in_where_it_listens(disk_dir: Path, free_port: int) -> None:
    cluster = disk_dir / "listening"
    listen = TcpAddress("127.0.0.1", free_port)
    over_tcp: dict[str, Any] = {"host": listen.host, "port": listen.port, "dbname": "backlot"}
    with EmbeddedPostgres(cluster, listen=listen) as server:
        assert running_url(cluster) == server.url
        with psycopg.connect(server.url, autocommit=True) as root:
            root.execute("CREATE ROLE reader LOGIN PASSWORD 'right'; CREATE ROLE open LOGIN")
            root.execute("ALTER ROLE postgres PASSWORD 'right'")
            root.execute("CREATE DATABASE other")
        found = psycopg.connect(**over_tcp, user="reader", password="right")
        with found as reader:
            assert reader.execute("SELECT current_user").fetchone() == ("reader",)
        for refused in (
            {"user": "reader", "password": "wrong"},
            {"user": "open", "password": "right"},
            {"user": "postgres", "password": "right"},
            {"user": "reader", "password": "right", "dbname": "other"},
        ):
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(**{**over_tcp, **refused}).close()
        # The port is taken now.
        with pytest.raises(PostgresError, match="TCP/IP sockets"):
            EmbeddedPostgres(disk_dir / "late", listen=listen).start()
    # Without the setting, it is off the network again.
    with EmbeddedPostgres(cluster) as server:
        assert show(server.url, "listen_addresses") == ""
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(**over_tcp, user="reader", password="right").close()


def test_what_was_killed_on_another_port_leaves_no_socket(disk_dir: Path, free_port: int) -> None:
    # Of a folder whose path is too long for a socket, that lies in one that is removed at the end.
    cluster = disk_dir / ("long" * 30) / "postgres"
    killed = EmbeddedPostgres(cluster, listen=TcpAddress("127.0.0.1", free_port))
    killed.start()
    folder = Path(show(killed.url, "unix_socket_directories"))
    killed._stopping.set()
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    with EmbeddedPostgres(cluster) as server:
        names = {path.name for path in folder.iterdir()}
        assert names == {".s.PGSQL.5432", ".s.PGSQL.5432.lock"}
        assert show(server.url, "port") == "5432"
    assert not folder.exists()
    killed.stop()
