"""The state of everything in one answer, as an open console asks for it every two seconds.

However many ask, all of a second get one answer. What takes longer is looked at less often, while
somebody asks: the metrics every four seconds, and each part, as `backlot doctor` does, every ten
seconds beside the answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Literal, NamedTuple

import structlog
from fastapi import APIRouter, Request, Response
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from backlot.doctor import look_at_parts
from backlot.health import DoctorPart
from backlot.projections.text import in_trouble
from engine.connections import in_thread
from engine.overview import SubscriptionProgress, follower_lag, followers, heads, lag_seconds
from engine.parked_events import remedy
from infra.cache import SingleFlight
from infra.cancellation import cancel
from infra.circuit_breaker import CircuitState, breaker_states
from infra.errors import describe
from infra.http.auth import Auditor
from infra.http.problems import problems
from infra.http.responses import NOT_MODIFIED, conditional_wire
from infra.http.shapes import Time, Wire
from infra.metric_pages import PageUnavailable
from infra.request_rates import RequestFigures, RequestRates
from infra.settings import Settings
from infra.tasks.broker import task_queues
from infra.tasks.queues import BrokerAway, TaskQueues
from readapi.pages import IfNoneMatch
from readapi.projection_status import ProjectionStatus, statuses
from readapi.queries import Fresh, Queries, Read, outage_as_unavailable
from workers.parts import Parts

log = structlog.get_logger(__name__)

SHARED_SECONDS = 1.0
PARTS_SECONDS = 10.0
# To add up the metrics of several processes takes a tenth of a second.
METRICS_SECONDS = 4.0
# How long the first answer waits for the first look at the parts; later ones tell the last look.
FIRST_LOOK_SECONDS = 2.0
LATE_SECONDS = 60.0
MOST_COUNTED = 1_000

NEWEST_SEAL = b"SELECT last, sealed_at FROM public.backlot_seals ORDER BY number DESC LIMIT 1"
DEAD = f"""
SELECT count(*) FROM (SELECT FROM backlot_dead_letters
                      WHERE kind IN ('consumer', 'relay') AND status = 'dead'
                      LIMIT {MOST_COUNTED}) AS dead
