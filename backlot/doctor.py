"""`backlot doctor`: what is configured, what is embedded, what answers; it changes nothing."""

from __future__ import annotations

import os
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr
from redis import RedisError

from backlot.database import NothingRuns
from backlot.features import FEATURES
from backlot.health import NOT_RUNNING, PATIENCE_SECONDS, DoctorPart, Kind, analytics, failure, keys
from backlot.output import flow
from backlot.projections.text import in_trouble, read_statuses
from backlot.signals import run
from engine.privileges import APPEND_ONLY, MAY_CHANGE
from infra.data_folder import (
    DataFolderError,
    check_format,
    cluster_path,
    lock_holder,
    objects_path,
    secret_path,
)
from infra.errors import OperatorError
from infra.http.auth import make_authenticator
from infra.http.keys import KeysUnavailable, RemoteKeys
from infra.kafka import KafkaMisconfigured
from infra.kafka_topics import TopicsUnavailable, find_unlimited
from infra.objects.port import ObjectStoreUnavailable
from infra.postgres.cluster import MAJOR, PostgresError, check_major
from infra.postgres.connection import UNHURRIED, explained, is_silence, open_connection
from infra.postgres.server import running_url
from infra.redis import connect_blocking_redis, server_of
from infra.settings import Role, Settings, SettingsError, load_settings
from infra.settings.adapters import KafkaSettings
from infra.settings.values import TcpAddress, secret_weakness
from infra.tasks.broker import task_queues
from infra.tasks.queues import BrokerAway, TaskQueues
from projections.integration_events import topics_with_texts


def kafka(settings: Settings) -> DoctorPart:
    """Return whether one of the brokers takes a connection."""
    servers = settings.kafka.bootstrap_servers
    if not servers:
        told = "not set: consumers follow the event log"
        return DoctorPart("kafka", "embedded", None, True, told)
    errors = []
    for server in servers:
        host, _, port = server.rpartition(":")
        try:
            socket.create_connection((host, int(port)), PATIENCE_SECONDS).close()
        except OSError as error:
            errors.append(f"{server}: {error.strerror or error}")
    up = len(servers) - len(errors)
    detail = "; ".join([f"{up} of {len(servers)} bootstrap servers answer", *errors])
    if up == 0:
        remedy = "start them, or see KAFKA_BOOTSTRAP_SERVERS"
        return failure("kafka", "external", ",".join(servers), detail, remedy)
    return _topics(settings.kafka, detail)


def _topics(settings: KafkaSettings, detail: str) -> DoctorPart:
    """Return how the brokers are, and which topics keep texts for longer than they may."""
    shown, term = ",".join(settings.bootstrap_servers), settings.text_retention
    asked = find_unlimited(settings, topics_with_texts(), term, seconds=PATIENCE_SECONDS)
    try:
        found = run(asked)
    except TopicsUnavailable as error:
        told = f"{detail}; how long topics keep texts is not known: {error}"
        return DoctorPart("kafka", "external", shown, True, told)
    except KafkaMisconfigured as error:
        return failure("kafka", "external", shown, str(error), "see KAFKA_SSL_CA_FILE")
    if found:
        which = "; ".join(f"{topic} ({why})" for topic, why in found.items())
        wrong = f"{detail}; topics keep texts for longer than {term.days} days: {which}"
        return failure("kafka", "external", shown, wrong, SEE_TOPICS)
    return DoctorPart("kafka", "external", shown, True, detail)


def tasks(settings: Settings, queues: TaskQueues | None = None) -> DoctorPart:
    """Return how the task queues are, where several processes share them.

    Who looks again and again gives the `queues`, which have a connection of their own.
    """
    url = settings.tasks.own_broker_url
    if settings.tasks.broker_url is None:
        told = "in the process; lost tasks are found again"
        return DoctorPart("tasks", "embedded", None, True, told)
    try:
        depths = (queues or task_queues(settings.tasks)).depths()
    except BrokerAway as error:
        remedy = "start it, or see TASK_BROKER_URL and REDIS_URL"
        return failure("tasks", "external", None, str(error), remedy)
    dead = sum(depth.dead for depth in depths)
    waiting = sum(depth.waiting + depth.delayed for depth in depths)
    counts = f"{waiting} waiting, {dead} dead"
    if url is None:
        return DoctorPart("tasks", "external", None, True, f"on the redis above, {counts}")
    parts = urlsplit(url.get_secret_value())
    port = "" if parts.port is None else f":{parts.port}"
    shown = f"{parts.scheme}://{parts.hostname}{port}{parts.path}"
    return DoctorPart("tasks", "external", shown, True, counts)


