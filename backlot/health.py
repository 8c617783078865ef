"""How the parts are: lines of `backlot doctor`; liveness, readiness and metrics over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, Literal

import httpx
import psycopg
from eventsourcing.persistence import PersistenceError
from fastapi import APIRouter, Response
from psycopg.conninfo import conninfo_to_dict

from backlot.database import key_encryption
from domain.webhooks import DisabledBecause
from engine import wrapping_keys
from engine.erasures import open_erasures
from engine.event_store import open_recorder
from engine.replay.records import Replay, under_way
from engine.seals.chain import last_seal
from engine.seals.proofs import configured_proofs
from infra.cache import SingleFlight
from infra.data_folder import DataFolderError, cluster_path, key_encryption_key_path
from infra.errors import OperatorError
from infra.http.responses import wire
from infra.http.shapes import Wire
from infra.metrics import CONTENT_TYPE
from infra.postgres.cluster import PostgresError
from infra.postgres.connection import UNHURRIED, Limits, explained, open_connection
from infra.postgres.server import running_url
from infra.settings import Settings
from projections.analytics.schema import SchemaState, state
from projections.recommendations import embeddings as embedding_table
from readapi.webhooks import load_webhooks
from workers.parts import Parts

PATIENCE_SECONDS = 5
OPENAI = "https://api.openai.com/v1"

Kind = Literal["embedded", "external"]


@dataclass(frozen=True, slots=True)
class DoctorPart:
    """One line of the report. ``ok`` is False only for something that an operator has to mend.

    The ``detail`` ends with the ``remedy`` where there is one.
    """

    name: str
    kind: Kind
    url: str | None
    ok: bool
    detail: str
    remedy: str | None = field(default=None, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the part as ``doctor --json`` prints it."""
        told = asdict(self)
        del told["remedy"]
        return told


def failure(name: str, kind: Kind, url: str | None, wrong: str, remedy: str) -> DoctorPart:
    """Return a part that an operator has to mend: what is wrong, and what to do about it."""
    return DoctorPart(name, kind, url, False, f"{wrong.rstrip('.')}; {remedy}", remedy)


NOT_RUNNING = "not running; `make up` starts it"
NOT_MADE = "not made yet; a start with any role makes them"
INSTALL_OR_UNSET = "install it, or unset EMBEDDING_MODEL"
NOT_EMBEDDED = "not made yet; a process with the role workers makes them"


SEE_AUDIT = (
    "nothing is sealed until this is settled: `backlot events verify` says more; after a restore, "
    "`backlot events accept` (docs/audit.md)"
)
NOT_SIGNED = (
    "unsigned: whoever can write to the database can make seals that fit a changed log "
    "(SEAL_KEY_FILE)"
)
NOT_ANCHORED = (
    "unanchored: outside the database, only this data folder knows the newest seal; who changes "
    "both, or a new data folder, leaves no trace (SEAL_ANCHOR)"
)

MADE_AT_FIRST_START = "made at the first start"
KEEP_A_COPY = "keep a copy of it in another place than those of the database"


SEE_ERASURE = (
    "a process with the role workers forgets, and its log says why it can't (docs/privacy.md)"
)
SEE_WEBHOOK = (
    "`backlot webhooks deliveries` says why; once its receiver is mended, "
    "`backlot webhooks enable` (docs/webhooks.md)"
)
# It takes a minute where nothing is in the way.
LONGEST_ERASURE = timedelta(minutes=30)

AWAY = (psycopg.Error, DataFolderError, PostgresError, OSError)


def analytics(settings: Settings) -> DoctorPart:
    """Return whether the tables of the analytics are there, and on which database."""
    own = settings.analytics.timescale_url
    kind: Kind = "embedded" if own is None and settings.database.embedded else "external"
    try:
        url = _url(settings)
        if url is None:
            return DoctorPart("analytics", "embedded", None, True, NOT_RUNNING)
        found = look(url)
    except AWAY as error:
        # What is wrong with the database of everything else stands in its own line.
        told = f"not known: {explained(error)}"
        if own is None:
            return DoctorPart("analytics", kind, None, True, told)
        return failure("analytics", kind, None, told, "start it, or see TIMESCALE_URL")
    host = conninfo_to_dict(url).get("host", "") if own else None
    shown = f"postgresql://{host}" if host else None
    return DoctorPart("analytics", kind, shown, True, str(found or NOT_MADE))


