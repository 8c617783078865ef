"""Replaying calls no outside service: only the database and Redis can be reached meanwhile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from projections.audit.index import Audit
from projections.operations import Operations
from tests.integration.projection_support import Writer
from tests.integration.redis_servers import redis_servers
from tests.integration.replay_support import History, models, projected

ROOT = Path(__file__).parents[2]


def test_everything_is_replayed_with_nobody_to_ask(database_url: str, tmp_path: Path) -> None:
    writer = Writer(database_url)
    History(writer, 6).grow(300)
    everything = {**models(), "audit": Audit(), "operations": Operations()}
    projected(database_url, writer, everything)
    writer.close()
    with redis_servers(1, tmp_path) as (server,):
        command = [sys.executable, "-m", "tests.integration.replaying_alone"]
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