class Probe(NamedTuple):
    """Where the servers are, without their passwords, and how they are."""

    url: str
    ok: bool
    detail: str


def probe(urls: Sequence[SecretStr]) -> Probe:
    """Ask all Redis servers at once; each has a second or two to answer."""
    secrets = [url.get_secret_value() for url in urls]
    with ThreadPoolExecutor(len(secrets)) as threads:
        found = list(threads.map(_ask, secrets))
    servers = [told for told in found if not isinstance(told, str)]
    complaints = [told for told in found if isinstance(told, str)]
    # What a server calls itself until it restarts.
    runs = Counter(told["run_id"] for told in servers)
    same = [told["server"] for told in servers if runs[told["run_id"]] > 1]
    if same:
        complaints.append(f"{' and '.join(same)} are the same server")
    versions = ", ".join(sorted({told["redis_version"] for told in servers}))
    answering = f"{len(servers)} of {len(found)} answer" if len(found) > 1 else ""
    detail = [f"Redis {versions}" if versions else "", answering, *complaints]
    shown = ", ".join(f"{urlsplit(url).scheme}://{server_of(url)}" for url in secrets)
    return Probe(shown, not complaints, "; ".join(filter(None, detail)))


def _ask(url: str) -> dict[str, str] | str:
    """Return what the server tells of itself, or else a text that says what is wrong."""
    try:
        with closing(connect_blocking_redis(url)) as client:
            return {**client.info("server"), "server": server_of(url)}
    except RedisError as error:
        return f"{server_of(url)}: {' '.join(str(error).split())}"


SEE_TOPICS = (
    "the relay limits that where it may alter them, and says in its log why not; or set their "
    "retention.ms (docs/privacy.md), or see KAFKA_TEXT_RETENTION_DAYS"
)
MAY_REWRITE = "may rewrite the log (see DATABASE_OWNER_URL)"
SEE_DATABASE = "start it, or see DATABASE_URL"
OTHER_FOLDER = "mend it, or set BACKLOT_DATA_DIR to another folder"
SEE_S3 = "see S3_ENDPOINT_URL, S3_BUCKET and the credentials"


def examine() -> list[DoctorPart]:
    """Look at every part; where settings are unreadable, these are the only part."""
    try:
        settings = load_settings()
    except SettingsError as error:
        remedy = "set it in the environment as `.env.example` says"
        return [failure("settings", "embedded", None, str(error), remedy)]
    return _look(settings, (_settings, *looks_at_parts(settings, _projections), _api))


def look_at_parts(settings: Settings, queues: TaskQueues) -> list[DoctorPart]:
    """Look at what a running program stands on, from within; may take seconds."""
    at_tasks = partial(tasks, queues=queues)
    return _look(settings, looks_at_parts(settings, at_tasks=at_tasks))


Look = Callable[[Settings], DoctorPart]


def looks_at_parts(settings: Settings, *others: Look, at_tasks: Look = tasks) -> tuple[Look, ...]:
    """Return what looks at each part; the `others` come after the database."""
    return (
        _embedded_database if settings.database.embedded else _database,
        *others,
        analytics,
        _folder if settings.objects.bucket is None else _s3,
        _redis,
        _locks,
        kafka,
        at_tasks,
        *(check for feature in FEATURES for check in feature.checks),
        keys,
        _auth,
    )


def _look(settings: Settings, looks: Sequence[Look]) -> list[DoctorPart]:
    # All at once: where several don't answer, nobody waits for one after the other.
    with ThreadPoolExecutor(len(looks)) as threads:
        return list(threads.map(lambda look: look(settings), looks))


def as_lines(parts: Iterable[DoctorPart]) -> Iterator[str]:
    """Yield the report for a terminal, one part a line where that fits."""
    for part in parts:
        state = "ok  " if part.ok else "FAIL"
        url = [part.url] if part.url else []
        yield from flow([f"{state}  {part.name:<11} {part.kind:<9}", *url, part.detail])


def mask_password(url: str) -> str:
    """Return a database URL without its password."""
    known = conninfo_to_dict(url)
    user = f"{known['user']}:***@" if "password" in known else f"{known.get('user', '')}@"
    port = f":{known['port']}" if "port" in known else ""
    return f"postgresql://{user}{known.get('host', '')}{port}/{known.get('dbname', '')}"


LISTENS = b"SELECT current_setting('listen_addresses'), current_setting('port')"


def _settings(settings: Settings) -> DoctorPart:
    names = ", ".join(sorted(settings.given()))
    return DoctorPart("settings", "embedded", None, True, f"set: {names or 'none'}")


