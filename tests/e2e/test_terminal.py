"""The command line on terminals of 40 and 80 columns, and where there is none."""

from __future__ import annotations

import os
import pty
import re
import termios
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.program import Program
from tests.e2e.terminals import everything_on
from tests.e2e.videos import read, upload
from tests.fork_server import ForkedProcess
from tests.support import DEADLINE_SECONDS

STYLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(program: Program, columns: int, *words: str, typed: str = "") -> tuple[int, str]:
    """The exit code of a command on a terminal, and what stands there at the end."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    terminal = Path(os.ttyname(theirs))
    environment = {**program.environment(), "TERM": "xterm"}
    process = ForkedProcess(
        "backlot",
        words,
        cwd=program.home,
        env=environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.write(ours, typed.encode())
    with ThreadPoolExecutor(1) as pool:
        shown = pool.submit(everything_on, ours)
        code = process.wait(DEADLINE_SECONDS)
        os.close(theirs)
        return code, STYLE.sub("", shown.result()).replace("\r", "")


def piped(program: Program, *words: str) -> str:
    ended = program.run(*words)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture
def renamed(alice: httpx.Client) -> str:
    """A video with a title that was long, and is another."""
    title = "A title that goes on{} {} and so on{}"
    more = " and on" * 8
    made = upload(alice, title=title.format(more, "is", more))
    read(alice.patch(f"/videos/{made}", json={"title": title.format(more, "was", more)}))
    return made


@pytest.mark.parametrize("columns", [40, 80])
def test_everything_fits_and_nothing_is_cut(server: Program, renamed: str, columns: int) -> None:
    listing = ("events", "list", "--stream", renamed)
    needed = {
        ("projections", "list"): ["likes", "running", "operations"],
        ("topics", "list"): ["comment.translated", "comment.translated.dlq", "never"],
        listing: [renamed, "upload.details_changed", "alice"],
    }
    for words, texts in needed.items():
        code, shown = on_terminal(server, columns, *words)
        assert code == 0, shown
        assert max(map(len, shown.splitlines())) <= columns, shown
        assert [text for text in texts if text not in shown] == []
        assert "…" not in shown


def test_a_pipe_is_as_wide_as_it_takes(server: Program, renamed: str) -> None:
    listed = piped(server, "events", "list", "--stream", renamed)
    (line,) = (each for each in listed.splitlines() if "upload.details_changed" in each)
    assert line.split()[-1] == renamed
    assert len(line) > 80
    assert piped(server, "projections", "list").splitlines()[0].endswith("replay")


def test_a_stream_shows_the_part_of_a_long_text_that_changed(server: Program, renamed: str) -> None:
    _, changed = piped(server, "events", "stream", renamed).split("upload.details_changed")
    assert changed.splitlines()[1:4] == [
        "    title:",
        '      - "…nd on and on and on is and so on and on a…"',
        '      + "…nd on and on and on was and so on and on a…"',
    ]


def test_a_question_is_asked_on_a_terminal_only(server: Program) -> None:
    words = ("projections", "drop-old", "likes")
    code, shown = on_terminal(server, 80, *words, typed="n\n")
    assert (code, "nothing was changed" in shown) == (3, True)
    code, shown = on_terminal(server, 80, *words, typed="y\n")
    assert (code, "has no previous copy" in shown) == (4, True), shown
    ended = server.run(*words)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "say --yes" in ended.stderr