""".encode()
BREAKER = 'backlot_llm_breaker_state{{state="{}"}} 1'


class PartState(Wire):
    """A part that the program stands on, as `backlot doctor` tells it, and what to do about it."""

    name: str
    kind: Literal["embedded", "external"]
    ok: bool
    detail: str
    remedy: str | None = None


class LogState(Wire):
    """How long the log is, and how far and since when it is sealed."""

    head: int
    events: int
    sealed_up_to: int
    seal_age_seconds: float | None = None


class ProjectionLag(Wire):
    """How far a projection is behind the log."""

    name: str
    state: Literal["running", "paused", "stopped", "outdated"]
    lag_events: int
    lag_seconds: float


class SubscriptionLag(Wire):
    """How far a consumer, the relay or a webhook is behind the log and the telemetry."""

    name: str
    lag_events: int
    lag_seconds: float


class BreakerStatus(Wire):
    """Whether a service is called (`closed`), left alone (`open`), or tried (`half-open`)."""

    name: str
    state: CircuitState


class RequestTraffic(Wire):
    """Requests of the last ten seconds; the times are of the last minute, without streams."""

    per_second: float
    p50_ms: float | None = None
    p99_ms: float | None = None
    errors_per_second: float


class Finding(Wire):
    """What an operator has to look at, and what helps."""

    severity: Literal["error", "warning"]
    title: str
    detail: str
    remedy: str


class Overview(Wire):
    """The state of the installation, as far as the answering process knows it.

    `roles` are those of that process, `processes` how many answer on its machine. `requests` are
    of all of them; there are none in the first seconds in which somebody asks. `breakers` are those
    of the answering process, and before language models the worst of all of them.
    """

    version: str
    roles: list[str]
    processes: int
    parts: list[PartState]
    log: LogState
    projections: list[ProjectionLag]
    subscriptions: list[SubscriptionLag]
    breakers: list[BreakerStatus]
    requests: RequestTraffic | None = None
    findings: list[Finding]
    generated_at: Time


class PartsLook(NamedTuple):
    """What a look at the parts has found; no number of dead tasks where nobody could tell."""

    parts: Sequence[DoctorPart] = ()
    dead_tasks: int | None = None


def _look(settings: Settings, queues: TaskQueues) -> PartsLook:
    """Look at the parts, and count the tasks that failed for good."""
    try:
        dead = sum(depth.dead for depth in queues.depths())
    except BrokerAway:
        dead = None
    return PartsLook(look_at_parts(settings, queues), dead)


class OverviewSource:
    """Makes the overview for whoever asks; to be used from one event loop."""

    def __init__(self, parts: Parts, queries: Queries) -> None:
        self._parts, self._queries = parts, queries
        self._task_queues = task_queues(parts.settings.tasks)
        self._flights: SingleFlight[Overview] = SingleFlight()
        self._made: tuple[float, Overview] | None = None
        self._rates = RequestRates()
        self._figures: RequestFigures | None = None
        self._page, self._page_at = "", float("-inf")
        self._looked = PartsLook()
        self._looked_at = float("-inf")
        self._looking: asyncio.Task[None] | None = None

    async def get(self) -> Overview:
        """Return the state of this second; raise ReadModelUnavailable."""
        if self._made is not None and time.monotonic() - self._made[0] < SHARED_SECONDS:
            return self._made[1]
        return (await self._flights.join("overview", self._make)).result

    async def close(self) -> None:
        """End the look that is being taken."""
        if self._looking is not None:
            await cancel(self._looking)

    async def _make(self) -> Overview:
        await self._look_at_parts()
        await self._look_at_metrics()
        with outage_as_unavailable():
            async with self._queries.pool.connection() as conn:
                found = await statuses(conn, self._queries.models.by_name(), self._queries.rates)
                followed = await self._followed(conn)
                log_state, unsealed = await _log_state(conn)
                ((dead,),) = await (await conn.execute(DEAD)).fetchall()
        breakers, figures = _breakers(self._page), self._figures
        server = self._parts.settings.server
        made = Overview(
            version=version("backlot"),
            roles=sorted(map(str, server.roles)),
            processes=server.processes,
            parts=[_part(each) for each in self._looked.parts],
            log=log_state,
            projections=[_lag_of(each) for each in found.values()],
            subscriptions=followed,
            breakers=[BreakerStatus(name=name, state=state) for name, state in breakers.items()],
            requests=RequestTraffic.model_validate(figures, from_attributes=True)
            if figures
            else None,
            findings=[
                *_of_parts(self._looked.parts),
                *_of_projections(found.values()),
                *_of_breakers(breakers),
                *_of_rejected(found.values(), dead, self._looked.dead_tasks),
                *_of_seals(log_state, unsealed, self._parts.settings),
            ],
            generated_at=datetime.now(UTC),
        )
        self._made = time.monotonic(), made
        return made

    async def _look_at_parts(self) -> None:
        """Have the parts looked at when that is due; wait a while for the first look alone."""
        due = time.monotonic() - self._looked_at >= PARTS_SECONDS
        if due and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._take_look())
        if self._looking is not None and not self._looked.parts:
            await asyncio.wait({self._looking}, timeout=FIRST_LOOK_SECONDS)

    async def _take_look(self) -> None:
        try:
            self._looked = await in_thread(_look, self._parts.settings, self._task_queues)
        except Exception as error:
            # What was found last is told on.
            log.exception("parts_not_looked_at", error=describe(error))
        finally:
            self._looked_at = time.monotonic()

    async def _look_at_metrics(self) -> None:
        """Look at the metrics of all processes when that is due; what was seen last stays."""
        if time.monotonic() - self._page_at < METRICS_SECONDS:
            return
        self._page_at = time.monotonic()
        try:
            self._page = (await self._parts.page()).decode()
        except PageUnavailable as error:
            log.warning("overview_without_metrics", error=str(error))
            return
        self._figures = self._rates.take(self._page)

    async def _followed(self, conn: AsyncConnection[TupleRow]) -> list[SubscriptionLag]:
        """Return the subscriptions of both databases, where the analytics have one of their own."""
        ends = await heads(conn)
        found = await followers(conn, ends)
        if self._parts.analytics_url != self._parts.database_url:
            async with self._queries.analytics.pool.connection() as analytics:
                found += await followers(analytics, ends)
        by_name: dict[str, list[tuple[SubscriptionProgress, float]]] = {}
        for each in found:
            by_name.setdefault(each.name, []).append((each, await follower_lag(conn, each)))
        return [
            SubscriptionLag(
                name=name,
                lag_events=sum(each.lag_events for each, _ in lags),
                lag_seconds=max(seconds for _, seconds in lags),
            )
            for name, lags in sorted(by_name.items())
        ]


def open_overview(parts: Parts, queries: Queries, stack: AsyncExitStack) -> OverviewSource:
    """Return what makes the overview, until `stack` is closed."""
    source = OverviewSource(parts, queries)
    stack.push_async_callback(source.close)
    return source


async def _log_state(conn: AsyncConnection[TupleRow]) -> tuple[LogState, float]:
    """Return the state of the log, and since how many seconds the oldest event waits for a seal."""
    now = datetime.now(UTC)
    head = (await heads(conn))["events"]
    sealed, at = await (await conn.execute(NEWEST_SEAL)).fetchone() or (0, None)
    age = None if at is None else max(0.0, (now - at).total_seconds())
    waits = await lag_seconds(
        conn, SubscriptionProgress("seals", "events", sealed, at or now, head)
    )
    # Positions have no gaps: the last one says how many events there are.
    state = LogState(head=head, events=head, sealed_up_to=sealed, seal_age_seconds=age)
    return state, waits


def _part(found: DoctorPart) -> PartState:
    detail = found.detail.removesuffix(f"; {found.remedy}")
    return PartState(
        name=found.name, kind=found.kind, ok=found.ok, detail=detail, remedy=found.remedy
    )


def _lag_of(status: ProjectionStatus) -> ProjectionLag:
    return ProjectionLag(
        name=status.name,
        state=status.status,
        lag_events=status.lag_events,
        lag_seconds=status.lag_seconds,
    )


def _breakers(page: str) -> dict[str, CircuitState]:
    """Return the breakers of this process; that of language models as the whole page has it."""
    found = breaker_states()
    # The worst of all processes: closed, half-open, open.
    for state in (CircuitState.CLOSED, CircuitState.HALF_OPEN, CircuitState.OPEN):
        if BREAKER.format(state) in page:
            found["llm"] = state
    return dict(sorted(found.items()))


def _of_parts(parts: Iterable[DoctorPart]) -> Iterator[Finding]:
    for each in map(_part, parts):
        if not each.ok:
            yield Finding(
                severity="error",
                title=f"{each.name}: not in order",
                detail=each.detail,
                remedy=each.remedy or "`backlot doctor` says more",
            )


def _of_projections(found: Iterable[ProjectionStatus]) -> Iterator[Finding]:
    for each in found:
        more = f"`backlot projections show {each.name}` says more"
        if (trouble := in_trouble(each)) is not None:
            stopped, helps = each.status == "stopped", remedy(each.name)
            yield Finding(
                severity="error" if stopped or each.status == "outdated" else "warning",
                title=f"{each.name} needs a decision",
                detail=trouble.removesuffix(f"; {helps}"),
                remedy=helps if stopped else more,
            )
        elif each.status == "paused":
            goes_on = f"`backlot projections resume {each.name}`"
            yield _warning(f"{each.name} is paused", f"at position {each.position}", goes_on)
        elif each.lag_seconds > LATE_SECONDS:
            told = f"{each.lag_events:,} events, {each.lag_seconds:,.0f} s"
            yield _warning(f"{each.name} is behind", told, more)


def _of_breakers(breakers: Mapping[str, CircuitState]) -> Iterator[Finding]:
    for name, state in breakers.items():
        if state is not CircuitState.CLOSED:
            told = "it failed, and is left alone for a while; work that needs it waits"
            yield _warning(f"{name} is not called", f"the breaker is {state}: {told}", SEE_DOCTOR)


SEE_DOCTOR = "`backlot doctor` says whether it answers"


def _of_rejected(
    found: Iterable[ProjectionStatus], dead: int, dead_tasks: int | None
) -> Iterator[Finding]:
    """Yield what waits for a decision: events, messages and tasks that could not be dealt with."""
    parked = {each.name: each.parked for each in found if each.parked}
    if parked:
        told = ", ".join(f"{name}: {count:,}" for name, count in parked.items())
        helps = "`backlot projections parked` lists them; retry or discard them"
        yield _warning("events are parked", told, helps)
    if dead:
        some = "or more " if dead == MOST_COUNTED else ""
        told = f"{dead:,} {some}could not be handled or published"
        helps = "`backlot topics dead` lists them; retry or discard them"
        yield _warning("messages are dead", told, helps)
    if dead_tasks:
        helps = "`backlot tasks dead` lists them; retry or discard them"
        yield _warning("tasks have failed", f"{dead_tasks:,} were given up", helps)


def _of_seals(state: LogState, waits: float, settings: Settings) -> Iterator[Finding]:
    if waits > max(LATE_SECONDS, 10 * settings.seals.block_seconds):
        told = f"{state.head - state.sealed_up_to:,} events, the first since {waits:,.0f} s"
        helps = "a process with the role `workers` seals, and its log says why it does not"
        yield _warning("the log is not sealed", told, helps)


def _warning(title: str, detail: str, helps: str) -> Finding:
    return Finding(severity="warning", title=title, detail=detail, remedy=helps)


router = APIRouter(tags=["operations"])


@router.get(
    "/admin/overview",
    response_model=Overview,
    responses=problems(401, 403, 422, 503) | NOT_MODIFIED,
    summary="The state of everything, and what needs a decision",
)
async def get_overview(
    request: Request,
    queries: Read,
    caller: Auditor,
    fresh: Fresh,
    if_none_match: IfNoneMatch = None,
) -> Response:
    await queries.confirm(fresh)
    source: OverviewSource = request.app.state.overview
    return await conditional_wire(request, await source.get())
