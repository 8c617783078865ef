"""The program's other commands against the running server: demo, doctor, token."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from backlot.demo.script import bundled_film
from tests.e2e import plain
from tests.e2e.program import Program
from tests.e2e.terminals import with_a_bar
from tests.e2e.videos import read
from tests.support import PROJECT, requires

MakeProgram = Callable[..., Program]


@pytest.fixture
def no_ffmpeg(tmp_path: Path) -> dict[str, str]:
    """A machine with hardly a program on it; quick, because no film has to be made."""
    return {"PATH": str(tmp_path)}


def test_the_demo_plays_and_everything_counts(server: Program) -> None:
    requires("ffmpeg")
    ended = server.run("demo", "--json")
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert (told["ok"], told["errors"], told["mismatches"]) == (True, 0, [])
    assert told["viewers"] == 25
    assert len(told["languages"]) >= 8
    assert told["totals"]["views"] == 75
    assert [video["source"] for video in told["videos"]][:2] == ["made with ffmpeg"] * 2
    # More than one answer's worth of part URLs.
    assert told["videos"][0]["parts"] > 100
    assert 0 < told["latencyMs"]["p50"] <= told["latencyMs"]["p99"]
    assert "watching: 75/75 visits" in ended.stderr
    reader = server.client()
    for video in told["videos"]:
        shown = read(reader.get(f"/videos/{video['videoId']}"))
        counts = {name: shown[name] for name in ("views", "likes", "comments")}
        assert counts == {name: video[name] for name in counts}
        assert plain.get(video["urls"]["play"]).content[4:8] == b"ftyp"


def test_the_demo_needs_no_ffmpeg(server: Program, no_ffmpeg: dict[str, str]) -> None:
    ended = server.run("demo", "--viewers", "4", **no_ffmpeg)
    assert ended.returncode == 0, ended.stderr
    assert "bundled (ffmpeg is not installed)" in ended.stderr
    assert "everything read back is what was done" in ended.stdout
    assert f"{server.url}/docs" in ended.stdout


def test_the_demo_shows_a_bar_on_a_terminal(server: Program, no_ffmpeg: dict[str, str]) -> None:
    played = with_a_bar(server, "demo", "--viewers", "4", "--json", **no_ffmpeg)
    assert played.code == 0
    assert json.loads(played.out)["ok"]
    shown = played.shown
    assert "━" in shown
    assert "visits/s" in shown
    assert "\x1b[" in shown


def test_the_demo_can_start_its_own_server(
    make_program: MakeProgram, no_ffmpeg: dict[str, str]
) -> None:
    program = make_program()
    program.home.mkdir()
    ended = program.run("demo", "--start", "--viewers", "3", "--json", **no_ffmpeg)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["ok"]
    assert program.servers() == []


def test_a_demo_without_a_server_is_one_line(make_program: MakeProgram) -> None:
    program = make_program()
    program.home.mkdir()
    ended = program.run("demo")
    assert (ended.returncode, ended.stdout) == (4, "")
    assert ended.stderr == f"backlot: no server at {program.url}: start one with `make up`\n"


def test_a_demo_with_a_strangers_tokens_is_one_line(
    make_program: MakeProgram, server: Program
) -> None:
    stranger = make_program(JWT_SECRET="of a stranger, who signs otherwise")
    stranger.home.mkdir()
    ended = stranger.run("demo", "--url", server.url)
    assert (ended.returncode, ended.stdout) == (4, "")
    assert ended.stderr.startswith(f"backlot: the server at {server.url} refuses")
    assert ended.stderr.count("\n") == 1


def test_the_doctor_finds_the_running_parts_well(server: Program) -> None:
    ended = server.run("doctor", "--json")
    assert ended.returncode == 0, ended.stdout
    parts = {part["name"]: part for part in json.loads(ended.stdout)["parts"]}
    assert all(part["ok"] for part in parts.values())
    assert parts["api"]["url"] == server.url
    assert parts["api"]["detail"] == "ready"
    assert f"pid {server.process.pid}" in parts["database"]["detail"]


def test_a_minted_token_is_who_it_says(server: Program) -> None:
    made = server.run("token", "--user", "carol", "--ttl", "5m")
    assert (made.returncode, made.stderr) == (0, "")
    headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
    assert server.client().get("/videos/liked", headers=headers).status_code == 200
    assert server.client().get("/projections", headers=headers).status_code == 403
    admin = json.loads(server.run("token", "--user", "carol", "--admin", "--json").stdout)
    headers = {"Authorization": f"Bearer {admin['token']}"}
    assert server.client().get("/projections", headers=headers).status_code == 200


def test_the_film_is_shipped_in_the_wheel(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, check=True, cwd=PROJECT, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("backlot/demo/sample.mp4") == bundled_film().read_bytes()
