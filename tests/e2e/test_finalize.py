"""Invariant 6: wherever the process is killed, an upload is completed once, with one answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e import plain
from tests.e2e.brink import Brink, ends, lying_in_folder, on_the_brink
from tests.e2e.halted_program import STEPS, WITHIN_THE_STORE
from tests.e2e.program import Program
from tests.e2e.videos import MP4, pieces, problem, read, start
from tests.integration.s3_server import BUCKET, S3Server, s3_server
from tests.support import eventually, unused_port

MIB = 1024 * 1024
# Between them it is decided whether the upload was completed.
DECISIVE = ("before the event", "after the event")
HALTING = "tests.e2e.halted_program"
SMALL_PARTS = {"PART_SIZE_BYTES": "16384", "MAX_UPLOAD_BYTES": "16384000"}


@pytest.fixture(scope="module")
def on_folder(short_dir: Path) -> Iterator[Program]:
    program = Program(short_dir / "halting", unused_port(), SMALL_PARTS, HALTING)
    yield program.start()
    program.clean_up()


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture(scope="module")
def on_s3(short_dir: Path, s3: S3Server) -> Iterator[Program]:
    variables = {"PART_SIZE_BYTES": str(5 * MIB), **s3.settings()}
    program = Program(short_dir / "halting-s3", unused_port(), variables, HALTING)
    yield program.start()
    program.clean_up()


def kill_at(step: str, program: Program, brink: Brink) -> None:
    """Complete the upload, in a process that dies at this step, and start it again."""
    (program.home / "halt").write_text(f"{step} SIGKILL")
    with pytest.raises(httpx.TransportError):
        brink.complete()
    program.process.wait()
    assert not (program.home / "halt").exists()
    program.start()


def check_completed_once(program: Program, brink: Brink) -> None:
    first = brink.complete_at_last()
    assert first["sizeBytes"] == len(brink.content)
    assert brink.complete_at_last() == first
    problem(brink.owner.delete(brink.path), 409, "conflict")
    assert ends(program, brink.upload_id) == {"Completed": 1}
    assert brink.played() == brink.content


@pytest.mark.chaos
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_every_step_on_the_folder(on_folder: Program, step: str) -> None:
    brink = on_the_brink(on_folder)
    kill_at(step, on_folder, brink)
    check_completed_once(on_folder, brink)
    assert lying_in_folder(on_folder, brink.upload_id) == (1, 0)


@pytest.mark.chaos
@pytest.mark.parametrize("step", [step for step in STEPS if step != WITHIN_THE_STORE])
def test_killed_at_every_step_on_s3(on_s3: Program, s3: S3Server, step: str) -> None:
    content = MP4 * (5 * MIB // len(MP4) + 2)
    brink = on_the_brink(on_s3, content)
    kill_at(step, on_s3, brink)
    check_completed_once(on_s3, brink)
    client = s3.client()
    assert "Uploads" not in client.list_multipart_uploads(Bucket=BUCKET)
    key = f"videos/{brink.upload_id}"
    assert client.list_objects_v2(Bucket=BUCKET, Prefix=key)["KeyCount"] == 1


@pytest.mark.parametrize(
    "step",
    [pytest.param(step, marks=() if step in DECISIVE else pytest.mark.chaos) for step in STEPS],
)
def test_killed_and_then_aborted(on_folder: Program, step: str) -> None:
    """One wins: the upload was completed before its process died, or it is gone."""
    brink = on_the_brink(on_folder)
    kill_at(step, on_folder, brink)
    aborted = brink.owner.delete(brink.path)
    if step in STEPS[: STEPS.index("after the event")]:
        assert read(aborted) == {"status": "aborted"}
        assert problem(brink.complete(), 409, "conflict")["uploadStatus"] == "aborted"
        assert ends(on_folder, brink.upload_id) == {"Aborted": 1}
        assert lying_in_folder(on_folder, brink.upload_id) == (0, 0)
    else:
        problem(aborted, 409, "conflict")
        check_completed_once(on_folder, brink)


def test_an_abandoned_upload_expires(make_program: Callable[..., Program]) -> None:
    day = 24 * 3600
    settings = {"UPLOAD_IDLE_DAYS": str(2 / day), "EXPIRY_INTERVAL_SECONDS": "0.2"}
    program = make_program(**SMALL_PARTS, **settings).start()
    owner = program.client("owner")
    finished = on_the_brink(program)
    read(finished.complete())
    started = start(owner)
    path, part = f"/uploads/{started['uploadId']}", started["parts"][0]
    plain.put(part["url"], content=pieces(MP4, started)[0]).raise_for_status()
    assert [arrived["number"] for arrived in read(owner.get(path))["parts"]] == [1]

    eventually(lambda: read(owner.get(path))["status"] == "expired")
    assert read(owner.get(path))["parts"] == []
    for refused in (owner.post(f"{path}/complete"), owner.delete(path)):
        assert problem(refused, 409, "conflict")["uploadStatus"] == "expired"
    eventually(lambda: lying_in_folder(program, started["uploadId"]) == (0, 0))
    again = plain.put(part["url"], content=pieces(MP4, started)[0])
    problem(again, 404, "upload-gone")
    assert finished.played() == MP4
    assert program.stop() == 0
    assert "expiry_broke" not in program.complained
