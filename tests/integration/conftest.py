"""Other processes, for what must hold between them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest


@pytest.fixture(scope="session")
def processes() -> Iterator[ProcessPoolExecutor]:
    """Two processes that are ready to work at the same time."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for ready in [pool.submit(time.sleep, 0.5) for _ in range(2)]:
            ready.result()
        yield pool
