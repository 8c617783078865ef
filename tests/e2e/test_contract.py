"""The answers of both APIs are those that `/openapi.json` promises, whatever is sent."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis.configuration import storage_directory

from commands.feedback import LONGEST_ID
from infra.data_folder import secret_path
from tests.e2e import plain
from tests.e2e.conftest import SMALL_PARTS
from tests.e2e.program import Program
from tests.real_inputs import real_inputs
from tests.support import PROJECT, unused_port

CONFIG = PROJECT / "tests" / "e2e" / "schemathesis.toml"
# What most calls are about.
VIDEOS = r"^/videos/\{video_id\}"
METHODS = {"get", "head", "put", "post", "patch", "delete"}


@pytest.fixture(scope="module")
def server(short_dir: Path) -> Iterator[Program]:
    """A program of this test's own: what operators may do is asked for, too."""
    settings = {**SMALL_PARTS, "PRIVACY_SELF_SERVICE": "true"}
    program = Program(short_dir / "contract", unused_port(), settings)
    try:
        yield program.start()
        assert program.stop() == 0
    finally:
        program.clean_up()


@pytest.fixture(scope="module")
def document(server: Program) -> dict[str, Any]:
    found = plain.get(f"{server.url}/openapi.json").json()
    assert isinstance(found, dict)
    return found


def schemathesis(server: Program, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Send what the document allows and what it does not, and check each answer against it.

    The file `seen` gets a line for each call: what was called, and the status.
    """
    token = server.token("contract", admin=True)
    variables = {
        "CONTRACT_URL": server.url,
        "CONTRACT_TOKEN": token,
        "CONTRACT_OTHER_TOKEN": server.token("other"),
        "CONTRACT_LAST_TOKEN": server.token(f"last-{uuid4()}"),
        "CONTRACT_SECRET": secret_path(server.data).read_text().strip(),
        "CONTRACT_SEEN": str(folder / "seen"),
        "CONTRACT_LONGEST_LIST_ID": str(LONGEST_ID),
        # Where hypothesis keeps which characters there are: to find out takes it seconds.
        "HYPOTHESIS_STORAGE_DIRECTORY": str(storage_directory().path),
    }
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run"]
    header = f"Authorization: Bearer {token}"
    return subprocess.run(
        [*command, *options, "--no-color", "-H", header, f"{server.url}/openapi.json"],
        check=False,
        cwd=folder,
        env={**server.environment(), **variables},
        capture_output=True,
        text=True,
        timeout=1200,
    )


def test_the_answers_to_a_few_calls_are_documented(server: Program, tmp_path: Path) -> None:
    few = ["--phases", "fuzzing", "--max-examples", "1", "--include-path-regex", VIDEOS]
    ended = schemathesis(server, tmp_path, *few)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len((tmp_path / "seen").read_text().splitlines()) > 10


@pytest.mark.chaos
def test_every_answer_is_documented(
    server: Program, document: dict[str, Any], tmp_path: Path
) -> None:
    ended = schemathesis(server, tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    calls = (tmp_path / "seen").read_text().splitlines()
    comments = [line for line in calls if line.startswith("POST /videos/{video_id}/comments ")]
    assert len(comments) > len(real_inputs("comments")) + len(real_inputs("texts"))
    answered = {line for line in calls if line[-3] == "2"}
    succeeded = {line[:-4] for line in answered}
    documented = {
        f"{method.upper()} {path}"
        for path, operations in document["paths"].items()
        for method in operations
        if method in METHODS
    }
    # Of deliveries there are some where a receiver is (test_webhooks.py), and differences where a
    # replay was compared (tests/integration/test_console_reads.py).
    of_delivery = "POST /admin/webhooks/{webhook_id}/deliveries/{delivery_id}/"
    elsewhere = {f"{of_delivery}repeat", f"{of_delivery}skip"}
    elsewhere.add("GET /projections/{name}/differences")
    assert documented - succeeded - elsewhere == {"GET /videos/{video_id}/events"}
