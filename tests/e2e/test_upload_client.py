"""`backlot upload` of a large file: interrupted, killed, and with a server that comes and goes."""

from __future__ import annotations

import hashlib
import json
import random
import re
import signal
import stat
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e import plain
from tests.e2e.gate import Gate, gate_to
from tests.e2e.program import Program
from tests.e2e.terminals import with_a_bar
from tests.e2e.videos import read
from tests.fork_server import ForkedProcess
from tests.integration.s3_server import s3_server
from tests.support import DEADLINE_SECONDS, eventually, unused_port

SIZE = 30_000_000
PART_BYTES = 256 * 1024
PARTS = list(range(1, 116))
MIDDLE = 40


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BACKLOT_TOKEN", raising=False)


@pytest.fixture(scope="module")
def program(short_dir: Path) -> Iterator[Program]:
    """A program of our own: these tests end it and start it again."""
    made = Program(short_dir / "uploads", unused_port(), {"PART_SIZE_BYTES": str(PART_BYTES)})
    try:
        yield made.start()
    finally:
        made.clean_up()


@pytest.fixture
def gate(program: Program) -> Iterator[Gate]:
    with gate_to(program.port) as made:
        yield made


@pytest.fixture(scope="module")
def content() -> bytes:
    return random.Random(7).randbytes(SIZE)


