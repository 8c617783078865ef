"""A failed test fails no other, whatever it has left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import DEADLINE_SECONDS

PROJECT = Path(__file__).parents[2]
OPTIONS = ("-p", "tests.leftovers", "-p", "no:cacheprovider", "-rA", "-Werror")

HEAD = """
import asyncio, gc, os, signal, socket, subprocess, sys, threading, time
import multiprocessing
import pytest

SLEEP = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(3600)"]
"""
# What each does before it fails; the tests after it look around.
LEFT = {
    "a process with pipes": """
    process = subprocess.Popen(SLEEP, stdin=-1, stdout=-1, stderr=-1)
    process.stdout.readline()
    print("left", process.pid)
""",
    "a group of processes": """
    process = subprocess.Popen(["sh", "-c", "sleep 3600 & echo $!; wait"], stdout=-1,
                               start_new_session=True)
    print("left", process.pid)
    print("left", process.stdout.readline().decode())
""",
    "a process of multiprocessing": """
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(3600,))
    process.start()
    print("left", process.pid)
""",
    "a server": """
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
""",
    "an event loop with a task": """
    loop = asyncio.new_event_loop()
    task = loop.create_task(asyncio.sleep(3600))
    loop.run_until_complete(asyncio.sleep(0))
""",
    "a thread that raises later": """
    def later():
        while "test_fails" in os.environ.get("PYTEST_CURRENT_TEST", ""):
            time.sleep(0.01)
        raise ValueError("later")
    threading.Thread(target=later).start()
""",
    "a handler, a folder and a file": """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir("/")
    opened = open(__file__)
""",
}
REST = """
def test_others_are_not_concerned():
    gc.collect()
    time.sleep(0.3)
    assert os.getcwd() != "/"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert multiprocessing.active_children() == []

def test_nor_is_the_last():
    gc.collect()
"""
SHARED = """
@pytest.fixture(scope="SCOPE")
def shared():
    with subprocess.Popen(SLEEP, stdout=-1) as process:
        yield process
        process.kill()

def test_fails(shared):
    assert False

def test_the_next_has_what_is_shared(shared):
    assert shared.poll() is None
"""


def outcome(folder: Path, source: str) -> tuple[str, str]:
    """How many failed and passed, and what was printed."""
    ended = run(folder, source)
    return re.sub(r" in .*|=+ ?", "", ended.stdout.splitlines()[-1]), ended.stdout


def run(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_some.py").write_text(HEAD + source)
    return subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, str(folder)],
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )


HANGS = """
from tests import leftovers
leftovers.HANG_SECONDS = 1.0

def test_fails():
    assert False

def test_hangs():
    threading.Event().wait()
"""


def test_a_test_that_hangs_shows_where_and_ends_the_run(tmp_path: Path) -> None:
    """Also behind one that has failed."""
    ended = run(tmp_path, HANGS)
    assert ended.returncode == 1
    assert "Timeout (0:00:01)!" in ended.stderr
    assert "in test_hangs" in ended.stderr


@pytest.mark.parametrize("left", LEFT.values(), ids=LEFT)
def test_what_a_failed_test_leaves_fails_no_other(tmp_path: Path, left: str) -> None:
    failing = f"def test_fails():{left}    assert False\n"
    told, out = outcome(tmp_path, failing + REST)
    assert told == "1 failed, 2 passed", out
    for pid in map(int, re.findall(r"^left (\d+)", out, re.MULTILINE)):
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"


@pytest.mark.parametrize("scope", ["module", "session"])
def test_what_is_shared_stays(tmp_path: Path, scope: str) -> None:
    told, out = outcome(tmp_path, SHARED.replace("SCOPE", scope))
    assert told == "1 failed, 1 passed", out


def test_it_is_a_plugin_here(pytestconfig: pytest.Config) -> None:
    """As hooks of a conftest it would end what the whole session shares."""
    assert pytestconfig.pluginmanager.has_plugin("tests.leftovers")
