"""A process that carries a replay on until it has ended, to be killed by a test."""

from __future__ import annotations

import sys

from engine.replay.replay import carry_on
from tests.integration.replay_support import models

if __name__ == "__main__":
    database_url, replay_id, batch_events = sys.argv[1:]
    sys.stderr.write("ready\n")
    sys.stderr.flush()
    carry_on(database_url, int(replay_id), models(), batch_events=int(batch_events))
