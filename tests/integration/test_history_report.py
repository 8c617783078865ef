"""`backlot bench recommendations` by a history: the command, and the installation's own history."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from benchmarks.__main__ import main
from benchmarks.bench import Scale
from benchmarks.contenders import BLEND, TREND
from benchmarks.history import Event, Film, History, Kind
from benchmarks.history_files import HistoryUnusable, read_history
from benchmarks.history_report import Request, judge
from benchmarks.own_history import own_history
from benchmarks.peers import ALS, CHANCE, EASE, KNN
from benchmarks.product import Product
from infra.errors import ExitCode
from infra.settings import load_settings
from projections.trending import Trending, Window
from tests import site_history

HOUR = timedelta(hours=1)
PROTOCOLS = [
    "last fifth by time, all users",
    "last fifth by time, users with a past",
    "next 3 days, mean of 2 cuts",
    "each user's last",
]
CONTENDERS = {
    BLEND, TREND, CHANCE, "popular of 7 days", "popular of 30 days", KNN, ALS, EASE
}  # fmt: skip


def bench(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `backlot bench recommendations` as a user does."""
    command = [sys.executable, "-m", "backlot", "bench", "recommendations", *arguments]
    return subprocess.run(
        command, env={**os.environ, **variables}, text=True, capture_output=True, check=False
    )


def test_the_committed_history_is_that_of_the_community() -> None:
    assert site_history.PATH.read_text() == site_history.text()


def test_a_history_is_judged_by_all_protocols_against_all_peers() -> None:
    options = ("--days", "3", "--cuts", "2", "--json")
    done = bench(*options, RECOMMENDATIONS_HISTORY=str(site_history.PATH))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["users"], told["videos"], told["missing"]) == (40, 60, [])
    assert [each["protocol"] for each in told["judgements"]] == PROTOCOLS
    for judgement in told["judgements"]:
        assert {each["name"] for each in judgement["scores"]} == CONTENDERS
        for each in judgement["scores"]:
            for name in ("ndcg", "recall", "hit_rate"):
                assert 0 <= each[name]["low"] <= each[name]["value"] <= each[name]["high"] <= 1
    fifth = {each["name"]: each for each in told["judgements"][1]["scores"]}
    assert fifth[BLEND]["ndcg"]["value"] > fifth[CHANCE]["ndcg"]["value"]
    assert fifth[TREND]["ndcg"]["value"] > fifth[CHANCE]["ndcg"]["value"]


def test_the_table_names_who_could_not_take_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "implicit", None)
    monkeypatch.setattr("benchmarks.__main__.signal.signal", lambda *_: None)
    kept = tmp_path / "report.json"
    asked = ["--history", str(site_history.PATH), "--users", "12", "--json", str(kept)]
    assert main(["recommendations", *asked]) == 0
    out = capsys.readouterr().out
    assert "ALS: implicit is not installed: pip install 'backlot[bench]'" in out
    for name in (*PROTOCOLS[:2], PROTOCOLS[3], BLEND, EASE, "NDCG / best peer's"):
        assert name in out
    told = json.loads(kept.read_text())
    assert [each["users"] <= 12 for each in told["judgements"]] == [True] * 3
    assert len(told["missing"]) == 2


def test_two_runs_give_the_same_figures() -> None:
    history = read_history(site_history.PATH, HOUR)
    first, second = (judge(history, Request(users=10), load_settings({})) for _ in range(2))
    assert first.judgements == second.judgements


