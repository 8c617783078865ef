"""The client in TypeScript, built by `make clients`, against the started program: in Node, in Chromium."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.e2e.program import Program
from tests.e2e.test_clients import TYPESCRIPT, generated
from tests.support import requires

__all__ = ["generated"]

USERS = ("alice", "bob", "carol")
BUILT = TYPESCRIPT / "build"


@pytest.mark.parametrize("about", ["parts", "client", "upload", "live"])
def test_the_client_in_node(about: str, server: Program) -> None:
    own = {
        "BACKLOT_URL": server.url,
        "BACKLOT_TOKENS": json.dumps({user: server.token(user) for user in USERS}),
    }
    done = subprocess.run(
        [requires("node"), "--test", f"build/tests/{about}.test.js"],
        cwd=TYPESCRIPT,
        env={**os.environ, **own},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# pass 0" not in done.stdout
