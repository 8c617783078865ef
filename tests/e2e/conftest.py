"""One running program for the tests that only talk to it, and fresh ones for those that kill."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.e2e import guide
from tests.e2e.program import Program
from tests.e2e.videos import upload
from tests.support import requires, unused_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# So that even a short film has several parts.
SMALL_PARTS = {"PART_SIZE_BYTES": str(16 * 1024), "MAX_UPLOAD_BYTES": str(10_000 * 16 * 1024)}
_numbers = count(1)


@pytest.fixture(scope="session", autouse=True)
def _one_first_start(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One cluster with all tables is made for all programs of a run; each gets a copy."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    Program.template = shared / "first-start"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real Chromium, which opens pages of its own for each test."""
    # Here, so that the other tests do not wait for the import.
    from playwright.sync_api import sync_playwright

    path = requires("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(short_dir: Path) -> Iterator[Program]:
    """The program that most tests of a module share; at the end it must have stopped cleanly.

    One for the whole session would work all the while, also beside tests that have their own.
    """
    program = Program(short_dir / f"shared-{next(_numbers)}", unused_port(), SMALL_PARTS)
    try:
        yield program.start()
        assert program.stop() == 0
        assert "request_broke" not in program.complained
        assert "a command broke" not in program.complained
    finally:
        program.clean_up()


@pytest.fixture
def make_program(short_dir: Path) -> Iterator[Callable[..., Program]]:
    """Makes programs, each with a folder of its own, not started yet."""
    made: list[Program] = []

    def make(**variables: str) -> Program:
        program = Program(short_dir / f"own-{next(_numbers)}", unused_port(), variables)
        made.append(program)
        return program

    yield make
    for program in made:
        program.clean_up()


@pytest.fixture
def clone(short_dir: Path) -> Iterator[Path]:
    """A folder with what a reader has in a clone after `make up`."""
    with guide.clone(short_dir / f"clone-{next(_numbers)}") as folder:
        yield folder


@pytest.fixture
def alice(server: Program) -> httpx.Client:
    return server.client("alice")


@pytest.fixture
def bob(server: Program) -> httpx.Client:
    return server.client("bob")


@pytest.fixture
def nobody(server: Program) -> httpx.Client:
    return server.client()


@pytest.fixture
def video(alice: httpx.Client) -> str:
    """The id of a video of Alice's."""
    return upload(alice)


@pytest.fixture(scope="module")
def film(server: Program) -> str:
    """The id of a video for tests that do not care what else happens to it."""
    return upload(server.client("alice"))
