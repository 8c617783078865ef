"""Replaying calls no outside service: only the database and Redis can be reached meanwhile."""

from __future__ import annotations

import subprocess
import sys
from itertools import cycle
from pathlib import Path

from engine.inspection.index import Audit
from projections.operations import Operations
from projections.translation import Translations
from tests.integration.event_log import rows
from tests.integration.projection_support import Writer, origin
from tests.integration.redis_servers import redis_servers
from tests.integration.replay_support import History, models, projected

ROOT = Path(__file__).parents[2]


def find_out(history: History, writer: Writer) -> None:
    """Have something found out about every comment that stands: each way that it can end."""
    by = origin("translation")
    for comment, end in zip(history.comments, cycle(range(4)), strict=False):
        said = comment.revision
        if end == 0:
            comment.translate(said, "es", "en", "How pretty!", "a model", "1", by)
        elif end == 1:
            comment.fail_translation(said, "overloaded", by)
        elif end == 2:
            comment.skip_translation(said, True, "no_language_model", by)
        else:
            comment.detect_language(said, "en", 0.9, "lite", "en", by)
        if comment.pending_events:
            writer.save(comment)


def test_everything_is_replayed_with_nobody_to_ask(database_url: str, tmp_path: Path) -> None:
    writer = Writer(database_url)
    history = History(writer, 6)
    history.grow(300)
    find_out(history, writer)
    beside = {"audit": Audit(), "operations": Operations(), "translations": Translations()}
    everything = {**models(), **beside}
    projected(database_url, writer, everything)
    writer.close()
    statuses = rows(database_url, "SELECT DISTINCT translation_status FROM comments.comments")
    assert {status for (status,) in statuses} >= {"translated", "failed", "skipped", "not_needed"}
    with redis_servers(1, tmp_path) as (server,):
        command = [sys.executable, "-m", "tests.integration.isolated_replay"]
        done = subprocess.run(
            [*command, database_url, server.url, str(server.port)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    told = [f"{name} {end} None" for name in everything for end in ("switched", "verified")]
    assert done.stderr.splitlines() == ["blocked", *told]
    assert done.returncode == 0
    assert "like_counters_renewed" in done.stdout
