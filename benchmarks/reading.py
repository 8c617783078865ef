"""Reading over HTTP: against a GET that does nothing, against plain tables, and beside likes.

Both designs are asked for everything once before they are measured: then Backlot tells it from the
memory of its process, and the plain tables lie in that of PostgreSQL. What the first read of each
thing costs is measured of processes that have just begun.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import count
from random import Random
from uuid import UUID

import httpx
import psycopg
import redis
from eventsourcing.persistence import StoredEvent

from benchmarks import crud_reads
from benchmarks.bench import Bench, say
from benchmarks.like import CPU_NOTE, Clients, Rounds, Server, backlot, side
from benchmarks.like import PATHS as LIKES
from benchmarks.log import VIDEOS, first_comment, first_like, name_viewers, upload, video_id
from benchmarks.processes import Served, serving
from benchmarks.recommended import ask_once
from benchmarks.recommended import fill as fill_recommendations
from benchmarks.redis_server import redis_server
from benchmarks.results import Comparison, Side
from infra.errors import OperatorError
from infra.http.auth import mint_token
from projections.analytics.schema import migrate
from projections.recommendations.recommender import PREFIX
from projections.trending import Formula, Window, settle
from readapi.pages import encode_cursor

Measured = tuple[float, dict[str, float]]
Fresh = Callable[[], AbstractContextManager[Served]]

NOOP, LIKE = "no-op GET, same process", "like"
COMMENTS_EACH = 25
# Spread over all videos; no two of one viewer are of the same video.
STEP_OF_VIEWERS, STEP_OF_LIKES = 37, 251
MOST_KEPT = 300
LIKES_PER_SECOND = 1_000
MOST_TAIL, LEAST_BESIDE, LEAST_FIRST = 4, 0.7, 1
WARM_SECONDS = 120.0
COMPARED = 20
ALL_PROJECTED = "SELECT min(position) FROM backlot_checkpoints WHERE kind = 'projection'"
POSITIONS = "SELECT completed_position FROM catalog.uploads ORDER BY completed_position DESC"
# Of the last week, as storing them would have left them.
ANALYTICS = b"""
WITH videos AS (SELECT unnest(%(videos)s::uuid[]) AS id),
known AS (
    INSERT INTO analytics.videos (video_id, owner, category, completed_at)
    SELECT id, 'owner', 'category', %(now)s - random() * interval '30 days' FROM videos
    ON CONFLICT DO NOTHING),
hours AS MATERIALIZED (
    SELECT date_trunc('hour', %(now)s - random() * interval '7 days', 'UTC') AS bucket, id,
           sum(ceil(20 * random() ^ 4))::bigint AS views
    FROM videos, generate_series(1, 20) GROUP BY 1, 2),
hourly AS (
    INSERT INTO analytics.video_hourly
    SELECT bucket, id, views, views, 1, 1, 0, 60 * views, 60 * views, 1, 1 FROM hours),
viewers AS (
    INSERT INTO analytics.viewers_hourly (video_id, bucket, viewers, latest)
    SELECT id, bucket, views, views FROM hours)
INSERT INTO analytics.video_daily
SELECT date_trunc('day', bucket, 'UTC'), id, sum(views), sum(views), count(*), count(*), 0,
       60 * sum(views), 60 * sum(views), count(*), count(*)
