"""One run of the demo, from looking for the server to the verdict."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from rich.console import Console
from rich.table import Table

from backlot import output
from backlot.calls import CallFailed, check_url
from backlot.database import NoSecret, signing_secret
from backlot.demo.client import DemoFailed, DemoUser, Lanes, Meter
from backlot.demo.script import (
    SECOND_THOUGHT,
    Afterthought,
    Clip,
    DemoVisit,
    Film,
    Liking,
    ReadBackCounts,
    Stage,
    ViewerRole,
    cast,
    make_clips,
)
from backlot.screen import BYTES, Screen
from backlot.signals import run
from backlot.upload.transfer import Details, LocalFile, Transfer
from infra.errors import ExitCode
from infra.http.auth import mint_token
from infra.settings import Settings

PEOPLE_AT_ONCE = 16
FIRST_BYTES = 64 * 1024


async def upload(studio: DemoUser, clip: Clip, sent: Callable[[int], None]) -> Film:
    """Upload a clip as `backlot upload` does; `sent` is told of bytes sent."""
    details: Details = {
        "title": clip.title,
        "description": clip.description,
        "category": clip.category,
        "filename": clip.filename,
        "contentType": "video/mp4",
        "sizeBytes": clip.size_bytes,
    }
    with LocalFile(clip.path) as file:
        started = await studio.uploads.start(details, str(uuid4()))
        done = await Transfer(studio.uploads, file, started, progress=sent).run()
        beginning = b"".join([block async for block in file.blocks(0, min(FIRST_BYTES, file.size))])
    return Film(clip, str(done.video_id), done.size_bytes, started.part_count, beginning)


async def play(
    roles: list[ViewerRole], enter: Callable[[str], DemoUser], stage: Stage
) -> list[DemoUser]:
    """Play all roles, many at once; return the people in the order of the roles."""
    at_once = asyncio.Semaphore(PEOPLE_AT_ONCE)

    async def appear(role: ViewerRole) -> DemoUser:
        async with at_once:
            person = enter(role.name)
            for visit in role.visits:
                try:
                    await _attend(person, visit, stage)
                except CallFailed as error:
                    stage.surprises.append(f"{role.name}: {error}")
                stage.visited()
            return person

    return await asyncio.gather(*map(appear, roles))


async def _attend(person: DemoUser, visit: DemoVisit, stage: Stage) -> None:
    film = stage.films[visit.video]
    await _watch(person, visit, film, stage)
    await _like(person, visit, film, stage)
    await _comment(person, visit, film, stage)
    if visit.share is not None:
        await person.command("POST", f"/videos/{film.video_id}/share", {"channel": visit.share})
        film.shares += 1


async def _watch(person: DemoUser, visit: DemoVisit, film: Film, stage: Stage) -> None:
    path = f"/videos/{film.video_id}"
    session = await person.command("POST", f"{path}/watch")
    film.views += 1
    film.play_url = session["url"]
    answer = await person.bytes(film.play_url, f"bytes=0-{FIRST_BYTES - 1}")
    stage.expect(
        f"{film.clip.title}: status of a range", httpx.codes.PARTIAL_CONTENT, answer.status_code
    )
    if answer.content != film.beginning:
        stage.surprises.append(f"{film.clip.title}: other bytes are played than were uploaded")
    # A report for each second, so that the curve of those who go on falls as it does in life.
    for position in range(ceil(visit.seconds_watched)):
        seconds = min(1.0, visit.seconds_watched - position)
        report = {"sessionId": session["sessionId"], "seconds": seconds, "position": position}
        await person.command("POST", f"{path}/watch-time", report)


async def _like(person: DemoUser, visit: DemoVisit, film: Film, stage: Stage) -> None:
    path = f"/videos/{film.video_id}/like"
    for method in visit.liking.value:
        state = await person.command(method, path)
        change = film.likers.add if state["hasLiked"] else film.likers.discard
        change(person.name)
    wanted = visit.liking not in (Liking.NOT, Liking.TAKE_BACK)
    seen = await person.query(path)
    stage.expect(f"{film.clip.title}: liked by {person.name}", wanted, seen["hasLiked"])


async def _comment(person: DemoUser, visit: DemoVisit, film: Film, stage: Stage) -> None:
    if visit.comment is None or visit.language is None:
        return
    posted = await person.command(
        "POST", f"/videos/{film.video_id}/comments", {"content": visit.comment}
    )
    comment_id: str = posted["commentId"]
    film.comments[comment_id] = visit.comment
    film.languages.add(visit.language)
    if visit.afterthought is Afterthought.EDIT:
        better = SECOND_THOUGHT.format(content=visit.comment)
        await person.command("PATCH", f"/comments/{comment_id}", {"content": better})
        film.comments[comment_id] = better
    elif visit.afterthought is Afterthought.DELETE:
        await person.command("DELETE", f"/comments/{comment_id}")
        del film.comments[comment_id]


async def read_back(studio: DemoUser, people: Sequence[DemoUser], stage: Stage) -> None:
    """Take the counts of each film; whatever differs from what was done is noted on the stage."""
    for film in stage.films:
        # The studio's last word: whoever sees its effect sees all that came before.
        told = f"{film.clip.description} Seen by {len(people)} on its first day."
        await studio.command("PATCH", f"/videos/{film.video_id}", {"description": told})
    for film in stage.films:
        await _read_film(studio, film, stage)
    titles = {film.video_id: film.clip.title for film in stage.films}
    for person in people[:MOST_LISTS]:
        # Those of this run are the newest, so on the first page.
        page = await person.query("/videos/liked", {"limit": 100})
        liked = {titles[item["videoId"]] for item in page["items"] if item["videoId"] in titles}
        done = {film.clip.title for film in stage.films if person.name in film.likers}
        stage.expect(f"videos that {person.name} likes", sorted(done), sorted(liked))


async def _read_film(studio: DemoUser, film: Film, stage: Stage) -> None:
    path, title = f"/videos/{film.video_id}", film.clip.title
    video = await studio.query(path)
    film.read_back = ReadBackCounts(video["views"], video["likes"], video["comments"])
    done = ReadBackCounts(film.views, len(film.likers), len(film.comments))
    stage.expect(title, done, film.read_back)
    comments = {item["commentId"]: item["content"] for item in await studio.all(f"{path}/comments")}
    if comments != film.comments:
        differing = len(comments.items() ^ film.comments.items())
        stage.surprises.append(f"{title}: {differing} comments differ from what was written")


STUDIO = "studio"
TOKEN_LIFETIME = timedelta(hours=6)
PATIENCE_SECONDS = 60.0
MOST_LISTS = 50


def run_demo(url: str, *, settings: Settings, viewers: int = 25, as_json: bool = False) -> int:
    """Play the demo against the server at `url` (no slash at the end); return the exit code.

    0 when everything that was read back is what was done, else 1. Raises OperatorError when
    there is no Backlot at `url`, or none that takes this machine's tokens.
    """
    check_url(url, DemoFailed)
    report = run(_run(url, settings, viewers))
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        show(report)
    for mismatch in report["mismatches"]:
        print(f"differs: {mismatch}", file=sys.stderr)
    return ExitCode.DONE if report["ok"] else ExitCode.NOT_WELL


async def _run(url: str, settings: Settings, viewers: int) -> dict[str, Any]:
    """Play, and return the report as `--json` prints it; durations in ms, sizes in bytes."""
    started = time.perf_counter()
    meter, screen = Meter(), Screen()
    try:
        async with _client(url) as http:
            await _find_server(http, url)
            http.event_hooks = {"request": [meter.count]}
            enter = _entrance(http, meter, settings)
            studio = enter(STUDIO)
            await _try_token(studio, url)
            films = await _premiere(studio, screen)
            stage = await _first_day(films, viewers, enter, screen)
    except CallFailed as error:
        raise DemoFailed(f"the demo was broken off: {error}") from error
    videos = [_video(url, film) for film in films]
    counted = {name: sum(each[name] for each in videos) for name in ("views", "likes", "comments")}
    return {
        "url": url,
        "ok": not stage.surprises,
        "viewers": viewers,
        "totals": {"videos": len(videos), **counted, "shares": sum(film.shares for film in films)},
        "languages": sorted(set[str]().union(*(film.languages for film in films))),
        "videos": videos,
        "requests": meter.requests,
        "errors": meter.errors.total(),
        "errorKinds": dict(meter.errors),
        "latencyMs": {
            "p50": round(meter.percentile_ms(0.50), 2),
            "p99": round(meter.percentile_ms(0.99), 2),
        },
        "seconds": round(time.perf_counter() - started, 2),
        "mismatches": stage.surprises,
    }


def _client(url: str) -> httpx.AsyncClient:
    lanes = Lanes(PEOPLE_AT_ONCE)
    return httpx.AsyncClient(base_url=url, transport=lanes, timeout=PATIENCE_SECONDS)


async def _find_server(http: httpx.AsyncClient, url: str) -> None:
    """Raise DemoFailed unless a Backlot answers there, with every part of it."""
    try:
        answer = await http.get("/readyz")
        parts = answer.json()["parts"].items()
    except httpx.TransportError as error:
        raise DemoFailed(f"no server at {url}: start one with `make up`") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DemoFailed(f"what answers at {url} is not Backlot: give its --url") from error
    if not answer.is_success:
        missing = ", ".join(name for name, state in parts if not state["ok"])
        raise DemoFailed(f"the server at {url} is not ready ({missing}): see its log")


async def _try_token(studio: DemoUser, url: str) -> None:
    try:
        await studio.query("/videos/liked", {"limit": 1})
    except CallFailed as error:
        if error.status != httpx.codes.UNAUTHORIZED:
            raise
        raise DemoFailed(
            f"the server at {url} refuses this machine's tokens: "
            "set the BACKLOT_DATA_DIR or JWT_SECRET that it runs with"
        ) from error


def _entrance(
    http: httpx.AsyncClient, meter: Meter, settings: Settings
) -> Callable[[str], DemoUser]:
    """Return a function that makes a person by name, with a token as `backlot token` mints it."""
    try:
        secret = signing_secret(settings)
    except NoSecret as error:
        raise DemoFailed(f"the demo can't make tokens for its viewers: {error}") from error
    issuer, audience = settings.auth.issuer, settings.auth.audience
    ttl = min(TOKEN_LIFETIME, settings.auth.max_lifetime)
    mint = partial(mint_token, secret, ttl=ttl, issuer=issuer, audience=audience)
    return lambda name: DemoUser(http, meter, name, mint(name))


async def _premiere(studio: DemoUser, screen: Screen) -> list[Film]:
    with tempfile.TemporaryDirectory(prefix="backlot-demo-") as folder:
        clips = await asyncio.to_thread(make_clips, Path(folder))
        for clip in clips:
            screen.say(f"{clip.filename}: {clip.size_bytes:,} bytes, {clip.source}")
        total = sum(clip.size_bytes for clip in clips)
        with screen.act("uploading", total, BYTES) as act:
            return [await upload(studio, clip, act.advance) for clip in clips]


async def _first_day(
    films: list[Film], viewers: int, enter: Callable[[str], DemoUser], screen: Screen
) -> Stage:
    roles = cast(viewers, len(films))
    visits = sum(len(role.visits) for role in roles)
    with screen.act("watching", visits, "visits") as act:
        stage = Stage(films, act.advance)
        people = await play(roles, enter, stage)
    screen.say("reading everything back")
    await read_back(enter(STUDIO), people, stage)
    return stage


def _video(url: str, film: Film) -> dict[str, Any]:
    """Return one video of the report, with the counts that the query API gave."""
    path = f"{url}/videos/{film.video_id}"
    return {
        "videoId": film.video_id,
        "title": film.clip.title,
        "source": film.clip.source,
        "sizeBytes": film.size_bytes,
        "parts": film.parts,
        **asdict(film.read_back),
        "urls": {"play": film.play_url, "video": path, "comments": f"{path}/comments"},
    }


HEADINGS = ("video", "MB", "parts", "views", "likes", "comments")


def show(report: Mapping[str, Any]) -> None:
    """Print the summary to standard output."""
    console = Console(width=output.width())
    rows = [
        (e["title"], f"{e['sizeBytes'] / 1e6:.2f}", *(str(e[name]) for name in HEADINGS[2:]))
        for e in report["videos"]
    ]
    framed = Table(title=f"Backlot's first day, at {report['url']}")
    for number, heading in enumerate(HEADINGS):
        framed.add_column(heading, justify="right" if number else "left")
    for row in rows:
        framed.add_row(*row)
    anywhere = console.options.update(max_width=output.UNLIMITED)
    lines = _sentences(report)
    if console.measure(framed, options=anywhere).maximum <= console.width:
        console.print(framed)
    else:
        lines = chain([str(framed.title)], output.table(HEADINGS, rows, console.width), lines)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _sentences(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines below the table."""
    totals, latency = report["totals"], report["latencyMs"]
    yield (
        f"{report['viewers']} viewers: {totals['videos']} videos, {totals['views']} views, "
        f"{totals['likes']} likes, {totals['comments']} comments in {len(report['languages'])} "
        f"languages, {totals['shares']} shares"
    )
    yield (
        f"{report['requests']} requests in {report['seconds']:.1f} s, {report['errors']} errors, "
        f"p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms"
    )
    differing = f"{len(report['mismatches'])} things differ from what was done"
    yield "everything read back is what was done" if report["ok"] else differing
    yield ""
    yield f"  API        {report['url']}/docs"
    for video in report["videos"]:
        yield f"  {video['title']}"
        yield from (f"    {name:<9}{url}" for name, url in video["urls"].items())