def language_model(settings: Settings) -> DoctorPart:
    """Return whether the language model's server answers, and takes the key."""
    if not settings.llm.configured:
        detail = "none: comments in other languages are skipped (OPENAI_API_KEY, OPENAI_BASE_URL)"
        return DoctorPart("llm", "embedded", None, True, detail)
    url = settings.llm.base_url or OPENAI
    key = settings.llm.api_key
    headers = {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}
    try:
        answer = httpx.get(f"{url}/models", headers=headers, timeout=PATIENCE_SECONDS)
    except httpx.HTTPError as error:
        wrong = f"does not answer: {type(error).__name__}"
        return failure("llm", "external", url, wrong, "start it, or see OPENAI_BASE_URL")
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return failure("llm", "external", url, "does not take the key", "see OPENAI_API_KEY")
    told = f"answers; {settings.translation.model} translates"
    return DoctorPart("llm", "external", url, True, told)


def embeddings(settings: Settings) -> DoctorPart:
    """Return whether all that embeddings need is there, and how many exist."""
    if settings.embeddings.model is None:
        detail = "none: recommendations do without (EMBEDDING_MODEL)"
        return DoctorPart("embeddings", "embedded", None, True, detail)
    if not settings.llm.configured:
        wrong = "EMBEDDING_MODEL: needs OPENAI_API_KEY or OPENAI_BASE_URL"
        return failure("embeddings", "external", None, wrong, "set one of these")
    try:
        url = _url(settings)
        if url is None:
            return DoctorPart("embeddings", "external", None, True, NOT_RUNNING)
        with open_connection(url, "doctor", UNHURRIED) as conn:
            lacking, found = embedding_table.lack(conn), embedding_table.state(conn)
    except AWAY as error:
        # Whose fault that is stands in the line of the analytics.
        told = f"not known: {type(error).__name__}"
        return DoctorPart("embeddings", "external", None, True, told)
    if lacking is not None:
        return failure("embeddings", "external", None, lacking, INSTALL_OR_UNSET)
    return DoctorPart("embeddings", "external", None, True, str(found or NOT_EMBEDDED))


def seals(settings: Settings) -> DoctorPart:
    """Return how far the log is sealed, and whether that is what is known outside the database."""
    kind: Kind = "embedded" if settings.database.embedded else "external"
    folder = settings.server.data_dir.absolute()
    try:
        proofs = configured_proofs(settings.seals, settings.objects, folder)
    except OperatorError as error:
        return failure("seals", kind, None, str(error), "see the settings SEAL_*")
    try:
        url = _log_url(settings)
        if url is None:
            return DoctorPart("seals", kind, None, True, NOT_RUNNING)
        with open_connection(url, "doctor", UNHURRIED) as conn:
            newest, found = last_seal(conn), proofs.outside.compare(conn)
    except AWAY as error:
        # What is wrong with the database itself stands in its own line.
        return DoctorPart("seals", kind, None, True, f"not known: {explained(error)}")
    told = f"seal {newest.number}, up to position {newest.last}" if newest else "no seals yet"
    if found.differences:
        return failure("seals", kind, None, "; ".join(found.differences), SEE_AUDIT)
    if found.unusable:
        return failure("seals", kind, None, "; ".join(found.unusable), "see SEAL_ANCHOR")
    signed = settings.seals.key_file or settings.seals.public_key_file
    lacking = ["" if signed else NOT_SIGNED, "" if settings.seals.anchors else NOT_ANCHORED]
    return DoctorPart("seals", kind, None, True, "; ".join(filter(None, [told, *lacking])))