FROM hours GROUP BY 1, 2
"""


class AnswersDiffer(OperatorError):
    """The two designs say different things: then no figure counts."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is to read: events in all, videos, comments on a part of these, viewers."""

    events: int
    videos: int
    comments: int
    viewers: int

    @property
    def commented(self) -> int:
        """How many videos, the first, have a page of comments and more."""
        return self.comments // COMMENTS_EACH

    @property
    def kept(self) -> int:
        """How many viewers have recommendations that are kept; all others' are made each time."""
        return min(MOST_KEPT, self.viewers // 2)

    def event(self, index: int) -> StoredEvent:
        """The index-th event after the first videos: other videos, then comments, then likes."""
        rest = self.videos - len(VIDEOS)
        if index < 2 * rest:
            return upload(video_id(len(VIDEOS) + index // 2))[index % 2]
        number = index - 2 * rest
        if number < self.comments:
            video, author = video_id(number % self.commented), f"viewer-{number % self.viewers}"
            return first_comment(UUID(int=0xC0F << 96 | number), video, author)
        turn, viewer = divmod(number - self.comments, self.viewers)
        video = video_id((viewer * STEP_OF_VIEWERS + turn * STEP_OF_LIKES) % self.videos)
        return first_like(video, f"viewer-{viewer}")


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked, by callers with these tokens or by nobody; and the least share of the rates of
    a GET that does nothing, and of the plain tables; and whether first reads are measured, too."""

    name: str
    paths: Sequence[str]
    tokens: Sequence[str]
    of_noop: float
    of_crud: float | None = None
    first: bool = False
    prepare: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class Readers:
    """The load that every server gets alike."""

    clients: Clients

    def get(self, served: Served, call: Call, number: int, *, once: bool = False) -> Measured:
        if call.prepare is not None:
            call.prepare()
        return self._load(self.clients, served, call, number, once=once)

    def warm(self, served: Served, call: Call) -> None:
        """Have everything told once that will be asked for."""
        clients = replace(self.clients, warmup_seconds=0.0, seconds=WARM_SECONDS)
        self._load(clients, served, call, 0, once=True)

    def _load(
        self, clients: Clients, served: Served, call: Call, number: int, *, once: bool
    ) -> Measured:
        clients, known = replace(clients, tokens=list(call.tokens)), bool(call.tokens)
        paths = list(call.paths)
        return clients.load(served, paths, number, method="GET", known=known, once=once)[0]

    def get_beside_likes(self, served: Served, call: Call, number: int) -> Measured:
        """The same while others like; these begin before and end after it."""
        length = self.clients.warmup_seconds + self.clients.seconds
        likers = replace(self.clients, warmup_seconds=0.0, seconds=length + 1.0)
        with ThreadPoolExecutor(1) as pool:
            liking = pool.submit(likers.load, served, LIKES, number, pace=LIKES_PER_SECOND)
            rate, notes = self.get(served, call, number)
            (liked, _), _ = liking.result()
        # The likes' own is in it.
        del notes[CPU_NOTE]
        return rate, {**notes, "likes/s": liked}


def run(bench: Bench) -> list[Comparison]:
    """Requests/s at 64 connections, of videos and callers at random."""
    size = Size(
        bench.size(200_000, 3_000),
        bench.size(10_000, 400),
        bench.size(100_000, 500),
        bench.size(3_000, 50),
    )
    secret = secrets.token_urlsafe(32)
    tokens = [mint_token(secret, f"viewer-{number}") for number in range(size.viewers)]
    readers = Readers(Clients(tokens, bench.size(1, 0) / 4, bench.size(5, 2) / 4))
    noop = Call(NOOP, ["/noop"], [], 1)
    with ExitStack() as stack:
        one, crud, fresh = stack.enter_context(_both(bench, secret, size))
        calls = _calls(one, size, tokens)
        ask_once(one, tokens[: size.kept])
        _compare_answers(one.served, crud, calls)
        contenders: dict[str, Callable[[int], Measured]] = {
            NOOP: lambda number: readers.get(one.served, noop, number),
            LIKE: lambda number: readers.clients.like(one, number),
        }
        firsts: dict[str, Callable[[int], Measured]] = {}
        for call in calls:
            contenders[call.name] = _asked(readers.get, one.served, call)
            if call.of_crud is not None:
                contenders[_by_crud(call.name)] = _asked(readers.get, crud, call)
            contenders[_beside(call)] = _asked(readers.get_beside_likes, one.served, call)
            if call.first:
                firsts[_first(call)] = _asked_first(readers, fresh, call)
            if call.first and call.of_crud is not None:
                firsts[_by_crud(_first(call))] = _asked(partial(readers.get, once=True), crud, call)
        # What is forgotten before each stretch of it is told for the first time then.
        for call in [each for each in calls if each.prepare is None]:
            say(f"warming up: {call.name}")
            readers.warm(one.served, call)
            if call.of_crud is not None:
                readers.warm(crud, call)
        rounds = bench.size(3, 1)
        measured = bench.interleave(rounds, contenders) | bench.interleave(rounds, firsts)
    return _judged(calls, measured)


def _asked(
    ask: Callable[[Served, Call, int], Measured], served: Served, call: Call
) -> Callable[[int], Measured]:
    return lambda number: ask(served, call, number)


def _asked_first(readers: Readers, fresh: Fresh, call: Call) -> Callable[[int], Measured]:
    """Ask for everything once at most, and a server that has told nothing yet."""

    def ask(number: int) -> Measured:
        with fresh() as served:
            return readers.get(served, call, number, once=True)

    return ask


def _by_crud(name: str) -> str:
    return f"{name}, CRUD"


def _first(call: Call) -> str:
    return f"{call.name}, first read"


def _beside(call: Call) -> str:
    return f"{call.name}, beside {LIKES_PER_SECOND:,} likes/s"


def _judged(calls: Sequence[Call], measured: dict[str, Rounds]) -> list[Comparison]:
    sides = {name: side(name, rounds) for name, rounds in measured.items()}

    def against(ours: str, baseline: str, at_least: float | None) -> Comparison:
        unit = "requests/s"
        return Comparison("reading", unit, sides[ours], sides[baseline], at_least=at_least)

    return [
        *(against(call.name, NOOP, call.of_noop) for call in calls),
        *(
            against(call.name, _by_crud(call.name), call.of_crud)
            for call in calls
            if call.of_crud is not None
        ),
        *(
            against(_first(call), _by_crud(_first(call)), LEAST_FIRST)
            for call in calls
            if call.first and call.of_crud is not None
        ),
        *(
            against(_first(call), NOOP, None)
            for call in calls
            if call.first and call.of_crud is None
        ),
        *(_tail(name, measured[name]) for name in (LIKE, *(call.name for call in calls))),
        *(against(_beside(call), call.name, LEAST_BESIDE) for call in calls),
    ]


def _tail(name: str, rounds: Rounds) -> Comparison:
    slow, usual = (
        Side(f"{name}: {what}", [notes[f"{what} ms"] for _, notes in rounds])
        for what in ("p99", "p50")
    )
    return Comparison("reading", "ms", slow, usual, at_most=MOST_TAIL, paired=True)


def _calls(server: Server, size: Size, tokens: list[str]) -> list[Call]:
    videos = [f"/videos/{video_id(number)}" for number in range(size.videos)]
    with psycopg.connect(server.url) as conn:
        positions = [position for (position,) in conn.execute(POSITIONS).fetchall()]
    # Each begins a page that is full.
    pages = [f"/videos?cursor={encode_cursor('videos', each)}" for each in positions[:-20]]
    made = [f"{PREFIX}viewer-{number}" for number in range(size.kept, size.viewers)]

    def forget() -> None:
        with redis.Redis.from_url(str(server.redis_url)) as client:
            client.delete(*made)

    recommended = ["/videos/recommendations?limit=10"]
    commented = [f"{path}/comments" for path in videos[: size.commented]]
    stats = [f"{path}/stats?timeRange=7d&bucket=hour" for path in videos]
    return [
        Call("a video", videos, [], 0.6, 2.5, first=True),
        Call("a video, caller known", videos, tokens, 0.6, 2.5),
        Call("20 videos", pages, [], 0.35, 2, first=True),
        Call("20 comments", commented, [], 0.35, 2, first=True),
        Call("20 liked videos", ["/videos/liked"], tokens, 0.35, 2),
        Call("trending, kept", ["/analytics/trending"], [], 0.5),
        Call("recommended videos, kept", recommended, tokens[: size.kept], 0.4),
        Call("recommended videos, made", recommended, tokens[size.kept :], 0.1, prepare=forget),
        Call("stats of 7 days by hours", stats, [], 0.25, first=True),
    ]


def _compare_answers(ours: Served, crud: Served, calls: Sequence[Call]) -> None:
    """Raise AnswersDiffer where the two say different things."""
    chance = Random(1)
    with httpx.Client(timeout=60, trust_env=False) as client:

        def ask(served: Served, path: str, token: str | None) -> object:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            answer = client.get(f"http://127.0.0.1:{served.port}{path}", headers=headers)
            return answer.raise_for_status().json()

        for call in calls:
            for _ in range(COMPARED):
                path = chance.choice(call.paths)
                token = chance.choice(call.tokens) if call.tokens else None
                found = ask(ours, path, token)
                if call.of_crud is not None and found != (other := ask(crud, path, token)):
                    raise AnswersDiffer(f"{path} is answered with {found} and with {other}.")


@contextmanager
def _both(bench: Bench, secret: str, size: Size) -> Iterator[tuple[Server, Served, Fresh]]:
    """Backlot with everything projected, and the plain tables with the same rows.

    Beside them what starts one more Backlot on the same database.
    """
    url = bench.log(size.events, size.event)
    fill_read_models(url, size)
    with ExitStack() as stack:
        kept = stack.enter_context(redis_server(bench.folder / "redis-reading"))
        key = secrets.token_hex(32)

        def start(name: str, roles: str) -> AbstractContextManager[Server]:
            # Without the workers, which would count and translate the whole history first.
            return backlot(
                bench,
                secret,
                name,
                url=url,
                roles=roles,
                projected=ALL_PROJECTED,
                REDIS_URL=kept,
                STATS_PUBLIC="true",
                KEY_ENCRYPTION_KEY=key,
            )

        names = (f"reading-{number}" for number in count())

        @contextmanager
        def fresh() -> Iterator[Served]:
            with start(next(names), "queries") as server:
                yield server.served

        one = stack.enter_context(start("reading", "commands,queries,projections"))
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("VACUUM (ANALYZE)")
        plain = bench.database()
        crud_reads.prepare(plain, url)
        settings = {"DATABASE_URL": plain, "JWT_SECRET": secret, "LOG_LEVEL": "warning"}
        folder = bench.folder / "reading-crud"
        crud = serving("crud_reads", folder, health="/healthz", settings=settings)
        yield one, stack.enter_context(crud), fresh


def fill_read_models(url: str, size: Size) -> None:
    """What the consumers would have kept, and the viewers' user ids."""
    say("filling the analytics")
    name_viewers(url, size.viewers)
    with psycopg.connect(url, autocommit=True) as conn:
        migrate(conn)
    fill_recommendations(url, size.viewers)
    now, videos = datetime.now(UTC), [video_id(number) for number in range(size.videos)]
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(ANALYTICS, {"now": now, "videos": videos})
        settle(conn, Window.WEEK, formula=Formula(), now=now)
