"""`backlot doctor`: what is configured, what is embedded, what answers; it changes nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import psycopg
from psycopg.conninfo import conninfo_to_dict

from backlot.database import NothingRuns
from backlot.doctor_analytics import analytics, embeddings
from backlot.doctor_outside import kafka, language_model, tasks
from backlot.doctor_part import PATIENCE_SECONDS, Kind, Part
from backlot.layout import flow
from backlot.projections.lines import in_trouble
from backlot.projections.reading import read_statuses
from backlot.redis_probe import probe
from infra.auth import KeysUnavailable, make_authenticator
from infra.data_folder import (
    DataFolderError,
    check_format,
    cluster_path,
    lock_holder,
    objects_path,
    secret_path,
)
from infra.errors import OperatorError
from infra.jwks import RemoteKeys
from infra.objects import ObjectStoreUnavailable
from infra.objects.choosing import make_s3
from infra.postgres import PostgresError, running_url
from infra.postgres_cluster import MAJOR, check_major
from infra.settings import Role, Settings, SettingsError, load_settings

NOT_RUNNING = "not running; `make up` starts it"


def examine() -> list[Part]:
    """Look at every part; unreadable settings are the only part then."""
    try:
        settings = load_settings()
    except SettingsError as error:
        return [Part("settings", "embedded", None, False, str(error))]
    return [
        _settings(settings),
        _embedded_database(settings) if settings.embedded_database else _database(settings),
        _projections(settings),
        analytics(settings),
        _objects(settings),
        _redis(settings),
        _locks(settings),
        kafka(settings),
        tasks(settings),
        language_model(settings),
        embeddings(settings),
        _auth(settings),
        _api(settings),
    ]


def as_lines(parts: Iterable[Part]) -> Iterator[str]:
    """The report for a terminal, one part a line where that fits."""
    for part in parts:
        state = "ok  " if part.ok else "FAIL"
        url = [part.url] if part.url else []
        yield from flow([f"{state}  {part.name:<11} {part.kind:<9}", *url, part.detail])


def masked(url: str) -> str:
    """A database URL without its password."""
    known = conninfo_to_dict(url)
    user = f"{known['user']}:***@" if "password" in known else f"{known.get('user', '')}@"
    port = f":{known['port']}" if "port" in known else ""
    return f"postgresql://{user}{known.get('host', '')}{port}/{known.get('dbname', '')}"


def _settings(settings: Settings) -> Part:
    fields = type(settings).model_fields
    names = sorted(str(fields[name].alias) for name in settings.model_fields_set)
    return Part("settings", "embedded", None, True, f"set: {', '.join(names) or 'none'}")


def _database(settings: Settings) -> Part:
    url = settings.database_url.get_secret_value() if settings.database_url else ""
    try:
        return Part("database", "external", masked(url), True, f"PostgreSQL {_version(url)}")
    except psycopg.Error as error:
        return Part("database", "external", masked(url), False, _one_line(error))


def _embedded_database(settings: Settings) -> Part:
    folder = settings.data_dir.absolute()
    cluster = cluster_path(folder)
    try:
        check_format(folder)
        check_major(cluster)
        url = running_url(cluster)
    except (DataFolderError, PostgresError) as error:
        return Part("database", "embedded", None, False, str(error))
    except OSError as error:
        return Part("database", "embedded", None, False, f"{cluster}: {error.strerror}")
    if url is None:
        state = f"PostgreSQL {MAJOR} in {cluster}" if cluster.exists() else f"{folder} is not made"
        return Part("database", "embedded", None, True, f"{state}; {NOT_RUNNING}")
    return _running_database(url, lock_holder(folder))


def _running_database(url: str, holder: int | None) -> Part:
    try:
        version = f"PostgreSQL {_version(url)}"
    except psycopg.Error as error:
        if holder is not None:
            return Part("database", "embedded", url, False, _one_line(error))
        return Part("database", "embedded", None, True, f"stopped uncleanly; {NOT_RUNNING}")
    whose = (
        f"of Backlot (pid {holder})" if holder else "left by a killed Backlot; `make up` ends it"
    )
    return Part("database", "embedded", url, True, f"{version}, running, {whose}")


def _projections(settings: Settings) -> Part:
    kind: Kind = "embedded" if settings.embedded_database else "external"
    try:
        found = read_statuses(settings).values()
    except NothingRuns:
        return Part("projections", kind, None, True, NOT_RUNNING)
    except (OperatorError, OSError) as error:
        # What is wrong with the database itself stands in the line above.
        return Part("projections", kind, None, True, f"not known: {error}")
    told = [(each, trouble) for each in found if (trouble := in_trouble(each))]
    busy = [each.name for each in found if each.replay and not each.replay.finished_at]
    detail = "; ".join(f"{each.name}: {trouble}" for each, trouble in told)
    running = f"{len(found)} in order" + (f", replaying {', '.join(busy)}" if busy else "")
    return Part("projections", kind, None, not told, detail or running)


def _objects(settings: Settings) -> Part:
    return _folder(settings) if settings.s3_bucket is None else _s3(settings)


def _s3(settings: Settings) -> Part:
    url = settings.s3_endpoint_url
    try:
        with closing(make_s3(settings)) as store:
            url = store.url
            store.probe()
    except ObjectStoreUnavailable as error:
        return Part("objects", "external", url, False, error.cause)
    except OperatorError as error:
        return Part("objects", "external", url, False, str(error))
    return Part("objects", "external", url, True, "the bucket answers")


def _folder(settings: Settings) -> Part:
    path = objects_path(settings.data_dir.absolute())
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        return Part("objects", "embedded", path.as_uri(), False, f"{there} is not writable")
    free = shutil.disk_usage(there).free / 1e9
    made = "" if path.exists() else "made at the first start, "
    return Part("objects", "embedded", path.as_uri(), True, f"{made}{free:.1f} GB free")


def _redis(settings: Settings) -> Part:
    if settings.redis_url is None:
        return Part("redis", "embedded", None, True, "in the process, made at each start")
    return Part("redis", "external", *probe([settings.redis_url]))


def _locks(settings: Settings) -> Part:
    if settings.redlock_urls:
        return Part("locks", "external", *probe(settings.redlock_urls))
    kind: Kind = "embedded" if settings.redis_url is None else "external"
    return Part("locks", kind, None, True, "on the redis above")


def _auth(settings: Settings) -> Part:
    if settings.local_auth:
        return _local_auth(secret_path(settings.data_dir.absolute()))
    algorithms = ", ".join(sorted(settings.jwt_algorithms))
    try:
        if settings.jwt_jwks_url is None:
            make_authenticator(settings)
            return Part("auth", "external", None, True, f"tokens signed with {algorithms}")
        keys = RemoteKeys(settings.jwt_jwks_url, settings.jwt_algorithms).count()
        return Part("auth", "external", settings.jwt_jwks_url, True, f"{keys} keys, {algorithms}")
    except (SettingsError, KeysUnavailable) as error:
        return Part("auth", "external", settings.jwt_jwks_url, False, str(error))


def _local_auth(secret: Path) -> Part:
    if not secret.exists():
        return Part("auth", "embedded", None, True, "local secret, made at the first start")
    if secret.stat().st_mode & 0o077:
        return Part("auth", "embedded", None, False, f"others can read it: chmod 600 {secret}")
    return Part("auth", "embedded", None, True, "local secret; `backlot token` mints")


def _api(settings: Settings) -> Part:
    url = settings.local_url
    if settings.roles == {Role.TASKS}:
        return Part("api", "embedded", None, True, "none: this process only runs tasks")
    try:
        answer = httpx.get(f"{url}/readyz", timeout=PATIENCE_SECONDS, trust_env=False)
        broken = [name for name, part in answer.json()["parts"].items() if not part["ok"]]
    except httpx.ConnectError:
        return _silent_api(url, lock_holder(settings.data_dir.absolute()))
    except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError):
        reason = f"another program answers on port {settings.port}: set BACKLOT_PORT"
        return Part("api", "embedded", url, False, reason)
    if answer.status_code == httpx.codes.OK:
        return Part("api", "embedded", url, True, "ready")
    return Part("api", "embedded", url, False, f"not ready: {', '.join(broken)}")


def _silent_api(url: str, holder: int | None) -> Part:
    if holder is None:
        return Part("api", "embedded", url, True, NOT_RUNNING)
    detail = f"pid {holder} holds the data folder but does not answer here: see BACKLOT_PORT"
    return Part("api", "embedded", url, False, detail)


def _version(url: str) -> str:
    with psycopg.connect(url, connect_timeout=PATIENCE_SECONDS) as connection:
        return connection.info.parameter_status("server_version") or "of unknown version"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
