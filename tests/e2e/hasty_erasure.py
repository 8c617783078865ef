"""The program, which waits for nothing while it forgets somebody.

Run as `python -m tests.e2e.hasty_erasure up`: for tests of what somebody leaves who left long ago.
With SETTLES in the environment it waits before it looks once more, as it does elsewhere: consumers
take in what forgetting itself records, and that too is to be gone at its end.
"""

from __future__ import annotations

import os
from datetime import timedelta
from unittest.mock import patch

from backlot.cli import main
from workers.erasure import SETTLING

if __name__ == "__main__":
    with (
        patch("workers.erasure.GRACE", timedelta(0)),
        patch("workers.erasure.SETTLING", SETTLING if "SETTLES" in os.environ else timedelta(0)),
        patch("workers.erasure.INTERVAL_SECONDS", 0.1),
    ):
        main()
