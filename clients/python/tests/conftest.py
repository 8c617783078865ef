"""Clients of the started program; its URL and tokens come from the environment.

`tests/e2e/test_python_client.py` of the repository starts it, and runs these tests.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import pytest
from backlot_client import Backlot, RetryPolicy
from backlot_client.session import Token

from .faults import Faults

MakeClient = Callable[..., Backlot]


@pytest.fixture(scope="session")
def url() -> str:
    """Where the program answers."""
    return os.environ["BACKLOT_URL"]


@pytest.fixture(scope="session")
def tokens() -> dict[str, str]:
    """Tokens of alice, bob, a service, and one that has expired."""
    found: dict[str, str] = json.loads(os.environ["BACKLOT_TOKENS"])
    return found


@pytest.fixture
def slept() -> list[float]:
    """The pauses of clients between attempts, which are not waited for."""
    return []


@pytest.fixture
def client(url: str, tokens: dict[str, str], slept: list[float]) -> Iterator[MakeClient]:
    """Makes clients of one of those who have tokens, or with a token; closed in the end."""
    with ExitStack() as stack:

        def make(
            who: str | None = "alice",
            *,
            token: Token = None,
            transport: Faults | None = None,
            **policy: float,
        ) -> Backlot:
            retries = RetryPolicy(sleep=slept.append, **policy)  # type: ignore[arg-type]
            token = token or (tokens[who] if who else None)
            sender = transport or Faults()
            return stack.enter_context(Backlot(url, token, retries=retries, transport=sender))

        yield make


@pytest.fixture
def faults() -> Faults:
    """What a client may be given to send by."""
    return Faults()


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """A file of five parts: the program was told to make them small."""
    path = tmp_path / "film.mp4"
    path.write_bytes(random.Random(5).randbytes(4 * 16 * 1024 + 1234))
    return path


@pytest.fixture
def video_id(client: MakeClient, film: Path) -> UUID:
    """A video of alice."""
    return client("alice").upload(film, "Rain").video_id