def keys(settings: Settings) -> DoctorPart:
    """Return whether the keys of persons can be unwrapped."""
    kind: Kind = "external" if settings.keys.chosen else "embedded"
    kek = key_encryption(settings)
    file = key_encryption_key_path(settings.server.data_dir.absolute())
    if kind == "embedded" and file.exists() and file.stat().st_mode & 0o077:
        return failure("keys", kind, None, f"others can read {file}", f"chmod 600 {file}")
    try:
        url = _log_url(settings)
        if url is None:
            there = settings.keys.chosen or file.exists()
            told = f"{kek.name}; {NOT_RUNNING}" if there else MADE_AT_FIRST_START
            return DoctorPart("keys", kind, None, True, told)
        with open_connection(url, "doctor", UNHURRIED) as conn:
            found = wrapping_keys.look(conn)
            if not found:
                return DoctorPart("keys", kind, None, True, MADE_AT_FIRST_START)
            wrapping_keys.load_wrapping_keys(conn, kek)
    except AWAY as error:
        # What is wrong with the database itself stands in its own line.
        return DoctorPart("keys", kind, None, True, f"not known: {explained(error)}")
    except OperatorError as error:
        return failure("keys", kind, None, str(error), "no process starts until then")
    persons = sum(each.persons for each in found)
    told = f"{persons:,} persons; their keys are wrapped by {kek.name}"
    copy = f"; {KEEP_A_COPY}" if kind == "embedded" else ""
    return DoctorPart("keys", kind, None, True, f"{told}{copy}")


def erasures(settings: Settings) -> DoctorPart:
    """Return whether everybody who asked to be forgotten is, or soon will be."""
    kind: Kind = "embedded" if settings.database.embedded else "external"
    try:
        url = _log_url(settings)
        if url is None:
            return DoctorPart("erasure", kind, None, True, NOT_RUNNING)
        with open_connection(url, "doctor", UNHURRIED) as conn:
            found = open_erasures(conn)
    except AWAY as error:
        # What is wrong with the database itself stands in its own line.
        return DoctorPart("erasure", kind, None, True, f"not known: {explained(error)}")
    stuck = [each for each in found if each.failures or each.waits > LONGEST_ERASURE]
    if stuck:
        first = stuck[0]
        told = f"{first.pseudonym} is not forgotten after {first.waits.days} d "
        told += f"{first.waits.seconds // 60} min, step `{first.step}`"
        told += f" failed {first.failures} times ({first.error})" if first.failures else ""
        told += f"; so are {len(stuck) - 1} more" if len(stuck) > 1 else ""
        return failure("erasure", kind, None, told, SEE_ERASURE)
    told = f"being forgotten: {len(found)}" if found else "nobody is being forgotten"
    return DoctorPart("erasure", kind, None, True, told)


def webhooks(settings: Settings) -> DoctorPart:
    """Return whether each webhook is sent to, but for those that somebody has disabled."""
    kind: Kind = "embedded" if settings.database.embedded else "external"
    try:
        url = _log_url(settings)
        if url is None:
            return DoctorPart("webhooks", kind, None, True, NOT_RUNNING)
        with closing(open_recorder(url)) as recorder:
            found = load_webhooks(recorder).by_id.values()
    except (*AWAY, PersistenceError) as error:
        # What is wrong with the database itself stands in its own line.
        return DoctorPart("webhooks", kind, None, True, f"not known: {explained(error)}")
    told = [
        f"{each.id} is disabled ({each.disabled})"
        for each in found
        if each.disabled not in (None, DisabledBecause.ASKED)
    ]
    if told:
        return failure("webhooks", kind, None, "; ".join(told), SEE_WEBHOOK)
    off = "" if settings.webhooks.on else "; WEBHOOKS=off: nothing is sent"
    return DoctorPart("webhooks", kind, None, True, f"{len(found)}{off}" if found else "none")


def look(url: str, limits: Limits = UNHURRIED) -> SchemaState | None:
    """Return the shape of the analytics in that database; raise psycopg.Error."""
    with open_connection(url, "doctor", limits) as conn:
        return state(conn)


def _url(settings: Settings) -> str | None:
    own = settings.analytics.timescale_url
    return _log_url(settings) if own is None else own.get_secret_value()


