"""`backlot projections verify|replay analytics`, asked over HTTP too, and killed in the middle."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from backlot.features import read_models
from domain.operation import Members, Operation, OperationOutcome
from engine.connections import connect
from engine.installation import install
from projections.analytics.schema import Shape
from tests.integration.analytics_support import RULES
from tests.integration.event_log import rows
from tests.integration.operator_desk import Backlot, Desk, Launched, desk, executing
from tests.integration.projection_support import Writer
from tests.integration.rebuilding_support import Site, site
from tests.support import DEADLINE_SECONDS, eventually

ROWS = "analytics.video_analytics"
LIKES = "event_type IN ('like', 'comment')"
FAR = "analytics.video_analytics (event_id, video_id, event_type, timestamp, metadata)"
BLOCKED = "SELECT pid FROM pg_stat_activity WHERE application_name = 'backlot analytics rebuild'"
WAITING = BLOCKED + " AND wait_event_type = 'Lock'"
COUNTING = {
    "TRENDING_VIEWER_COMMENTS": str(RULES.viewer_comments),
    "TRENDING_VIEWER_WATCH_MINUTES": str(round(RULES.viewer_seconds / 60)),
}
ASIDE = "SELECT count(*) FROM pg_class WHERE relpersistence = 't'"


@pytest.fixture
def told(database_url: str, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    # What the program has to count by, so that it counts as the site does.
    for name, value in COUNTING.items():
        monkeypatch.setenv(name, value)
    with connect(database_url, "test") as conn:
        install(conn, read_models().all())
    with site(database_url, database_url, Shape.PLAIN, writer) as opened:
        yield opened


YES = ("replay", {"yes": True})


def asked(root: Desk) -> list[tuple[str, Members]]:
    """What the log says was asked for."""
    return [
        (event.action, event.asked)
        for event in root.events()
        if isinstance(event, Operation.Requested)
    ]


def ends(root: Desk) -> list[str]:
    """How the log says it ended."""
    return [event.outcome for event in root.events() if isinstance(event, Operation.Finished)]


def rows_that_differ(difference: dict[str, Any]) -> int:
    """How many events differ, without what is derived from them."""
    (table,) = (each for each in difference["tables"] if each["table"] == "video_analytics")
    return int(table["missing"] + table["extra"] + table["different"])


class TestCommandLine:
    def test_nothing_differs(self, backlot: Backlot, told: Site, root: Desk) -> None:
        for action in ("verify", "replay"):
            code, out, err = backlot(action, "analytics")
            assert code == 0
            assert out.splitlines()[1] == "no row differs"
            assert f"{action} analytics: comparing" in err
        assert [event.subject for event in root.events()] == ["analytics"] * 4

    def test_what_differs_is_named_and_mended(
        self, backlot: Backlot, told: Site, root: Desk
    ) -> None:
        before = told.contents()
        ((event_id,),) = rows(
            told.url,
            f"DELETE FROM {ROWS} WHERE event_id = (SELECT event_id FROM {ROWS} "
            "WHERE event_type = 'like' LIMIT 1) RETURNING event_id",
        )
        code, out, _ = backlot("verify", "analytics", "--reason", "a test")
        assert code == 1
        assert f"video_analytics: event_id={event_id}" in out
        found = backlot("replay", "analytics", "--json")
        assert (found.code, found.data["state"]) == (3, "cancelled")
        assert rows_that_differ(found.data["difference"]) == 1
        assert told.verify()
        found = backlot("replay", "analytics", "--yes", "--json")
        assert (found.code, found.data["state"]) == (0, "mended")
        assert told.contents() == before
        assert asked(root) == [("verify", {"reason": "a test"}), ("replay", {}), YES]
        assert ends(root) == [
            OperationOutcome.DONE,
            OperationOutcome.CANCELLED,
            OperationOutcome.DONE,
        ]

    def test_what_there_is_not(self, backlot: Backlot, told: Site) -> None:
        code, out, err = backlot("pause", "analytics")
        assert (code, out) == (4, "")
        assert "there is no pause" in err
        code, out, err = backlot("replay", "analytics", "--to", "3")
        assert (code, out) == (4, "")
        assert "no look at the past" in err

    @pytest.mark.no_analytics
    def test_nothing_was_taken_in(self, backlot: Backlot, database_url: str) -> None:
        with connect(database_url, "test") as conn:
            install(conn, read_models().all())
        with desk(database_url):
            code, _, err = backlot("verify", "analytics")
        assert code == 4
        assert "There are no analytics yet" in err


def test_over_http(told: Site, root: Desk) -> None:
    before = told.contents()
    with executing(told.url, variables=COUNTING):
        told.sql(f"DELETE FROM {ROWS} WHERE {LIKES}")
        found = root.done("verify", "analytics")
        assert rows_that_differ(found["difference"]) == 21
        assert len(found["difference"]["keys"]) == 20
        outcome, _ = root.end(root.ask("replay", "analytics"))
        assert outcome is OperationOutcome.CANCELLED
        assert root.done("replay", "analytics", yes=True)["state"] == "mended"
        outcome, result = root.end(root.ask("rollback", "analytics"))
        assert outcome is OperationOutcome.REFUSED
        assert "there is no rollback" in str(result["reason"])
    assert told.contents() == before


@pytest.mark.chaos
def test_killed_in_the_middle(told: Site, tmp_path: Path) -> None:
    """Days that were mended stay so, the others stay as they were, and nothing else stays."""
    before = told.contents()
    for days in (2, 1):
        told.sql(
            f"INSERT INTO {FAR} SELECT gen_random_uuid(), min(video_id::text)::uuid, 'like',"
            f" now() - interval '{days} days', '{{}}' FROM analytics.videos"
        )
    lock = (
        f"SELECT FROM {ROWS} WHERE event_type = 'like' AND metadata = '{{}}' "
        "AND timestamp > now() - interval '36 hours'"
    )
    with psycopg.connect(told.url) as holding:
        assert holding.execute(f"{lock} FOR UPDATE".encode()).rowcount == 1
        process = Launched(tmp_path, told.url, "replay", "analytics", "--yes")
        eventually(lambda: rows(told.url, WAITING))
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE_SECONDS)
    # What it waited for it gets, and then there is nobody to go on.
    eventually(lambda: not rows(told.url, BLOCKED))
    assert told.verify()["video_analytics"] == (0, 1, 0)
    eventually(lambda: rows(told.url, ASIDE) == [(0,)])
    assert told.replay()["video_analytics"] == (0, 1, 0)
    assert told.contents() == before
