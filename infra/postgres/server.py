"""The embedded PostgreSQL server: started out of a wheel, healed when it dies, stopped cleanly."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Self
from urllib.parse import quote

import psycopg
import structlog
from psycopg import sql

from infra.metrics import counter
from infra.postgres.cluster import (
    PostgresError,
    RunAs,
    check_major,
    create,
    end_strays,
    environment,
    failure_reason,
    make_reachable,
    make_readable,
    programs,
    run_as,
    socket_folder,
)
from infra.settings.values import TcpAddress

log = structlog.get_logger(__name__)

DATABASE = "backlot"
LOG_LIMIT_BYTES = 16 * 1024 * 1024
WATCH_SECONDS = 0.1
REPORT_SECONDS = 5.0
# Of a start, crash recovery included.
START_SECONDS = 300.0

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    # An acknowledged command is on the disk.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "work_mem": "16MB",
    "maintenance_work_mem": "128MB",
    # Fewer checkpoints, and so fewer full pages, in a log that is written all the time.
    "max_wal_size": "2GB",
    "checkpoint_timeout": "10min",
    # Whole pages are logged as they are: pglz, which alone is built in, takes most of the time that
    # a change of a large table takes.
    "wal_compression": "off",
    "random_page_cost": "1.1",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] ",
}

PORT = 5432
# The socket lies in a private folder, so whoever reaches it may do anything. Over TCP only roles
# with a password come in, none of them the one that may do anything, and only to this database.
ACCESS = """\
# Written at each start with DATABASE_LISTEN.
local all all trust
host all postgres all reject
host {database} all {clients} scram-sha-256
"""

POSTGRES_RESTARTS = counter(
    "backlot_postgres_restarts", "Times that the embedded PostgreSQL died and was started again."
)


class EmbeddedPostgres:
    """One PostgreSQL server on one folder, reached over a private Unix socket.

    The caller makes sure that nobody else uses the folder (``DataFolder`` does).
    """

    def __init__(
        self,
        cluster: Path,
        *,
        settings: Mapping[str, str] | None = None,
        listen: TcpAddress | None = None,
        gives_up: Callable[[], bool] = lambda: False,
    ) -> None:
        """``listen`` is where roles with a password may come in, too; ``gives_up`` ends a start."""
        self.cluster = cluster.resolve()
        self.log_file = self.cluster / "postgres.log"
        # Whether the server answers; not while it is being restarted.
        self.ready = False
        self._settings = {**SETTINGS, **(settings or {})}
        self._listen = listen
        self._access_file = self.cluster / "backlot_hba.conf"
        if listen is not None:
            self._settings |= {
                "listen_addresses": listen.host,
                "port": str(listen.port),
                "hba_file": str(self._access_file),
                "password_encryption": "scram-sha-256",
            }
        self._gives_up = gives_up
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets = self.cluster
        self._stopping = Event()
        self._stop_lock = Lock()
        self._watcher: Thread | None = None

    @property
    def url(self) -> str:
        """How libpq and psycopg reach the database; the same after every restart."""
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        """Return the URL of another database on this server."""
        return _url(str(self._sockets), database, self._listen.port if self._listen else PORT)

    @property
    def pid(self) -> int | None:
        """The postmaster's pid, None while there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start and wait until the server answers; ends what a killed process left running.

        Raise PostgresError when it cannot. A stopped instance is not started again: make another.
        """
        check_major(self.cluster)
        try:
            user = run_as(self.cluster)
            self._prepare(user)
        except OSError as error:
            raise PostgresError(f"PostgreSQL cannot be prepared: {error}") from error
        end_strays(self.cluster, self._sockets)
        atexit.register(self.stop)
        try:
            self._launch(user, self._gives_up)
            self._make_database()
        except BaseException:
            self.stop()
            raise
        self._watcher = Thread(target=self._watch, args=(user,), name="postgres", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """Stop the server after a checkpoint; safe to call twice and before a start."""
        self._stopping.set()
        with self._stop_lock:
            if self._watcher is not None:
                self._watcher.join()
                self._watcher = None
            self.ready = False
            if self._process is not None:
                _end(self._process)
                self._process = None
            if self._sockets != self.cluster and self._sockets.is_dir():
                self._sockets.rmdir()
        atexit.unregister(self.stop)

    def part_with(self) -> None:
        """Have the server stop by itself, after a checkpoint, without waiting for that.

        For a process that ends at once: it takes no lock and never blocks.
        """
        process = self._process
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _prepare(self, user: RunAs) -> None:
        self.cluster.parent.mkdir(parents=True, exist_ok=True)
        if user.another:
            make_readable(programs().parent)
            make_reachable(self.cluster)
        if not self.cluster.exists() or not any(self.cluster.iterdir()):
            log.info("postgres_creating", folder=str(self.cluster))
            create(self.cluster, user)
        self._sockets = socket_folder(self.cluster, user)
        if user.another:
            make_reachable(self._sockets)
        if self._listen is not None:
            clients = "samehost" if self._listen.is_loopback else "all"
            self._access_file.write_text(ACCESS.format(database=DATABASE, clients=clients))
            self._access_file.chmod(0o600)
            os.chown(self._access_file, user.uid, user.gid)
        if self.log_file.exists() and self.log_file.stat().st_size > LOG_LIMIT_BYTES:
            self.log_file.rename(self.log_file.with_suffix(".log.1"))

    def _launch(self, user: RunAs, gives_up: Callable[[], bool] = lambda: False) -> None:
        settings = {**self._settings, "unix_socket_directories": str(self._sockets)}
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        with self.log_file.open("ab") as output:
            offset = output.tell()
            # Its own session: Ctrl-C in the console must not end it before its clients.
            self._process = subprocess.Popen(
                [programs() / "postgres", "-D", self.cluster, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                umask=0o077,
                env=environment(),
                cwd="/",
                **user.as_arguments(),
            )
        self._await_answer(self._process, offset, gives_up)
        self.ready = True
        log.info("postgres_ready", pid=self._process.pid)

    def _await_answer(
        self, process: subprocess.Popen[bytes], offset: int, gives_up: Callable[[], bool]
    ) -> None:
        started = time.monotonic()
        report_at = started + REPORT_SECONDS
        while not (self._stopping.is_set() or gives_up()):
            try:
                psycopg.connect(self.url_of("postgres"), connect_timeout=5).close()
                return
            except psycopg.OperationalError as error:
                if process.poll() is not None:
                    reason = failure_reason(self.log_file, offset)
                    raise PostgresError(f"PostgreSQL did not start: {reason}") from error
                if time.monotonic() > started + START_SECONDS:
                    _end(process)
                    raise PostgresError(
                        f"PostgreSQL did not answer in {START_SECONDS:.0f} s: {error}"
                    ) from error
            if time.monotonic() > report_at:
                report_at += REPORT_SECONDS
                log.info("postgres_recovering", seconds=round(time.monotonic() - started))
            self._stopping.wait(0.03)
        raise PostgresError("PostgreSQL was stopped while it started")

    def _make_database(self) -> None:
        with psycopg.connect(self.url_of("postgres"), autocommit=True) as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
            if known.fetchone() is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))

    def _watch(self, user: RunAs) -> None:
        while not self._stopping.wait(WATCH_SECONDS):
            if self._process is not None and self._process.poll() is not None:
                self.ready = False
                POSTGRES_RESTARTS.inc()
                log.error("postgres_died", status=self._process.returncode)
                self._revive(user)

    def _revive(self, user: RunAs) -> None:
        while not self._stopping.is_set():
            try:
                # Backends outlive a killed postmaster for a moment and hold its shared memory.
                end_strays(self.cluster, self._sockets, patience=0.5)
                self._launch(user)
                return
            except (PostgresError, OSError) as error:
                log.error("postgres_restart_failed", error=str(error))
                self._stopping.wait(1.0)


def running_url(cluster: Path) -> str | None:
    """Return the URL of a server that says it runs on the cluster; None after a clean stop.

    After a crash that server may be gone. Raise OSError when the cluster cannot be read.
    """
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return None
    # Port and folder of the socket; a server that has just begun has not written them.
    return _url(lines[4], DATABASE, int(lines[3])) if len(lines) > 4 else None


def _url(sockets: str, database: str, port: int) -> str:
    name, host = quote(database, safe=""), quote(sockets, safe="")
    return f"postgresql://postgres@/{name}?host={host}&port={port}"


def _end(process: subprocess.Popen[bytes]) -> None:
    # Fast, immediate, then by force: see "Shutting Down the Server" in PostgreSQL's manual.
    for sign, seconds in ((signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)):
        if process.poll() is not None:
            return
        os.kill(process.pid, sign)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            log.error("postgres_slow_stop", signal=sign.name, waited_seconds=seconds)
