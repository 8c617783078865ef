"""The pages of the console, the studio and the site: how long they take, and whether they grow.

Asked one by one over HTTP by visitors with a session, of two servers in turns: one has ten times
the events of the other, and as many times the videos, comments and viewers.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from random import Random
from statistics import median
from tempfile import TemporaryDirectory

import httpx
import psycopg

from benchmarks.audit import p99
from benchmarks.bench import Bench, say
from benchmarks.like import Server, backlot
from benchmarks.log import CAUSE, video_id
from benchmarks.reading import ALL_PROJECTED, Size, fill_read_models
from benchmarks.results import Comparison, Side
from benchmarks.sealer import make_sealer
from infra.http.auth import mint_token
from projections.analytics.queries import COUNTS_CONSUMER, VIDEOS_CONSUMER

LIMIT = Side("the limit", [150.0])
MOST_GROWTH = 1.3
STRETCHES = 10
TIMES_AS_MANY = 10
OPERATOR, CREATOR, VIEWER = "operator", "owner", "viewer-1"
ROLES: Mapping[str, Sequence[str]] = {OPERATOR: ("admin",), CREATOR: (), VIEWER: ()}

OWN_VIDEOS = 200
# However many videos there are, a channel has so many.
OF_OTHERS = "UPDATE analytics.videos SET owner = 'somebody' WHERE video_id <> ALL (%s::uuid[])"
# Those who count are away, and who has done something would wait for them.
COUNTED = """
INSERT INTO backlot_checkpoints (kind, subscription, source, position)
SELECT 'consumer', unnest(%s::text[]), 'events', max(notification_id) FROM backlot_events
ON CONFLICT (kind, subscription, source, partition) DO UPDATE SET position = EXCLUDED.position
"""

Draw = Callable[[Random], str]


@dataclass(frozen=True, slots=True)
class Page:
    """A page: who asks for it, and its address, or what draws one of many."""

    name: str
    visitor: str
    draw: Draw


@dataclass(frozen=True, slots=True)
class Taken:
    """How long a page took, by stretches, and what its server spent; ms."""

    stretches: list[list[float]] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def times(self) -> list[float]:
        return [each for stretch in self.stretches for each in stretch]

    @property
    def medians(self) -> list[float]:
        return [median(stretch) for stretch in self.stretches]


class Visitors:
    """Everybody who asks one server for pages, each with a session of their own."""

    def __init__(self, server: Server, pages: Sequence[Page], secret: str) -> None:
        self.pages = pages
        self._server = server
        self._clients = {
            name: self._logged_in(mint_token(secret, name, roles)) for name, roles in ROLES.items()
        }

    def _logged_in(self, token: str) -> httpx.Client:
        url = f"http://127.0.0.1:{self._server.served.port}"
        client = httpx.Client(base_url=url, timeout=60, trust_env=False)
        told = client.post("/login", data={"token": token})
        if told.status_code != 303:
            told.raise_for_status()
            raise RuntimeError("The pages let nobody in.")
        return client

    def ask(self, page: Page, count: int, chance: Random, taken: Taken) -> None:
        """Ask for a page so many times, one after the other."""
        client, times, spent = self._clients[page.visitor], [], self._server.served.cpu_seconds()
        for _ in range(count):
            path = page.draw(chance)
            started = time.perf_counter()
            answer = client.get(path)
            times.append((time.perf_counter() - started) * 1000)
            if answer.status_code != 200:
                said = self._server.served.said()
                raise RuntimeError(f"{path} is answered with {answer.status_code}:\n{said}")
        taken.stretches.append(times)
        taken.cpu.append((self._server.served.cpu_seconds() - spent) / count * 1000)

    def close(self) -> None:
        for client in self._clients.values():
            client.close()


def run(bench: Bench) -> list[Comparison]:
    """p99 in ms of each page, and its p50 beside that with a tenth of everything."""
    many = size_of(bench.size(200_000, 4_000, 1_000_000))
    few = size_of(many.events // TIMES_AS_MANY)
    each = {many: bench.size(20, 1), few: bench.size(5, 1)}
    secret = secrets.token_urlsafe(32)
    with ExitStack() as stack:
        visitors = {
            size: stack.enter_context(_visitors(bench, size, secret)) for size in (few, many)
        }
        taken = _measure(visitors, each)
    found = [
        Comparison("pages", "ms p99", _tail(name, of[many]), LIMIT, at_most=1)
        for name, of in taken.items()
    ]
    growth = [_growth(name, of, many, few) for name, of in taken.items()]
    return [*found, *growth]


def size_of(events: int) -> Size:
    """As much of everything as a log of so many events has: half of them are comments."""
    return Size(events, max(350, events // 20), events // 2, max(20, events * 3 // 200))


def _measure(
    visitors: Mapping[Size, Visitors], each: Mapping[Size, int]
) -> dict[str, dict[Size, Taken]]:
    taken: dict[str, dict[Size, Taken]] = {}
    # The first stretch warms up.
    for number in range(STRETCHES + 1):
        say(f"stretch {number} of {STRETCHES}")
        for size, asking in visitors.items():
            chance = Random(number)
            for page in asking.pages:
                of = taken.setdefault(page.name, {each: Taken() for each in visitors})
                asking.ask(page, each[size], chance, of[size] if number else Taken())
    return taken


def _growth(name: str, of: Mapping[Size, Taken], many: Size, few: Size) -> Comparison:
    ours, baseline = (
        Side(f"{name}, {size.events:,} events", of[size].medians) for size in (many, few)
    )
    return Comparison("pages", "ms p50", ours, baseline, at_most=MOST_GROWTH, paired=True)


def _tail(name: str, taken: Taken) -> Side:
    notes = {"p50 ms": median(taken.times), "server CPU ms": median(taken.cpu)}
    return Side(name, [p99(taken.times)], notes)


@contextmanager
def _visitors(bench: Bench, size: Size, secret: str) -> Iterator[Visitors]:
    """A server with a log of that size, all of it projected and sealed, and who asks it."""
    url = bench.log(size.events, size.event)
    fill_read_models(url, size)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(OF_OTHERS, ([video_id(number) for number in range(OWN_VIDEOS)],))
        conn.execute("VACUUM (ANALYZE)")
    say("sealing the log")
    with TemporaryDirectory() as folder:
        sealer = make_sealer(url, folder)
        while sealer.turn():
            pass
    say("projecting the log")
    with backlot(
        bench,
        secret,
        f"pages-{size.events}",
        url=url,
        # Without the workers, which would count and translate the whole history first.
        roles="commands,queries,projections,web",
        projected=ALL_PROJECTED,
    ) as server:
        pages = _pages(server, size, secret)
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(COUNTED, ([COUNTS_CONSUMER, VIDEOS_CONSUMER],))
            conn.execute("VACUUM (ANALYZE)")
        visitors = Visitors(server, pages, secret)
        try:
            yield visitors
        finally:
            visitors.close()


def _pages(server: Server, size: Size, secret: str) -> list[Page]:
    return [*_console(size, _request(server, secret)), *_studio(size), *_site(size)]


def _request(server: Server, secret: str) -> str:
    """Like a video, and return the id of that request, for its trace."""
    answer = httpx.post(
        f"http://127.0.0.1:{server.served.port}/videos/{video_id(0)}/like",
        headers={"Authorization": f"Bearer {mint_token(secret, OPERATOR)}"},
        trust_env=False,
    )
    return str(answer.raise_for_status().headers["X-Request-Id"])


def _console(size: Size, request: str) -> list[Page]:
    def viewer(chance: Random) -> str:
        return f"viewer-{chance.randrange(size.viewers)}"

    drawn: dict[str, Draw] = {
        "/events/{position}": lambda chance: f"/events/{1 + chance.randrange(size.events)}",
        "/log?actor=": lambda chance: f"/log?actor={viewer(chance)}",
        "/privacy?user=": lambda chance: f"/privacy?user={viewer(chance)}",
        "/streams/{stream}": lambda chance: f"/streams/{_video(size, chance)}",
        "/trace/{request}": lambda _: f"/trace/{request}",
        "/trace/{request}, all events": lambda _: f"/trace/{CAUSE['correlation_id']}",
        "/why/user?user=": lambda chance: f"/why/user?user={viewer(chance)}",
    }
    fixed = (
        *("", "/now/live", "/projections", "/projections/likes", "/projections/comments"),
        *("/log", "/log?type=comment.posted", "/integrity", "/integrity/verify"),
        *("/queues", "/queues/parked", "/queues/letters", "/queues/tasks", "/queues/webhooks"),
        *("/moderation", "/moderation/held", "/moderation/blocked", "/moderation/translations"),
        *("/privacy", "/why", "/spending", "/operations"),
    )
    return _of(OPERATOR, "/console", fixed, drawn)


def _studio(size: Size) -> list[Page]:
    fixed = ("", "/videos", "/comments", "/blocked", "/upload")
    parts = ("", "/details", "/comments")
    drawn = {f"/videos/{{video}}{part}": _of_video(size, "/videos", part) for part in parts}
    return _of(CREATOR, "/studio", fixed, drawn)


def _site(size: Size) -> list[Page]:
    parts = ("", "/comments", "/next")
    drawn = {f"/watch/{{video}}{part}": _of_video(size, "/watch", part) for part in parts}
    return _of(VIEWER, "", ("/", "/watch/trending", "/watch/liked"), drawn)


def _of_video(size: Size, root: str, part: str) -> Draw:
    return lambda chance: f"{root}/{_video(size, chance)}{part}"


def _video(size: Size, chance: Random) -> str:
    """One with a page of comments and more."""
    return str(video_id(chance.randrange(size.commented)))


def _of(visitor: str, root: str, fixed: Sequence[str], drawn: Mapping[str, Draw]) -> list[Page]:
    draws = {**{path: _always(path) for path in fixed}, **drawn}
    return [Page(root + name, visitor, _below(root, draw)) for name, draw in draws.items()]


def _always(path: str) -> Draw:
    return lambda _: path


def _below(root: str, draw: Draw) -> Draw:
    return lambda chance: root + draw(chance)
