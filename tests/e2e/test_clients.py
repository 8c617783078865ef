"""The generated clients do the main job against the started program; `make clients` makes them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from backlot.demo.script import bundled_film
from backlot.http import ApiPart, describe
from tests.e2e.program import Program
from tests.support import PROJECT, requires, unavailable

CLIENTS = PROJECT / "clients"
PYTHON, TYPESCRIPT = CLIENTS / "python", CLIENTS / "typescript"
JOBS = {
    "python": ([str(PYTHON / ".venv" / "bin" / "python"), "-m", "examples.main_job"], PYTHON),
    "typescript": (["node", "build/examples/main_job.js"], TYPESCRIPT),
}


@pytest.fixture(scope="module", autouse=True)
def generated() -> None:
    """They were generated, and of the API as it is."""
    made = CLIENTS / "openapi.json"
    if not made.exists() or not (TYPESCRIPT / "build").exists():
        unavailable("the clients are not generated: `make clients`")
    if json.loads(made.read_text()) != describe(ApiPart.ALL):
        unavailable("the clients are those of another version of the API: `make clients`")


@pytest.mark.parametrize("language", JOBS)
def test_a_generated_client_does_the_main_job(
    language: str, server: Program, tmp_path: Path
) -> None:
    requires("node")
    command, folder = JOBS[language]
    film = tmp_path / "film.mp4"
    film.write_bytes(bundled_film().read_bytes())
    own = {"BACKLOT_URL": server.url, "BACKLOT_TOKEN": server.token("alice")}
    # Nothing of Backlot itself: a client has an environment of its own.
    own["PYTHONPATH"] = str(PYTHON)
    done = subprocess.run(
        [*command, str(film)],
        cwd=folder,
        env={**os.environ, **own},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) == {
        "status": "completed",
        "hasLiked": True,
        "likes": 1,
        "comments": ["Nice rain"],
        "likesInStats": 1,
        "problem": "not-found",
    }
