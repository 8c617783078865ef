"""The demo's script, its films and its verdict, against a server that can be told to lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from backlot.demo import run
from backlot.demo.client import DemoFailed, Meter
from backlot.demo.run import run_demo
from backlot.demo.script import Afterthought, Liking, bundled_film, cast, make_clips
from infra.settings import Settings, load_settings
from tests.unit.fake_backlot import URL, FakeBacklot

ONE = "([0-9a-f-]{36})"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeBacklot:
    fake = FakeBacklot()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(
        run, "_client", lambda url: httpx.AsyncClient(base_url=url, transport=fake.transport())
    )
    return fake


@pytest.fixture
def settings(server: FakeBacklot) -> Settings:
    return load_settings({"JWT_SECRET": server.secret})


def test_the_script_is_the_same_every_time() -> None:
    assert cast(25, 3) == cast(25, 3)
    assert cast(30, 3)[:25] == cast(25, 3)


def test_in_the_script_everything_happens() -> None:
    visits = [visit for role in cast(25, 3) for visit in role.visits]
    assert len(visits) == 75
    assert {visit.liking for visit in visits} == set(Liking)
    spoken = [visit for visit in visits if visit.comment]
    assert len({visit.language for visit in spoken}) >= 8
    assert {visit.afterthought for visit in spoken} == set(Afterthought)
    assert {visit.share for visit in visits} >= {None, "mail"}


def test_ten_thousand_viewers_have_names_of_their_own() -> None:
    assert len({role.name for role in cast(10_000, 1)}) == 10_000


def test_the_bundled_film_is_a_small_mp4() -> None:
    content = bundled_film().read_bytes()
    assert content[4:8] == b"ftyp"
    assert b"avc1" in content
    assert b"mp4a" in content
    assert len(content) < 60_000


def test_without_ffmpeg_the_bundled_film_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    clips = make_clips(tmp_path)
    assert {clip.path for clip in clips} == {bundled_film()}
    assert clips[0].source == "bundled (ffmpeg is not installed)"


def test_an_ffmpeg_that_lacks_an_encoder_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\necho \"Unknown encoder 'libx264'\" >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    clip = make_clips(tmp_path)[0]
    assert clip.path == bundled_film()
    assert clip.source == "bundled (ffmpeg failed: Unknown encoder 'libx264')"


def test_percentiles() -> None:
    meter = Meter(durations=[number / 1000 for number in range(1, 101)])
    assert (meter.percentile_ms(0.50), meter.percentile_ms(0.99)) == (51, 100)
    assert Meter().percentile_ms(0.99) == 0


def test_what_is_read_back_is_what_was_done(
    server: FakeBacklot, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_demo(URL, settings=settings, viewers=12, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is True
    assert told["errors"] == 0
    assert told["totals"]["videos"] == len(server.videos) == 3
    assert told["totals"]["views"] == 36
    assert told["totals"]["likes"] == sum(len(kept.likers) for kept in server.videos.values())
    assert told["totals"]["comments"] == sum(len(kept.comments) for kept in server.videos.values())
    assert len(told["languages"]) >= 8
    assert {video["parts"] for video in told["videos"]} == {3}


def test_the_summary_is_for_people(
    server: FakeBacklot, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_demo(URL, settings=settings, viewers=2) == 0
    shown = capsys.readouterr()
    assert "everything read back is what was done" in shown.out
    assert f"{URL}/docs" in shown.out
    assert "watching: 6/6 visits" in shown.err


@pytest.mark.parametrize(
    ("what", "lie", "told"),
    [
        (f"GET /videos/{ONE}", lambda said: {**said, "likes": said["likes"] - 1}, "likes="),
        (f"GET /videos/{ONE}", lambda said: {**said, "views": said["views"] + 1}, "views="),
        (f"GET /videos/{ONE}", lambda said: {**said, "comments": 0}, "comments="),
        (f"GET /videos/{ONE}/comments", lambda said: {"items": said["items"][1:]}, "comments"),
        (
            f"GET /videos/{ONE}/comments",
            lambda said: {"items": [{**item, "content": "?"} for item in said["items"]]},
            "comments differ",
        ),
        (f"GET /videos/{ONE}/like", lambda said: {**said, "hasLiked": False}, "liked by"),
        ("GET /videos/liked", lambda said: {"items": []}, "videos that"),
        ("bytes", lambda said: said[:-1] + b"?", "other bytes"),
    ],
)
def test_a_difference_is_told_and_fails(
    server: FakeBacklot,
    settings: Settings,
    capsys: pytest.CaptureFixture[str],
    what: str,
    lie: Callable[[Any], Any],
    told: str,
) -> None:
    server.lies[what] = lie
    assert run_demo(URL, settings=settings, viewers=6, as_json=True) == 1
    printed = capsys.readouterr()
    mismatches = json.loads(printed.out)["mismatches"]
    assert any(told in mismatch for mismatch in mismatches)
    assert printed.err.count("differs: ") == len(mismatches)


def test_an_outage_is_waited_for_with_the_same_key(
    server: FakeBacklot, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    server.outages = 2
    assert run_demo(URL, settings=settings, viewers=2, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["errors"] == 2
    assert max(server.keys.values()) == 3
    assert len(server.videos) == 3


def test_an_outage_that_does_not_end_breaks_the_demo_off(
    server: FakeBacklot, settings: Settings
) -> None:
    server.outages = 1000
    with pytest.raises(DemoFailed, match="broken off: POST /uploads: 503 away"):
        run_demo(URL, settings=settings)


def test_a_server_with_another_secret(server: FakeBacklot) -> None:
    with pytest.raises(DemoFailed, match="refuses this machine's tokens"):
        run_demo(URL, settings=load_settings({"JWT_SECRET": "of a stranger, who signs otherwise"}))


def test_tokens_that_only_a_provider_can_make(server: FakeBacklot) -> None:
    jwks = {"JWT_JWKS_URL": "https://id.example/jwks.json", "JWT_AUDIENCE": "backlot"}
    settings = load_settings(jwks)
    with pytest.raises(DemoFailed, match=r"can't make tokens .* identity provider"):
        run_demo(URL, settings=settings)


def test_a_server_that_is_not_ready(server: FakeBacklot, settings: Settings) -> None:
    server.ready = False
    with pytest.raises(DemoFailed, match=r"not ready \(database\)"):
        run_demo(URL, settings=settings)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://127.0.0.1:1", r"no server at http://127\.0\.0\.1:1: start one with `make up`"),
        ("backlot.example", "has to start with http"),
        ("http://x:eighty", "is not a URL"),
    ],
)
def test_nobody_there(url: str, told: str) -> None:
    with pytest.raises(DemoFailed, match=told):
        run_demo(url, settings=load_settings({"JWT_SECRET": "of a stranger, who signs otherwise"}))


@pytest.mark.parametrize("content", [b"<html>", b"[]", b'{"parts": 1}', b"{}"])
def test_something_else_there(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, content: bytes
) -> None:
    other = httpx.MockTransport(lambda request: httpx.Response(200, content=content))
    monkeypatch.setattr(
        run, "_client", lambda url: httpx.AsyncClient(base_url=url, transport=other)
    )
    with pytest.raises(DemoFailed, match="is not Backlot"):
        run_demo(URL, settings=settings)