def _database(settings: Settings) -> DoctorPart:
    url = settings.database.url.get_secret_value() if settings.database.url else ""
    shown = mask_password(url)
    try:
        rewriter = f"; its user {MAY_REWRITE}" if _may_rewrite(url) else ""
        detail = f"PostgreSQL {_version(url)}{rewriter}"
        return DoctorPart("database", "external", shown, True, detail)
    except psycopg.Error as error:
        return failure("database", "external", shown, explained(error), SEE_DATABASE)


def _embedded_database(settings: Settings) -> DoctorPart:
    folder = settings.server.data_dir.absolute()
    cluster = cluster_path(folder)
    try:
        check_format(folder)
        check_major(cluster)
        url = running_url(cluster)
    except (DataFolderError, PostgresError) as error:
        return failure("database", "embedded", None, str(error), OTHER_FOLDER)
    except OSError as error:
        return failure("database", "embedded", None, f"{cluster}: {error.strerror}", OTHER_FOLDER)
    if url is None:
        state = f"PostgreSQL {MAJOR} in {cluster}" if cluster.exists() else f"{folder} is not made"
        return DoctorPart("database", "embedded", None, True, f"{state}; {NOT_RUNNING}")
    return _running_database(url, lock_holder(folder))


def _running_database(url: str, holder: int | None) -> DoctorPart:
    try:
        version, listening = f"PostgreSQL {_version(url)}", _listening(url)
    except psycopg.Error as error:
        if holder is not None or is_silence(error):
            whose = f"stop Backlot (pid {holder})" if holder else "end what a killed Backlot left"
            remedy = f"see its log, or {whose} and `make up`"
            return failure("database", "embedded", url, explained(error), remedy)
        return DoctorPart("database", "embedded", None, True, f"stopped uncleanly; {NOT_RUNNING}")
    whose = (
        f"of Backlot (pid {holder})" if holder else "left by a killed Backlot; `make up` ends it"
    )
    detail = f"{version}, running, {whose}{listening}"
    return DoctorPart("database", "embedded", url, True, detail)


def _projections(settings: Settings) -> DoctorPart:
    kind: Kind = "embedded" if settings.database.embedded else "external"
    try:
        found = read_statuses(settings).values()
    except NothingRuns:
        return DoctorPart("projections", kind, None, True, NOT_RUNNING)
    except (OperatorError, OSError) as error:
        # What is wrong with the database itself stands in the line above.
        return DoctorPart("projections", kind, None, True, f"not known: {error}")
    told = [f"{each.name}: {trouble}" for each in found if (trouble := in_trouble(each))]
    busy = [each.name for each in found if each.replay and not each.replay.finished_at]
    running = f"{len(found)} in order" + (f", replaying {', '.join(busy)}" if busy else "")
    return DoctorPart("projections", kind, None, not told, "; ".join(told) or running)


def _s3(settings: Settings) -> DoctorPart:
    # Its library is slow to import, and not needed where objects lie in a folder.
    from infra.objects.s3 import S3Store
    from infra.objects.s3_cors import look_at_cors

    url, detail = settings.objects.endpoint_url, "the bucket answers"
    try:
        with closing(S3Store(settings.objects)) as store:
            url = store.url
            store.probe()
    except (ObjectStoreUnavailable, OperatorError) as error:
        wrong = error.cause if isinstance(error, ObjectStoreUnavailable) else str(error)
        return failure("objects", "external", url, wrong, SEE_S3)
    if settings.cors.origins:
        cors = look_at_cors(settings.objects, settings.cors.origins)
        detail = f"{detail}; {cors.detail}"
        if cors.admits is False:
            return failure("objects", "external", url, detail, "or see CORS_ORIGINS")
    return DoctorPart("objects", "external", url, True, detail)


def _folder(settings: Settings) -> DoctorPart:
    path = objects_path(settings.server.data_dir.absolute())
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        wrong, remedy = f"{there} is not writable", f"chown it to who runs Backlot: {there}"
        return failure("objects", "embedded", path.as_uri(), wrong, remedy)
    free = shutil.disk_usage(there).free / 1e9
    made = "" if path.exists() else "made at the first start, "
    return DoctorPart("objects", "embedded", path.as_uri(), True, f"{made}{free:.1f} GB free")


def _redis(settings: Settings) -> DoctorPart:
    if settings.redis.url is None:
        return DoctorPart("redis", "embedded", None, True, "in the process, made at each start")
    return _redis_servers("redis", [settings.redis.url], "start it, or see REDIS_URL")