@pytest.fixture
def film(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    return path


class Started(NamedTuple):
    """A run of the client, and the files that it writes to."""

    process: ForkedProcess
    out: Path
    err: Path

    def end(self) -> tuple[int, str, str]:
        """Its exit code and output, once it has ended."""
        code = self.process.wait(DEADLINE_SECONDS)
        return code, self.out.read_text(), self.err.read_text()


class Client:
    """Runs the client through the gate, with a memory of its own."""

    def __init__(self, program: Program, gate: Gate, film: Path) -> None:
        self.program, self.gate, self.film = program, gate, film
        self.state = film.parent / "state"

    def start(self, *options: str) -> Started:
        folder = self.film.parent
        out, err = folder / "out", folder / "err"
        for path in (out, err):
            path.write_bytes(b"")
        words = ["upload", str(self.film), "--url", self.gate.url, "--user", "alice", "--json"]
        environment = {**self.program.environment(), "XDG_STATE_HOME": str(self.state)}
        process = ForkedProcess(
            "backlot", [*words, *options], cwd=folder, env=environment, stdout=out, stderr=err
        )
        return Started(process, out, err)

    def stopped_in_the_middle(self, sign: signal.Signals) -> tuple[int, str, str]:
        """Exit code and output of a run that got a signal after so many parts."""
        self.gate.hold_after(MIDDLE)
        started = self.start()
        self.gate.wait_until_full()
        started.process.send_signal(sign)
        ended = started.end()
        self.gate.drop()
        return ended

    def memories(self) -> list[Path]:
        folder = self.state / "backlot" / "uploads"
        return list(folder.iterdir()) if folder.exists() else []


@pytest.fixture
def client(program: Program, gate: Gate, film: Path) -> Client:
    return Client(program, gate, film)


def finish(started: Started) -> dict[str, object]:
    """What a successful run says in the end."""
    code, out, err = started.end()
    assert code == 0, err
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


def check_it_plays(program: Program, video: object, content: bytes) -> None:
    alice = program.client("alice")
    url = read(alice.post(f"/videos/{video}/watch"))["url"]
    assert hashlib.sha256(plain.get(url).content).digest() == hashlib.sha256(content).digest()


def test_a_large_file_arrives_as_it_is(client: Client, content: bytes) -> None:
    told = finish(client.start("--title", "Thirty megabytes"))
    assert client.gate.forget() == PARTS
    assert (told["sizeBytes"], told["parts"], told["partsSent"]) == (SIZE, 115, 115)
    assert client.memories() == []
    check_it_plays(client.program, told["videoId"], content)


def test_after_ctrl_c_only_the_rest_is_sent(client: Client, content: bytes) -> None:
    code, out, err = client.stopped_in_the_middle(signal.SIGINT)
    assert (code, out) == (130, "")
    last = "interrupted: run the same command again to send only the rest"
    assert err.splitlines()[-1] == last
    assert "Traceback" not in err
    check_the_rest_is_sent(client, content)


def test_after_a_kill_only_the_rest_is_sent(client: Client, content: bytes) -> None:
    assert client.stopped_in_the_middle(signal.SIGKILL)[0] == -signal.SIGKILL
    check_the_rest_is_sent(client, content)


def check_the_rest_is_sent(client: Client, content: bytes) -> None:
    (memory,) = client.memories()
    assert stat.S_IMODE(memory.stat().st_mode) == 0o600
    before = client.gate.forget()
    assert len(before) == MIDDLE
    told = finish(client.start())
    assert client.gate.forget() == sorted({*PARTS} - {*before})
    assert (told["partsSent"], told["resumed"]) == (len(PARTS) - MIDDLE, True)
    assert client.memories() == []
    check_it_plays(client.program, told["videoId"], content)


@pytest.mark.parametrize("end", [Program.stop, pytest.param(Program.kill, marks=pytest.mark.chaos)])
def test_a_restart_of_the_server_is_waited_for(
    client: Client, content: bytes, end: Callable[[Program], object]
) -> None:
    client.gate.hold_after(MIDDLE)
    started = client.start()
    client.gate.wait_until_full()
    end(client.program)
    client.gate.open()
    eventually(lambda: client.gate.failures > 0)
    client.program.start()
    told = finish(started)
    assert client.gate.forget() == PARTS
    check_it_plays(client.program, told["videoId"], content)


def test_refusals_that_pass_are_waited_for(client: Client, content: bytes) -> None:
    client.gate.refusals = {
        "uploads": deque([503]),
        "PUT": deque([503, 500, 502, 429, 408] * 6),
        "part-urls": deque([500]),
        "complete": deque([503, 502]),
    }
    told = finish(client.start("--parallel", "8"))
    assert not any(client.gate.refusals.values())
    assert client.gate.forget() == PARTS
    check_it_plays(client.program, told["videoId"], content)


def test_a_file_that_changes_is_told_and_the_upload_given_up(client: Client) -> None:
    client.gate.hold_after(MIDDLE)
    started = client.start()
    client.gate.wait_until_full()
    (memory,) = client.memories()
    upload = json.loads(memory.read_text())["upload_id"]
    with client.film.open("r+b") as file:
        file.write(b"other")
    client.gate.open()
    code, out, err = started.end()
    assert (code, out) == (4, "")
    changed = f"{client.film} changed while it was uploaded: upload it again once it is whole"
    assert err.splitlines()[-1] == f"backlot: {changed}"
    alice = client.program.client("alice")
    eventually(lambda: read(alice.get(f"/uploads/{upload}"))["status"] == "aborted")
    assert client.memories() == []


def test_what_can_not_be_uploaded_is_one_line(server: Program, tmp_path: Path) -> None:
    film, empty = tmp_path / "film.mp4", tmp_path / "empty.mp4"
    film.write_bytes(b"film")
    empty.touch()
    for words, why in (
        ((str(film), "--token", "rubbish"), f"the server at {server.url} refuses the token (401 "),
        ((str(tmp_path / "missing.mp4"),), "can't be read: No such file or directory"),
        ((str(empty),), "is empty: there is nothing to upload"),
        ((str(film), "--url", "http://127.0.0.1:1"), "no server at http://127.0.0.1:1 ("),
    ):
        ended = server.run("upload", *words, XDG_STATE_HOME=str(tmp_path / "state"))
        assert (ended.returncode, ended.stdout) == (4, "")
        assert ended.stderr.startswith("backlot: ")
        assert why in ended.stderr
        assert ended.stderr.count("\n") == 1


def test_a_terminal_shows_a_bar_and_then_where_the_video_is(
    server: Program, tmp_path: Path
) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(random.Random(3).randbytes(2_000_000))
    state = {"XDG_STATE_HOME": str(tmp_path / "state")}
    ended = with_a_bar(server, "upload", str(film), **state)
    assert ended.code == 0
    shown = ended.shown
    assert "━" in shown
    assert "2.0/2.0 MB" in shown
    assert re.search(r"[0-9] (bytes|[kM]B)/s", shown)
    assert "uploaded film.mp4: 2,000,000 bytes" in shown
    video, url = ended.out.splitlines()
    assert url == f"{server.url}/videos/{video.removeprefix('video ')}"


def test_parts_go_straight_to_s3(make_program: Callable[..., Program], tmp_path: Path) -> None:
    content = random.Random(5).randbytes(12_000_000)
    film = tmp_path / "film.mp4"
    film.write_bytes(content)
    with s3_server() as s3:
        program = make_program(**s3.settings(), PART_SIZE_BYTES=str(5 * 1024 * 1024)).start()
        words = ("upload", str(film), "--user", "alice", "--json")
        ended = program.run(*words, XDG_STATE_HOME=str(tmp_path / "state"))
        assert ended.returncode == 0, ended.stderr
        told = json.loads(ended.stdout)
        assert (told["parts"], told["partsSent"]) == (3, 3)
        check_it_plays(program, told["videoId"], content)
        assert program.stop() == 0