def _log_url(settings: Settings) -> str | None:
    if settings.database.url is not None:
        return settings.database.url.get_secret_value()
    return running_url(cluster_path(settings.server.data_dir.absolute()))


CHECK_SECONDS = 2.0
# Threads that look at the database end with the check that they are for.
LIMITS = Limits(connect=2, statement=1.0)
NOT_READY = {"Retry-After": "1"}
DIFFERS = "its copy differs from the live one: it waits for `confirm` or `cancel`"


class Readiness(Wire):
    """Whether every part answers, and what each says."""

    ready: bool
    parts: dict[str, Any]


def operations(
    ask: Callable[[], Awaitable[Readiness]], page: Callable[[], Awaitable[bytes]]
) -> APIRouter:
    """Return the routes for operators and load balancers.

    `ask` says whether every part answers, `page` are the metrics.
    """
    router = APIRouter(tags=["operations"])
    # However many ask, a part that does not answer is asked once at a time.
    checks: SingleFlight[Readiness] = SingleFlight()

    @router.get("/healthz", summary="The process lives")
    async def get_health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get(
        "/readyz",
        response_model=Readiness,
        responses={503: {"model": Readiness, "description": "A part does not answer"}},
        summary="Every part answers",
    )
    async def get_readiness() -> Response:
        readiness = (await checks.join("parts", ask)).result
        return wire(readiness) if readiness.ready else wire(readiness, 503, NOT_READY)

    @router.get(
        "/metrics",
        summary="Prometheus metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def get_metrics() -> Response:
        return Response(await page(), media_type=CONTENT_TYPE)

    return router


async def check(parts: Parts) -> Readiness:
    """Ask every part, all at once, whether it is in order; each has 2 s to answer.

    A process that can't do its work is not ready; a stopped projection is only reported.
    """
    database, objects, redis, locks, analytics = await asyncio.gather(
        _state(lambda: asyncio.to_thread(_replays, parts.database_url), "replays"),
        _state(parts.objects.check),
        _state(parts.redis.ping),
        _state(parts.locks.check),
        _state(lambda: asyncio.to_thread(_analytics_state, parts.analytics_url), "detail"),
    )
    # Of the replays under way those are told that ask, or can't go on.
    replays = database.pop("replays", [])
    states = {
        "database": database,
        "objects": objects,
        # Redis may vanish: what can't do without it says so, and the rest goes on.
        "redis": redis | {"serves": True},
        "locks": locks | {"serves": True},
        "analytics": analytics | {"serves": True},
    }
    for runner in parts.host.status() if parts.host else ():
        states[f"projection {runner.name}"] = {
            "ok": runner.in_order,
            "serves": runner.serves,
            "state": str(runner.state),
            "position": runner.position,
            "lagEvents": runner.lag_events,
            "detail": runner.detail,
        }
    states |= {f"replay {replay.name}": _told(replay) for replay in replays if parts.host}
    ready = all(state.pop("serves", state["ok"]) for state in states.values())
    return Readiness(ready=ready, parts=states)


def _replays(database_url: str) -> list[Replay]:
    with open_connection(database_url, "readiness", LIMITS) as conn:
        return under_way(conn)


def _analytics_state(url: str) -> str:
    """Return what the analytics stand on; while their database is away, counting waits."""
    return str(look(url, LIMITS) or NOT_MADE)


def _told(replay: Replay) -> dict[str, Any]:
    asks = replay.rests and not replay.paused
    return {
        "ok": replay.error is None and not asks,
        "serves": True,
        "state": str(replay.state),
        "position": replay.position,
        "paused": replay.paused,
        "detail": DIFFERS if asks else replay.error,
    }


async def _state(ask: Callable[[], Awaitable[object]], name: str | None = None) -> dict[str, Any]:
    """Return whether a part answers, and under `name`, if there is one, what it answers."""
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            answer = await ask()
    except TimeoutError:
        return {"ok": False, "detail": f"it hangs: no answer within {CHECK_SECONDS:g} s"}
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        return {"ok": False, "detail": f"{type(error).__name__}: {explained(error)}"}
    return {"ok": True} if name is None else {"ok": True, name: answer}