def _redis_servers(name: str, urls: Sequence[SecretStr], remedy: str) -> DoctorPart:
    url, ok, detail = probe(urls)
    return DoctorPart(name, "external", url, ok, detail if ok else f"{detail}; {remedy}")


def _locks(settings: Settings) -> DoctorPart:
    if settings.redis.lock_urls:
        remedy = "start them, or see REDLOCK_URLS: independent servers, each named once"
        return _redis_servers("locks", settings.redis.lock_urls, remedy)
    kind: Kind = "embedded" if settings.redis.url is None else "external"
    return DoctorPart("locks", kind, None, True, "on the redis above")


def _auth(settings: Settings) -> DoctorPart:
    if settings.auth.local:
        return _local_auth(secret_path(settings.server.data_dir.absolute()))
    algorithms = ", ".join(sorted(settings.auth.algorithms))
    try:
        if settings.auth.jwks_url is None:
            make_authenticator(settings.auth)
            return DoctorPart("auth", "external", None, True, f"tokens signed with {algorithms}")
        keys = RemoteKeys(settings.auth.jwks_url, settings.auth.algorithms).count()
        told = f"{keys} keys, {algorithms}"
        return DoctorPart("auth", "external", settings.auth.jwks_url, True, told)
    except (SettingsError, KeysUnavailable) as error:
        remedy = "see JWT_JWKS_URL, JWT_PUBLIC_KEY and JWT_ALGORITHMS"
        return failure("auth", "external", settings.auth.jwks_url, str(error), remedy)


def _local_auth(secret: Path) -> DoctorPart:
    if not secret.exists():
        return DoctorPart("auth", "embedded", None, True, "local secret, made at the first start")
    if secret.stat().st_mode & 0o077:
        return failure("auth", "embedded", None, "others can read it", f"chmod 600 {secret}")
    if weakness := secret_weakness(secret.read_text().strip()):
        wrong = f"the local secret {weakness}"
        return failure("auth", "embedded", None, wrong, f"remove {secret}: a new one is made")
    return DoctorPart("auth", "embedded", None, True, "local secret; `backlot token` mints")


def _api(settings: Settings) -> DoctorPart:
    url = settings.server.local_url
    if settings.server.roles == {Role.TASKS}:
        return DoctorPart("api", "embedded", None, True, "none: this process only runs tasks")
    holder = lock_holder(settings.server.data_dir.absolute())
    try:
        answer = httpx.get(f"{url}/readyz", timeout=PATIENCE_SECONDS, trust_env=False)
        broken = [name for name, part in answer.json()["parts"].items() if not part["ok"]]
    except httpx.ConnectError:
        if holder is None:
            return DoctorPart("api", "embedded", url, True, NOT_RUNNING)
        wrong = f"pid {holder} holds the data folder but does not answer here"
        return failure("api", "embedded", url, wrong, "see its log, or BACKLOT_PORT")
    except httpx.TimeoutException:
        who = "something" if holder is None else f"pid {holder}"
        took = f"{who} took the connection on port {settings.server.port}"
        wrong = f"it hangs: {took}, and said nothing for {PATIENCE_SECONDS} s"
        return failure("api", "embedded", url, wrong, "see its log, or stop it")
    except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError):
        wrong = f"another program answers on port {settings.server.port}"
        return failure("api", "embedded", url, wrong, "set BACKLOT_PORT")
    if answer.status_code == httpx.codes.OK:
        return DoctorPart("api", "embedded", url, True, "ready")
    wrong, remedy = f"not ready: {', '.join(broken)}", f"mend these; GET {url}/readyz says why"
    return failure("api", "embedded", url, wrong, remedy)


def _may_rewrite(url: str) -> bool:
    """Return whether the user of a database may change what its log has recorded."""
    with open_connection(url, "doctor", UNHURRIED) as connection:
        return any(
            (connection.execute(MAY_CHANGE, (table,)).fetchone() or [False])[0]
            for table in APPEND_ONLY
        )


def _version(url: str) -> str:
    with open_connection(url, "doctor", UNHURRIED) as connection:
        return connection.info.parameter_status("server_version") or "of unknown version"


def _listening(url: str) -> str:
    """Return where roles with a password may come in, as the end of a sentence."""
    with open_connection(url, "doctor", UNHURRIED) as connection:
        host, port = connection.execute(LISTENS).fetchone() or ("", "")
    if not host:
        return ""
    listen = TcpAddress(host, int(port))
    reach = "" if listen.is_loopback else ", from other machines, too, and without TLS"
    return f"; roles with a password may come in at {listen}{reach}"
