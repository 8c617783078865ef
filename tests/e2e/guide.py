"""What the pages of docs/ tell to write and to type, and a folder in which that is done."""

from __future__ import annotations

import json
import re
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import NamedTuple

from backlot.demo.script import bundled_film
from tests.e2e.program import Program
from tests.fork_server import ForkedProcess
from tests.support import DEADLINE_SECONDS, eventually

BLOCK = re.compile(r"(?ms)^### (?P<path>\S+)\n\n```(?P<kind>\w+)\n(?P<text>.*?)^```$")
# What stands in the place of the program: a thread of the test runs it, and this ends as that did.
COMMAND = """\
#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as asking:
    asking.connect({path!r})
    asking.sendall(json.dumps([os.getpid(), os.getcwd(), dict(os.environ), sys.argv[1:]]).encode())
    asking.shutdown(socket.SHUT_WR)
    sys.exit(asking.recv(1)[0])
"""
# Without the packages that are installed, a line that only takes JSON apart starts in a third of
# the time.
PYTHON = """\
#!/bin/sh
case "$*" in "-c import json,"*) exec {python} -IS "$@";; esac
exec {python} "$@"
"""


class Block(NamedTuple):
    """A fenced block of a guide, and the file that it makes or changes."""

    path: str
    kind: str
    text: str

    def apply(self, folder: Path) -> None:
        """Make the file, or change it where the block is a diff."""
        path = folder / self.path
        if self.kind == "diff":
            path.write_text(changed(path.read_text(), self.text))
        else:
            assert not path.exists(), f"{self.path} is there already"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.text)


def blocks(page: str) -> Iterator[Block]:
    for match in BLOCK.finditer(page):
        yield Block(match["path"], match["kind"], match["text"])


def changed(text: str, diff: str) -> str:
    """The text with each hunk of a diff put in; a hunk has to fit in one place.

    A line without anything, as editors leave it where a space ends a line, is an empty one.
    """
    for hunk in re.sub(r"(?m)^\n", " \n", diff).split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        after = "".join(line[1:] for line in lines if line[0] in " +")
        assert f"\n{text}".count(f"\n{before}") == 1, f"fits in no place, or in many:\n{before}"
        text = f"\n{text}".replace(f"\n{before}", f"\n{after}")[1:]
    return text


@contextmanager
def clone(folder: Path) -> Iterator[Path]:
    """A folder with what somebody has in a clone after `make up`; its path has to be short."""
    bin_folder, demo = folder / ".venv" / "bin", folder / "backlot" / "demo"
    for made in (bin_folder, demo):
        made.mkdir(parents=True)
    path = str(folder / ".venv" / "commands.sock")
    (bin_folder / "backlot").write_text(COMMAND.format(python=sys.executable, path=path))
    (bin_folder / "python").write_text(PYTHON.format(python=sys.executable))
    for name in ("backlot", "python"):
        (bin_folder / name).chmod(0o755)
    shutil.copy(bundled_film(), demo / "sample.mp4")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        thread = Thread(target=_run_commands, args=(listening,))
        thread.start()
        try:
            yield folder
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
            shutil.rmtree(folder)


def _run_commands(listening: socket.socket) -> None:
    """Run what is asked for in processes that are forked: to import the program takes longer."""
    running = []
    with suppress(OSError):
        while True:
            asking, _ = listening.accept()
            running.append(Thread(target=_run_command, args=(asking,)))
            running[-1].start()
    for thread in running:
        thread.join()


def _run_command(asking: socket.socket) -> None:
    """Run one, to its end or to that of whoever has asked for it."""
    with asking, suppress(ConnectionError):
        with asking.makefile("rb") as asked:
            pid, folder, environment, arguments = json.load(asked)
        hung_up, streams = select.poll(), Path(f"/proc/{pid}/fd")
        # No event but POLLHUP, which is always told: whoever asked was killed.
        hung_up.register(asking, 0)
        process = ForkedProcess(
            "backlot",
            arguments,
            cwd=Path(folder),
            env=environment,
            stdout=streams / "1",
            stderr=streams / "2",
        )
        try:
            eventually(lambda: process.poll() is not None or hung_up.poll(0))
        finally:
            if process.poll() is None:
                process.terminate()
            code = process.wait(DEADLINE_SECONDS)
        asking.sendall(bytes([code]))


def carried_out(script: str, site: Program, folder: Path) -> str:
    """What the commands print, typed in a folder with the settings of a program; each succeeds."""
    state = {"XDG_STATE_HOME": str(folder / "state"), "TMPDIR": str(folder)}
    ran = subprocess.run(
        ["sh", "-c", f"set -eu\n{script}"],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**site.environment(), **state},
        timeout=2 * DEADLINE_SECONDS,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert '"requestId"' not in ran.stdout, "an answer was a problem"
    return ran.stdout
