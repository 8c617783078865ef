"""What every projection of the program has to satisfy, found in its wiring, on random histories."""

from __future__ import annotations

from uuid import uuid4

from psycopg import Connection
from psycopg.rows import TupleRow
from structlog.testing import capture_logs

from backlot.features import read_models
from domain.dismissals import Dismissal
from domain.dismissals import stream_id as dismissal_of
from domain.operation import Operation, OperationOutcome
from engine.checkpoints import look
from engine.comparison import compare
from engine.completeness import completeness
from engine.installation import create, install
from engine.projection import Applier, Projection, RangeProjection
from tests.integration.projection_support import Writer, origin
from tests.integration.replay_support import History
from tests.support import seeds

PROJECTIONS: list[type[Projection]] = list(map(type, read_models().all()))
SEEDS = (1, 2, 3, 4)
STAGES = 4
STEPS = 120


def operate(writer: Writer, count: int) -> None:
    """Operations of operators, every other one finished."""
    for n in range(count):
        operation = Operation.blank(uuid4())
        operation.request("pause", "likes", {"n": n}, origin("root"))
        if n % 2:
            operation.finish(OperationOutcome.DONE, {}, origin("root"))
        writer.save(operation)


def lose_interest(writer: Writer, history: History) -> None:
    """Dismissals of some viewers, every third one taken back, and one of these given again."""
    for n in range(9):
        video, viewer = history.random.choice(history.uploads).id, f"viewer-{n}"
        dismissal = Dismissal.blank(dismissal_of(video, f"{viewer}-{uuid4()}"))
        dismissal.dismiss(video, viewer, origin(viewer))
        if n % 3 == 0:
            dismissal.take_back(video, viewer, origin(viewer))
        if n == 3:
            dismissal.dismiss(video, viewer, origin(viewer))
        writer.save(dismissal)


def hesitate(writer: Writer) -> None:
    """A like that is taken back: in one batch it comes to nothing, in two it does not."""
    video, another = uuid4(), uuid4()
    writer.like(video, "alice")
    writer.like(another, "bob", "carol", "dora")
    writer.unlike(video, "alice")


def advance(conn: Connection[TupleRow], writer: Writer, copy: Projection, batch: int) -> None:
    """Bring a copy to the end of the log, in batches of one size."""
    applier = Applier(copy, batch_events=batch)
    at = look(conn, copy.schema)
    assert at is not None
    before = at.position
    while before < at.head:
        before = applier.advance(conn, before, at.head).until


def live_and_rebuilt(
    conn: Connection[TupleRow], writer: Writer, history: History, *, spoilt: bool = False
) -> list[tuple[Projection, Projection]]:
    """Live copies that followed a growing log in small steps, and others built of it at once."""
    lives = [projection() for projection in PROJECTIONS]
    install(conn, lives)
    pairs = [(live, type(live)(f"{live.name}_again")) for live in lives]
    for live, again in pairs:
        live.on_poison = again.on_poison = "park"
    for stage in range(STAGES):
        before = writer.head
        history.grow(STEPS)
        operate(writer, 4)
        hesitate(writer)
        lose_interest(writer, history)
        if spoilt:
            spoil_one_of_each_topic(conn, before)
        for live in lives:
            advance(conn, writer, live, batch=3 + stage * 4)
    for _, again in pairs:
        create(conn, again)
        advance(conn, writer, again, batch=1000)
    return pairs


def spoil_one_of_each_topic(conn: Connection[TupleRow], after: int) -> None:
    """Of what was recorded since, so that no copy has read it while it was good."""
    newest = "SELECT max(notification_id) FROM backlot_events GROUP BY topic"
    spoil = "UPDATE backlot_events SET state = 'spoilt' WHERE notification_id = ANY (%s)"
    positions = [position for (position,) in conn.execute(newest.encode()) if position > after]
    conn.execute(spoil, (positions,))


@seeds(SEEDS, always=1)
def test_a_rebuilt_copy_is_equal_and_both_are_complete(
    conn: Connection[TupleRow], writer: Writer, seed: int
) -> None:
    for live, again in live_and_rebuilt(conn, writer, History(writer, seed)):
        difference = compare(conn, live.schema, again.schema)
        assert not difference.differs, difference.as_dict()
        assert any(t.live.rows for t in difference.tables if t.live), live.name
        for copy in (live, again):
            account = completeness(conn, copy)
            assert account.complete, account.as_dict()
            assert (account.events, account.parked) == (writer.head, 0)
            assert account.applied + account.skipped == writer.head


@seeds(SEEDS, always=1)
def test_unreadable_events_are_set_aside_by_every_copy_alike(
    conn: Connection[TupleRow], writer: Writer, seed: int
) -> None:
    with capture_logs():
        pairs = live_and_rebuilt(conn, writer, History(writer, seed), spoilt=True)
    for live, again in pairs:
        difference = compare(conn, live.schema, again.schema)
        assert not difference.differs, difference.as_dict()
        accounts = [completeness(conn, copy) for copy in (live, again)]
        assert all(account.complete for account in accounts)
        assert accounts[0].parked == accounts[1].parked
        assert (accounts[0].parked > 0) is not isinstance(live, RangeProjection), live.name
