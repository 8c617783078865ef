"""Starts that cannot succeed say why in one line and harm nothing; stops leave nothing behind."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from engine.telemetry import Telemetry, TelemetryEvent
from infra.data_folder import FORMAT
from tests.e2e.program import Program
from tests.e2e.videos import read, see, upload
from tests.integration.redis_servers import redis_servers
from tests.support import DEADLINE_SECONDS, eventually, unused_port

MakeProgram = Callable[..., Program]


def refused(program: Program, *said: str, code: int = 4) -> None:
    """The program ends at once, with one line that says all of this."""
    assert program.launch().wait() == code
    assert program.said == ""
    # Beside what it logs.
    lines = [
        line for line in program.complained.splitlines() if not line.startswith(("{", "starting "))
    ]
    assert len(lines) == 1, program.complained
    assert lines[0].startswith("backlot: ")
    for text in said:
        assert text in lines[0]
    assert program.servers() == []


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_taken_port(make_program: MakeProgram) -> None:
    program = make_program()
    with socket.create_server(("127.0.0.1", program.port)):
        refused(program, f"127.0.0.1:{program.port}", "BACKLOT_PORT")
    assert not program.data.exists()


def test_an_address_of_another_machine(make_program: MakeProgram) -> None:
    refused(make_program(BACKLOT_HOST="192.0.2.1"), "192.0.2.1", "BACKLOT_HOST")


def test_a_lost_key_of_texts_has_no_successor(make_program: MakeProgram) -> None:
    program = make_program().start()
    key = program.data / "key-encryption-key"
    assert key.stat().st_mode & 0o777 == 0o600
    video = upload(program.client("alice"))
    assert program.stop() == 0
    kept = key.read_text()
    key.unlink()
    refused(program, f"the key-encryption key {key} is missing", "KEY_ENCRYPTION_KEY_FILE")
    assert not key.exists()
    program.variables["KEY_ENCRYPTION_KEY"] = "f0e1d2c3b4a5968778695a4b3c2d1e0f" * 2
    refused(program, "KEY_ENCRYPTION_KEY is another key", f"wrapped by {key}")
    assert not key.exists()
    # Given back in another way, it is as good.
    program.variables["KEY_ENCRYPTION_KEY"] = kept.strip()
    program.start()
    assert read(program.client("alice").get(f"/videos/{video}"))["ownerId"] == "alice"


def test_processes_with_keys_of_their_own_share_no_database(
    make_program: MakeProgram, database_url: str
) -> None:
    shared = {"DATABASE_URL": database_url, "BACKLOT_ROLES": "queries", "KEY_ENCRYPTION_KEY": ""}
    first, second = make_program(**shared).start(), make_program(**shared)
    mine = second.data / "key-encryption-key"
    told = f"the key-encryption key {mine} is missing"
    refused(second, told, f"wrapped by {first.data / 'key-encryption-key'}", "every process")
    assert not mine.exists()


def test_a_file_in_the_place_of_the_data_folder(make_program: MakeProgram) -> None:
    program = make_program()
    program.home.mkdir()
    program.data.write_text("somebody's notes")
    refused(program, str(program.data), "BACKLOT_DATA_DIR")
    assert program.data.read_text() == "somebody's notes"


def test_a_data_folder_below_a_file(make_program: MakeProgram) -> None:
    program = make_program()
    program.home.mkdir()
    notes = program.home / "notes"
    notes.write_text("somebody's notes")
    program.variables["BACKLOT_DATA_DIR"] = str(notes / "data")
    refused(program, str(notes), "BACKLOT_DATA_DIR")
    assert notes.read_text() == "somebody's notes"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_a_data_folder_where_nobody_may_write(make_program: MakeProgram) -> None:
    # Not even root can make a folder there, whatever its mode says.
    refused(make_program(BACKLOT_DATA_DIR="/proc/backlot"), "not writable", "BACKLOT_DATA_DIR")


def test_somebody_elses_folder(make_program: MakeProgram) -> None:
    program = make_program()
    program.data.mkdir(parents=True)
    (program.data / "thesis.tex").write_text("chapter one")
    refused(program, "thesis.tex", "BACKLOT_DATA_DIR")
    assert contents(program.data) == {"thesis.tex": b"chapter one"}


@pytest.mark.parametrize(
    ("written", "advice"), [(str(FORMAT + 1), "newer"), ("0", "damaged"), ("\x00?", "damaged")]
)
def test_a_data_folder_of_another_format(
    make_program: MakeProgram, written: str, advice: str
) -> None:
    program = make_program()
    program.data.mkdir(parents=True)
    (program.data / "backlot-format").write_text(f"{written}\n")
    (program.data / "treasure").write_text("gold")
    before = contents(program.data)
    refused(program, "format", advice, "nothing was changed")
    assert contents(program.data) == before


def test_a_cluster_of_another_postgres(make_program: MakeProgram) -> None:
    program = make_program()
    cluster = program.data / "postgres"
    cluster.mkdir(parents=True)
    (program.data / "backlot-format").write_text(f"{FORMAT}\n")
    (cluster / "PG_VERSION").write_text("12\n")
    refused(program, "PostgreSQL 12", "nothing was changed")
    assert contents(cluster) == {"PG_VERSION": b"12\n"}


def test_the_second_on_one_folder_fails_and_the_first_goes_on(make_program: MakeProgram) -> None:
    first = make_program().start()
    owner = first.client("owner")
    video = upload(owner)
    second = make_program(BACKLOT_DATA_DIR=str(first.data))
    refused(second, str(first.data), f"pid {first.process.pid}", "BACKLOT_DATA_DIR")
    liked = owner.put(f"/videos/{video}/like")
    see(owner, liked)
    assert read(owner.get(f"/videos/{video}"))["likes"] == 1
    assert first.stop() == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BACKLOT_PORT", "eighty"),
        ("BACKLOT_PORT", "65536"),
        ("BACKLOT_ROLES", "commands,singing"),
        ("PART_SIZE_BYTES", "-1"),
        ("JWT_SECRET", "short"),
        ("JWT_ALGORITHMS", "none"),
        ("DATABASE_URL", "mysql://here"),
        ("PROJECTION_POLL_SECONDS", "nan"),
    ],
)
def test_a_wrong_setting_is_named(make_program: MakeProgram, name: str, value: str) -> None:
    program = make_program(**{name: value})
    refused(program, name, code=2)
    assert not program.data.exists()


def test_a_database_that_does_not_answer(make_program: MakeProgram) -> None:
    secret = "hunter2"
    url = f"postgresql://backlot:{secret}@127.0.0.1:{unused_port()}/backlot?connect_timeout=2"
    program = make_program(DATABASE_URL=url)
    refused(program, "DATABASE_URL")
    assert secret not in program.complained


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_clean_and_keeps_everything(
    make_program: MakeProgram, sign: signal.Signals
) -> None:
    program = make_program().start()
    owner = program.client("owner")
    see(owner, owner.put(f"/videos/{upload(owner)}/like"))
    before = read(owner.get("/videos"))
    assert program.servers()
    assert program.stop(sign) == 0
    assert program.servers() == []
    assert not (program.data / "postgres" / "postmaster.pid").exists()
    assert "Traceback" not in program.complained

    program.start()
    assert read(program.client("owner").get("/videos")) == before
    assert program.stop() == 0


@contextmanager
def half_a_part(program: Program) -> Iterator[socket.socket]:
    """A connection over which the first two of four bytes of a part have come."""
    url = read(program.client("owner").post("/uploads", json=UPLOAD))["parts"][0]["url"]
    with socket.create_connection(
        ("127.0.0.1", program.port), timeout=DEADLINE_SECONDS
    ) as connection:
        head = b"PUT %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n"
        connection.sendall(head % httpx.URL(url).raw_path + b"12")
        eventually(lambda: any((program.data / "objects" / "tmp").iterdir()))
        yield connection


def test_a_stop_waits_for_what_was_begun(make_program: MakeProgram) -> None:
    program = make_program().start()
    with half_a_part(program) as connection:
        program.process.send_signal(signal.SIGTERM)
        eventually(lambda: not answers(program.port))
        connection.sendall(b"34")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    assert program.wait() == 0


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_ctrl_c_ends_it_at_once_and_nothing_is_lost(
    make_program: MakeProgram, first: signal.Signals
) -> None:
    program = make_program().start()
    owner = program.client("owner")
    video = upload(owner)
    with half_a_part(program):
        program.process.send_signal(first)
        eventually(lambda: "stopping …" in program.complained)
        # It waits for the rest of the part, for ten seconds.
        assert program.process.poll() is None
        program.process.send_signal(signal.SIGINT)
        assert program.wait() == 130
    # PostgreSQL was told, and shuts down by itself.
    eventually(lambda: program.servers() == [])
    assert not (program.data / "postgres" / "postmaster.pid").exists()
    assert "Traceback" not in program.complained
    program.start()
    assert read(program.client("owner").get(f"/videos/{video}"))["videoId"] == video
    assert program.stop() == 0


def test_a_stop_that_is_lost_is_asked_for_again(make_program: MakeProgram) -> None:
    program = make_program()
    program.module = "tests.e2e.lossy_program"
    program.start()
    owner = program.client("owner")
    video = upload(owner)
    with owner.stream("GET", f"/videos/{video}/events") as live:
        assert next(live.iter_lines()).startswith("retry:")
        # Those that have nothing left to do: they are told to stop while they wait.
        eventually(lambda: "waits with 2 in woken" in program.complained)
        program.process.send_signal(signal.SIGTERM)
        assert program.wait() == 0
    assert program.servers() == []
    assert program.complained.count("lost by Notifications._listen") == 2
    assert program.complained.count("lost by woken") >= 2
    assert "stop_overdue" not in program.complained
    assert "Traceback" not in program.complained


@pytest.mark.parametrize("module", ["backlot", "tests.e2e.lossy_program"])
def test_consumers_on_a_real_redis_end_each_time(
    make_program: MakeProgram, database_url: str, tmp_path: Path, module: str
) -> None:
    """They are stopped while they count views, and tell Redis of each batch."""
    with redis_servers(1, tmp_path) as (redis,):
        program = make_program(
            BACKLOT_ROLES="consumers",
            DATABASE_URL=database_url,
            REDIS_URL=redis.url,
            JWT_SECRET="of these consumers, long enough to sign",
            ANALYTICS_FLUSH_SECONDS="0.01",
        )
        program.module = module
        for _ in range(3):
            program.start()
            asyncio.run(watch(database_url, views=50))
            assert program.stop() == 0
            assert "stop_overdue" not in program.complained
            assert ("lost by woken" in program.complained) == (module != "backlot")


async def watch(database_url: str, views: int) -> None:
    """Record views, as the API does."""
    telemetry = Telemetry(database_url, repeat=timedelta(hours=1))
    telemetry.open()
    for number in range(views):
        details = {"sessionId": str(uuid4())}
        at = datetime.now(UTC)
        viewed = TelemetryEvent(uuid4(), "video.viewed", uuid4(), f"viewer-{number}", at, details)
        await telemetry.record(viewed)
    await telemetry.close()


UPLOAD = {"title": "Four", "filename": "four.mp4", "contentType": "video/mp4", "sizeBytes": 4}


def answers(port: int) -> bool:
    """Whether anything listens on the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("seconds", [0.2, 0.9])
def test_a_stop_during_the_start_leaves_nothing_behind(
    make_program: MakeProgram, seconds: float
) -> None:
    program = make_program().launch()
    eventually(lambda: "starting Backlot" in program.complained)
    time.sleep(seconds)
    program.stop()
    assert program.servers() == []
    assert "Traceback" not in program.complained
    assert program.start().stop() == 0
