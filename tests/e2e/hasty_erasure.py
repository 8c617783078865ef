"""The program, which waits for nothing while it forgets somebody.

Run as `python -m tests.e2e.hasty_erasure up`: for tests of what somebody leaves who left long ago.
"""

from __future__ import annotations

from datetime import timedelta
from unittest.mock import patch

from backlot.cli import main

if __name__ == "__main__":
    with (
        patch("workers.erasure.GRACE", timedelta(0)),
        patch("workers.erasure.SETTLING", timedelta(0)),
        patch("workers.erasure.INTERVAL_SECONDS", 0.1),
    ):
        main()
