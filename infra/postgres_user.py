"""Who PostgreSQL runs as: it refuses root, so root gets a service user and lets it pass."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import structlog

from infra.errors import OperatorError

SERVICE_USER = "backlot"

log = structlog.get_logger(__name__)


class PostgresError(OperatorError):
    """The embedded PostgreSQL cannot be made or started; the text says why."""


class Arguments(TypedDict, total=False):
    """What subprocess takes to run a program as another user."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, slots=True)
class RunAs:
    """The user that PostgreSQL runs as; it refuses to run as root."""

    uid: int
    gid: int

    @property
    def another(self) -> bool:
        """Whether that is not the user of this process."""
        return self.uid != os.geteuid()

    def as_arguments(self) -> Arguments:
        """What makes subprocess run a program as this user; nothing when it is us."""
        if not self.another:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


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
    except OSError as error:
        raise _no_service_user(str(error)) from error
    try:
        # Looked up whatever the outcome: another process may have made it at the same moment.
        entry = pwd.getpwnam(SERVICE_USER)
    except KeyError as error:
        raise _no_service_user(" ".join(made.stderr.split())) from error
    log.info("postgres_user_made", user=SERVICE_USER)
    return entry


def _no_service_user(reason: str) -> PostgresError:
    return PostgresError(
        f"PostgreSQL does not run as root, and the user {SERVICE_USER!r} could not be made "
        f"({reason}): run Backlot as another user, or make that user"
    )


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
    for folder, _, files in os.walk(tree):
        for path in (Path(folder), *(Path(folder, name) for name in files)):
            if path.is_symlink():
                continue
            mode = path.stat().st_mode
            wanted = mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0)
            if wanted != mode:
                path.chmod(wanted)
