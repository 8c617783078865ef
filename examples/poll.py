"""A poll on the engine alone: votes are cast, counted, counted anew from the log, and audited.

Run it with `python -m examples.poll`. It starts the embedded PostgreSQL in a temporary folder and
prints what it does; `docs/engine.md` is a tour of it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID, uuid4

import structlog
from psycopg import Cursor
from psycopg.rows import TupleRow

from domain.model import Aggregate, Origin
from engine.checkpoints import Waiting
from engine.command_bus import Aggregates, Command, CommandBus
from engine.event_store import EVENTS, open_recorder
from engine.inspection.streams import Fold, follow
from engine.installation import install, make_tables
from engine.projection import Batch, Projection, columns
from engine.projection_subscription import ProjectionHost
from engine.replay.records import ReplayOptions
from engine.replay.replay import replay_now
from engine.seals.sealer import Sealer
from engine.seals.verification import verify_database
from engine.subscription import Notifications
from infra.cancellation import alongside
from infra.http.shapes import Position
from infra.postgres.connection import make_pool, open_async_connection, open_connection
from infra.postgres.server import EmbeddedPostgres


class Poll(Aggregate):
    """One vote of each person on a question; the third vote closes the poll."""

    class Voted(Aggregate.Event):
        TOPIC = "poll.voted.v1"
        choice: str

        def apply(self, poll: Poll) -> None:
            poll.votes[self.actor] = self.choice

    class Closed(Aggregate.Event):
        TOPIC = "poll.closed.v1"

        def apply(self, poll: Poll) -> None:
            poll.is_open = False

    def __init__(self) -> None:
        self.is_open, self.votes = True, dict[str, str]()

    def vote(self, choice: str, origin: Origin) -> int:
        """Return the number of votes; a vote that does not count records nothing."""
        if self.is_open and origin.actor not in self.votes:
            self.record(self.Voted, origin, choice=choice)
            if len(self.votes) == 3:
                self.record(self.Closed, origin)
        return len(self.votes)


@dataclass(frozen=True)
class Vote(Command[int]):
    """Vote in a poll; the answer is the number of votes that count."""

    poll: UUID
    choice: str

    def streams(self) -> tuple[UUID]:
        return (self.poll,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> int:
        return aggregates.get(Poll, self.poll).vote(self.choice, origin)


class Tally(Projection):
    """How many votes each choice has."""

    name, events = "tally", (Poll.Voted,)
    tables = "CREATE TABLE {schema}.votes (choice text PRIMARY KEY, votes int NOT NULL)"
    add = "INSERT INTO {schema}.votes AS v SELECT * FROM unnest(%b::text[], %b::int[]) "
    add += "ON CONFLICT (choice) DO UPDATE SET votes = v.votes + excluded.votes"

    def apply(self, batch: Batch, cursor: Cursor[TupleRow]) -> None:
        votes = Counter(event.choice for _, event in batch if isinstance(event, Poll.Voted))
        cursor.execute(self.sql(self.add), columns(votes.items()))


async def vote(url: str, tally: Tally, poll: UUID) -> None:
    """Execute commands while a subscription keeps the tally; wait each time until it counts."""
    notifications = Notifications(url)
    host = ProjectionHost(url, [tally], notifications)
    async with alongside(notifications.run(), host.run()), make_pool(url) as pool:
        with closing(open_recorder(url)) as recorder:
            bus, waiting = CommandBus(recorder), Waiting(pool, [tally])
            for actor, choice in ("ann", "soup"), ("bob", "rice"), ("bob", "soup"), ("cem", "soup"):
                done = await bus.execute(Vote(poll, choice), actor=actor, correlation_id=actor)
                await waiting.until({tally.name: Position(done.position)}, timeout_seconds=60)
                print(f"{actor} votes for {choice}: votes {done.answer}, position {done.position}")
            await bus.close()


def replay(url: str, tally: Tally) -> None:
    """Damage the tally, build a copy beside it from the log, and switch to the copy."""
    with open_connection(url, "reader") as conn:
        read = tally.sql("SELECT choice, votes FROM {schema}.votes ORDER BY choice")
        conn.execute(tally.sql("UPDATE {schema}.votes SET votes = 99 WHERE choice = 'rice'"))
        print(f"damaged tally: {conn.execute(read).fetchall()}")
        done = replay_now(url, tally, ReplayOptions(confirmed=True), requested_by="ann")
        print(f"replay {done.state}, tally: {conn.execute(read).fetchall()}")


async def audit(url: str, poll: UUID) -> None:
    """List the events of the poll and its state; seal the log, change it, and verify it."""
    async with await open_async_connection(url, "auditor") as conn:
        async for step in follow(conn, fold := Fold(poll)):
            print(f"event {step.entry.stored.topic} by {step.entry.actor}")
        print(f"state: {fold.fields}")
    with closing(Sealer(url, block_events=100, block_seconds=0)) as sealer:
        sealer.turn()
    with open_connection(url, "auditor") as auditor:
        print(f"sealed and verified: {verify_database(auditor).sealed_to} events")
        auditor.execute(f"UPDATE {EVENTS} SET topic = 'poll.closed.v1' WHERE notification_id = 2")
        print(f"changed: {verify_database(auditor).fault}")


async def main() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    with TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder, "postgres")) as server:
        with open_connection(server.url, "installation") as conn:
            make_tables(conn)
            install(conn, [Tally()])
        await vote(server.url, Tally(), poll := uuid4())
        replay(server.url, Tally())
        await audit(server.url, poll)


if __name__ == "__main__":
    asyncio.run(main())