def test_what_can_not_be_judged_ends_before_the_work(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("time,user,video,kind\n1,ann,a,click\n")
    done = bench("--history", str(path))
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert done.stderr.splitlines() == [
        f"backlot: {path}, line 2: kind 'click' is none of view, like, unlike, comment, share"
    ]


@pytest.mark.parametrize(
    ("users", "videos", "why"),
    [(50, 19, "has 19 videos: of fewer than 20"), (9, 40, "only 9 users come back")],
)
def test_too_little_to_judge_by_ends_before_the_work(
    monkeypatch: pytest.MonkeyPatch, users: int, videos: int, why: str
) -> None:
    monkeypatch.setattr("benchmarks.history_report.open_bench", _nothing)
    with pytest.raises(HistoryUnusable, match=why):
        judge(_made(users, videos), Request(), load_settings({}))


def _nothing(scale: Scale) -> None:
    raise AssertionError("the work has begun")


def test_days_that_are_longer_than_the_history_end_before_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmarks.history_report.open_bench", _nothing)
    history = read_history(site_history.PATH, HOUR)
    with pytest.raises(HistoryUnusable, match="--days 1000000: nobody comes back"):
        judge(history, Request(days=1_000_000), load_settings({}))


def test_what_is_watched_until_tomorrow_is_judged_by(database_url: str) -> None:
    now = datetime.now(UTC)
    film = Film(UUID(int=1), "a film", None, "maker", now - HOUR)
    with Product(database_url, load_settings({})) as product:
        product.publish(film)
        product.take(Event(now, "ann", film.video_id, Kind.VIEW, 7 * 24 * 3600.0))
        answer = product.ask("bob", now + HOUR)
    assert [each.video_id for each in answer.trending] == [film.video_id]


def _made(users: int, videos: int) -> History:
    """Each user watches every video, one an hour, and another one first."""
    whole = read_history(site_history.PATH, HOUR)
    films = list(whole.films)[:videos]
    begin = whole.events[0].at
    events = [
        Event(begin + timedelta(hours=hour), f"user-{user}", films[(user + hour) % videos].video_id)
        for hour in range(videos)
        for user in range(users)
    ]
    there = [Film(each.video_id, each.title, None, "maker", begin - HOUR) for each in films]
    return History(there, events)


def test_questions_of_one_time_share_what_trends(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = read_history(site_history.PATH, HOUR)
    at = told.events[-1].at + HOUR
    ranked: list[tuple[Window, int]] = []
    rank = Trending.rank

    async def counted(self: Trending, conn: Any, window: Window, **given: Any) -> Any:
        ranked.append((window, given["limit"]))
        return await rank(self, conn, window, **given)

    monkeypatch.setattr(Trending, "rank", counted)
    with Product(database_url, load_settings({})) as product:
        for film in told.films:
            product.publish(film)
        for event in told.events:
            product.take(event)
        first, second, third = (
            product.ask(f"viewer-{number}", at, trending=most).trending
            for number, most in enumerate((50, 20, 60))
        )
        assert [most for window, most in ranked if window is Window.WEEK] == [50, 120]
        assert [most for window, most in ranked if window is Window.MONTH] == [50, 50]
        assert list(first) == list(second) == list(third)[:50]
        assert len(third) > 50
        product.ask("viewer-0", at + HOUR)
        assert len(ranked) == 6


def test_the_own_history_is_what_the_sinks_have_stored(database_url: str) -> None:
    told = read_history(site_history.PATH, HOUR)
    settings = load_settings({"DATABASE_URL": database_url})
    watched = told.events[0]
    later = told.events[-1].at + HOUR
    more = [
        Event(later, "viewer-0", watched.video_id, Kind.LIKE),
        Event(later + HOUR, "viewer-0", watched.video_id, Kind.UNLIKE),
        Event(later + HOUR, "viewer-0", watched.video_id, Kind.COMMENT),
        Event(later + HOUR, "viewer-0", watched.video_id, Kind.SHARE),
    ]
    events = [*told.events, *more]
    with Product(database_url, settings) as product:
        for film in told.films:
            product.publish(film)
        for event in events:
            product.take(event)
        product.ask("viewer-0", later + 3 * HOUR)
    own = own_history(settings)

    def key(event: Event) -> tuple[object, ...]:
        return event.at, event.user, event.video_id, event.kind, round(event.seconds or 0, 3)

    assert sorted(map(key, own.events)) == sorted(map(key, events))
    there = {(film.video_id, film.category, film.owner, film.since) for film in told.films}
    assert {(film.video_id, film.category, film.owner, film.since) for film in own.films} == there


def test_without_anything_recorded_a_file_is_asked_for(database_url: str) -> None:
    settings = load_settings({"DATABASE_URL": database_url})
    with Product(database_url, settings):
        pass
    with pytest.raises(HistoryUnusable, match="give --history FILE"):
        own_history(settings)
